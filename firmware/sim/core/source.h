/* The run's messages as a pure function: number in, message out.
 *
 * Story: gateway.c asks for message `seq` when it is written the first time and again for every
 * resend; ledger.c asks for the same one. Because nothing but the immutable `struct source` and
 * the number go in, both always see the same bytes. Faults (one value outside the thresholds) and
 * malformed payloads are spread evenly and never meet in one message. It cannot fail. */
#ifndef RUUVI_SOURCE_H
#define RUUVI_SOURCE_H

#include "spread.h"
#include "value_model.h"

#define DEVICE_LEN 17
#define GATEWAY_NAME_MAX 32

enum message_kind {
    KIND_OK,
    KIND_FAULT,
    KIND_NOT_JSON, /* the first malformed kind; the others follow in round-robin order */
    KIND_TRUNCATED,
    KIND_WRONG_TYPE,
    KIND_NAN,
    KIND_NO_DEVICE,
    KIND_BAD_MAC,
    KIND_BAD_TIME,
    KIND_COUNT
};

enum fault_field { FIELD_NONE, FIELD_TEMPERATURE, FIELD_HUMIDITY, FIELD_PRESSURE, FIELD_BATTERY };

struct source {
    uint32_t seed;
    uint32_t tags;
    uint32_t gateways;
    int64_t t0_us;
    double rate;
    struct spread malformed;
    struct spread faults; /* over the well-formed messages only */
};

struct message {
    uint64_t seq;
    uint32_t seed;
    int64_t time_us; /* the intended send time, and the payload's timestamp */
    enum message_kind kind;
    enum fault_field field;
    char device[DEVICE_LEN + 1];
    char gateway[GATEWAY_NAME_MAX];
    struct reading_values values;
};

/* Shares in 1e-9; malformed + faults <= SPREAD_ONE. */
void source_init(struct source *source, uint32_t seed, uint32_t tags, uint32_t gateways,
                 double rate, uint64_t malformed_share, uint64_t fault_share);
int64_t source_due_us(const struct source *source, uint64_t seq);
uint32_t source_gateway(const struct source *source, uint64_t seq);
void source_gateway_name(uint32_t seed, uint32_t index, char out[GATEWAY_NAME_MAX]);
enum message_kind source_kind(const struct source *source, uint64_t seq);
void source_message(const struct source *source, uint64_t seq, struct message *out);

const char *kind_name(enum message_kind kind);  /* "ok", "fault", "bad:not_json", ... */
const char *field_name(enum fault_field field); /* "" for none */

#endif
