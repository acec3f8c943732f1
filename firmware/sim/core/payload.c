/* JSON payloads, see payload.h for the story. */
#include "payload.h"

#include "iso_time.h"
#include "json_writer.h"

static void token(const struct message *message, struct textbuf *out)
{
    tb_u64(out, message->seed);
    tb_chr(out, '-');
    tb_u64(out, message->seq);
}

static void identity(const struct message *message, struct json_writer *jw)
{
    char time[ISO_TIME_LEN + 1];
    if (message->kind >= KIND_NOT_JSON) {
        /* First of all keys, so that the cut of a truncated payload comes after it. */
        jw_raw(jw, "token", "\"");
        token(message, jw->out);
        tb_chr(jw->out, '"');
    }
    if (message->kind == KIND_BAD_MAC)
        jw_string(jw, "device_id", "not-a-mac");
    else if (message->kind != KIND_NO_DEVICE)
        jw_string(jw, "device_id", message->device);
    if (message->kind == KIND_BAD_TIME) {
        jw_string(jw, "timestamp", "yesterday");
    } else {
        iso_time(message->time_us, time);
        jw_string(jw, "timestamp", time);
    }
}

static void values(const struct message *message, struct json_writer *jw)
{
    const struct reading_values *v = &message->values;
    if (message->kind == KIND_WRONG_TYPE)
        jw_string(jw, "temperature", "warm");
    else
        jw_fixed(jw, "temperature", v->temperature_milli, 3);
    if (message->kind == KIND_NAN)
        jw_raw(jw, "humidity", "NaN");
    else
        jw_fixed(jw, "humidity", v->humidity_e4, 4);
    jw_int(jw, "pressure", v->pressure_pa);
    jw_fixed(jw, "acceleration_x", v->acceleration_milli[0], 3);
    jw_fixed(jw, "acceleration_y", v->acceleration_milli[1], 3);
    jw_fixed(jw, "acceleration_z", v->acceleration_milli[2], 3);
    jw_fixed(jw, "battery_voltage", v->battery_milli, 3);
    jw_int(jw, "tx_power", v->tx_power_dbm);
    jw_int(jw, "movement_counter", v->movement_counter);
    jw_int(jw, "measurement_sequence", v->measurement_sequence);
    jw_int(jw, "rssi", v->rssi_dbm);
}

void payload_render(const struct message *message, struct textbuf *out)
{
    struct json_writer jw;
    size_t start = out->len;
    if (message->kind == KIND_NOT_JSON) {
        tb_str(out, "not json ");
        token(message, out);
        return;
    }
    jw_begin(&jw, out);
    identity(message, &jw);
    values(message, &jw);
    jw_string(&jw, "gateway_id", message->gateway);
    jw_end(&jw);
    if (message->kind == KIND_TRUNCATED)
        out->len = start + (out->len - start) * 2 / 3; /* well past the token, before the brace */
}
