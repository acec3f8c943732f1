/* CSV rows of the ledgers, see csv.h for the story. */
#include "csv.h"

#include "payload.h"

const char csv_sent_header[] =
    "seq,gateway_id,device_id,timestamp_us,kind,field,temperature,humidity,pressure,"
    "acceleration_x,acceleration_y,acceleration_z,battery_voltage,tx_power,movement_counter,"
    "measurement_sequence,rssi,payload\n";
const char csv_acked_header[] = "seq,acked_us,sends\n";

void csv_quote(struct textbuf *out, const char *text, size_t len)
{
    tb_chr(out, '"');
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '"')
            tb_chr(out, '"');
        tb_chr(out, text[i]);
    }
    tb_chr(out, '"');
}

static void decimal(struct textbuf *out, int64_t value, unsigned decimals)
{
    tb_chr(out, ',');
    tb_fixed(out, value, decimals);
}

void csv_sent_row(struct textbuf *out, const struct message *message)
{
    const struct reading_values *v = &message->values;
    tb_u64(out, message->seq);
    tb_chr(out, ',');
    tb_str(out, message->gateway);
    tb_chr(out, ',');
    tb_str(out, message->device);
    tb_chr(out, ',');
    tb_i64(out, message->time_us);
    tb_chr(out, ',');
    tb_str(out, kind_name(message->kind));
    tb_chr(out, ',');
    tb_str(out, field_name(message->field));
    if (message->kind >= KIND_NOT_JSON) {
        char bytes[PAYLOAD_MAX];
        struct textbuf payload;
        tb_init(&payload, bytes, sizeof bytes);
        payload_render(message, &payload);
        tb_str(out, ",,,,,,,,,,,,"); /* eleven empty values, then the payload column */
        csv_quote(out, bytes, payload.len);
        tb_chr(out, '\n');
        return;
    }
    decimal(out, v->temperature_milli, 3);
    decimal(out, v->humidity_e4, 4);
    decimal(out, v->pressure_pa, 0);
    decimal(out, v->acceleration_milli[0], 3);
    decimal(out, v->acceleration_milli[1], 3);
    decimal(out, v->acceleration_milli[2], 3);
    decimal(out, v->battery_milli, 3);
    decimal(out, v->tx_power_dbm, 0);
    decimal(out, v->movement_counter, 0);
    decimal(out, v->measurement_sequence, 0);
    decimal(out, v->rssi_dbm, 0);
    tb_str(out, ",\n");
}

void csv_acked_row(struct textbuf *out, uint64_t seq, int64_t acked_us, unsigned sends)
{
    tb_u64(out, seq);
    tb_chr(out, ',');
    tb_i64(out, acked_us);
    tb_chr(out, ',');
    tb_u64(out, sends);
    tb_chr(out, '\n');
}
