/* MQTT 5 framing: the five packets a publishing gateway writes and the four it reads.
 *
 * Story: link.c encodes CONNECT, PUBLISH, PINGREQ and DISCONNECT into its output buffer and feeds
 * received bytes to mqtt_decode. Only QoS 1 publishing exists here, so CONNACK, PUBACK, PINGRESP
 * and DISCONNECT are all that a correct server sends; anything else, a length that does not fit or
 * an unknown property is malformed (-1) and the caller closes the connection, which is always safe
 * because everything unacknowledged is sent again. Pure functions, no sockets. */
#ifndef RUUVI_MQTT_CODEC_H
#define RUUVI_MQTT_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mqtt_type { MQTT_CONNACK = 2, MQTT_PUBACK = 4, MQTT_PINGRESP = 13, MQTT_DISCONNECT = 14 };

#define MQTT_REASON_SUCCESS 0x00
#define MQTT_REASON_NO_SUBSCRIBER 0x10
#define MQTT_REASON_FAILURE 0x80 /* this and everything above it */

struct mqtt_packet {
    enum mqtt_type type;
    uint8_t reason;
    uint16_t packet_id;
    uint16_t receive_maximum; /* CONNACK only; 65535 when the server named none */
    uint16_t server_keep_alive; /* CONNACK only; 0 when the server named none */
    uint8_t maximum_qos;      /* CONNACK only; 2 when the server named none */
};

/* A variable byte integer takes 1..4 bytes; returns how many. */
size_t mqtt_varint_put(uint8_t *out, uint32_t value);
/* Returns bytes used, 0 when more bytes are needed, -1 when it is malformed. */
int mqtt_varint_get(const uint8_t *in, size_t len, uint32_t *value);

/* Encoders return the packet's length, or 0 when it does not fit into cap. */
size_t mqtt_connect(uint8_t *out, size_t cap, const char *client_id, const char *username,
                    const char *password, uint16_t keep_alive_s);
size_t mqtt_publish(uint8_t *out, size_t cap, const char *topic, size_t topic_len,
                    uint16_t packet_id, const char *payload, size_t payload_len);
size_t mqtt_pingreq(uint8_t *out, size_t cap);
size_t mqtt_disconnect(uint8_t *out, size_t cap);

/* Reads one packet: returns its length, 0 when it is incomplete, -1 when it is malformed. */
long mqtt_decode(const uint8_t *in, size_t len, struct mqtt_packet *packet);

#endif
