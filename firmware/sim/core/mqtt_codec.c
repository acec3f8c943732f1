/* MQTT 5 framing, see mqtt_codec.h for the story. */
#include "mqtt_codec.h"

#include <string.h>

size_t mqtt_varint_put(uint8_t *out, uint32_t value)
{
    size_t n = 0;
    do {
        uint8_t byte = value & 0x7f;
        value >>= 7;
        out[n++] = value ? byte | 0x80 : byte;
    } while (value != 0);
    return n;
}

int mqtt_varint_get(const uint8_t *in, size_t len, uint32_t *value)
{
    *value = 0;
    for (int n = 0; n < 4; n++) {
        if ((size_t)n == len)
            return 0;
        *value |= (uint32_t)(in[n] & 0x7f) << (7 * n);
        if (!(in[n] & 0x80))
            return n == 0 || in[n] != 0 ? n + 1 : -1; /* the shortest form is required */
    }
    return -1;
}

static uint8_t *put_u16(uint8_t *out, unsigned value)
{
    out[0] = (uint8_t)(value >> 8);
    out[1] = (uint8_t)value;
    return out + 2;
}

static uint8_t *put_text(uint8_t *out, const char *text, size_t len)
{
    out = put_u16(out, (unsigned)len);
    memcpy(out, text, len);
    return out + len;
}

static unsigned get_u16(const uint8_t *in)
{
    return (unsigned)in[0] << 8 | in[1];
}

size_t mqtt_connect(uint8_t *out, size_t cap, const char *client_id, const char *username,
                    const char *password, uint16_t keep_alive_s)
{
    size_t id = strlen(client_id);
    size_t user = username ? strlen(username) : 0;
    size_t pass = password ? strlen(password) : 0;
    if (id > 65535 || user > 65535 || pass > 65535)
        return 0;
    size_t body = 11 + 2 + id + (username ? 2 + user : 0) + (password ? 2 + pass : 0);
    if (cap < 5 + body)
        return 0;
    uint8_t *at = out;
    *at++ = 0x10;
    at += mqtt_varint_put(at, (uint32_t)body);
    at = put_text(at, "MQTT", 4);
    *at++ = 5;
    /* Clean start: this client keeps its own record of what must be sent again. */
    *at++ = (uint8_t)(0x02 | (username ? 0x80 : 0) | (password ? 0x40 : 0));
    at = put_u16(at, keep_alive_s);
    *at++ = 0; /* no properties */
    at = put_text(at, client_id, id);
    if (username)
        at = put_text(at, username, user);
    if (password)
        at = put_text(at, password, pass);
    return (size_t)(at - out);
}

size_t mqtt_publish(uint8_t *out, size_t cap, const char *topic, size_t topic_len,
                    uint16_t packet_id, const char *payload, size_t payload_len)
{
    size_t body = 2 + topic_len + 2 + 1 + payload_len;
    if (topic_len > 65535 || body > 268435455 || cap < 5 + body)
        return 0;
    uint8_t *at = out;
    *at++ = 0x32; /* QoS 1; never DUP: with a clean start every connection is a new exchange */
    at += mqtt_varint_put(at, (uint32_t)body);
    at = put_text(at, topic, topic_len);
    at = put_u16(at, packet_id);
    *at++ = 0; /* no properties */
    memcpy(at, payload, payload_len);
    return (size_t)(at - out) + payload_len;
}

size_t mqtt_pingreq(uint8_t *out, size_t cap)
{
    if (cap < 2)
        return 0;
    out[0] = 0xc0;
    out[1] = 0;
    return 2;
}

size_t mqtt_disconnect(uint8_t *out, size_t cap)
{
    if (cap < 2)
        return 0;
    out[0] = 0xe0;
    out[1] = 0;
    return 2;
}

/* Length of a property's value after its identifier, -1 when unknown or cut. */
static long property_length(uint8_t identifier, const uint8_t *in, size_t len)
{
    switch (identifier) {
    case 0x01: case 0x17: case 0x19: case 0x24: case 0x25: case 0x28: case 0x29: case 0x2a:
        return len >= 1 ? 1 : -1;
    case 0x13: case 0x21: case 0x22: case 0x23:
        return len >= 2 ? 2 : -1;
    case 0x02: case 0x11: case 0x18: case 0x27:
        return len >= 4 ? 4 : -1;
    case 0x03: case 0x08: case 0x09: case 0x12: case 0x15: case 0x16: case 0x1a: case 0x1c: case 0x1f:
        return len >= 2 && len - 2 >= get_u16(in) ? (long)(2 + get_u16(in)) : -1;
    case 0x26: {
        if (len < 2 || len - 2 < get_u16(in))
            return -1;
        size_t first = 2 + get_u16(in);
        if (len - first < 2 || len - first - 2 < get_u16(in + first))
            return -1;
        return (long)(first + 2 + get_u16(in + first));
    }
    default:
        return -1;
    }
}

static bool connack_properties(const uint8_t *in, size_t len, struct mqtt_packet *packet)
{
    uint32_t total;
    int used = mqtt_varint_get(in, len, &total);
    if (used <= 0 || total != len - (size_t)used)
        return false;
    in += used;
    len = total;
    while (len > 0) {
        uint8_t identifier = *in++;
        long n = property_length(identifier, in, --len);
        if (n < 0)
            return false;
        if (identifier == 0x21)
            packet->receive_maximum = (uint16_t)get_u16(in);
        else if (identifier == 0x13)
            packet->server_keep_alive = (uint16_t)get_u16(in);
        else if (identifier == 0x24)
            packet->maximum_qos = in[0];
        in += n;
        len -= (size_t)n;
    }
    return packet->receive_maximum != 0; /* zero is a protocol error */
}

static bool decode_body(const uint8_t *in, size_t len, struct mqtt_packet *packet)
{
    switch (packet->type) {
    case MQTT_CONNACK:
        if (len < 3)
            return false;
        packet->reason = in[1];
        return connack_properties(in + 2, len - 2, packet);
    case MQTT_PUBACK:
        if (len < 2)
            return false;
        packet->packet_id = (uint16_t)get_u16(in);
        packet->reason = len > 2 ? in[2] : MQTT_REASON_SUCCESS; /* absent means success */
        return packet->packet_id != 0;
    case MQTT_PINGRESP:
        return len == 0;
    case MQTT_DISCONNECT:
        packet->reason = len > 0 ? in[0] : 0;
        return true;
    }
    return false;
}

long mqtt_decode(const uint8_t *in, size_t len, struct mqtt_packet *packet)
{
    uint32_t body;
    if (len < 2)
        return 0;
    int used = mqtt_varint_get(in + 1, len - 1, &body);
    if (used < 0)
        return -1;
    unsigned type = in[0] >> 4;
    if ((in[0] & 15) != 0 || (type != MQTT_CONNACK && type != MQTT_PUBACK &&
                              type != MQTT_PINGRESP && type != MQTT_DISCONNECT))
        return -1;
    if (used > 0 && body > 16384)
        return -1; /* nothing that large can be meant for this client; do not wait for it */
    if (used == 0 || len - 1 - (size_t)used < body)
        return 0;
    memset(packet, 0, sizeof *packet);
    packet->type = (enum mqtt_type)type;
    packet->receive_maximum = 65535;
    packet->maximum_qos = 2;
    if (!decode_body(in + 1 + used, body, packet))
        return -1;
    return (long)(1 + (size_t)used + body);
}
