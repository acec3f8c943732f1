/* A flat JSON object writer on top of textbuf: keys, strings, integers, fixed-point decimals.
 *
 * Story: payload.c builds one MQTT payload with it, and report.c the run's summary. It writes
 * objects of one level only because that is all the RuuviTag message is; it escapes string values,
 * so that no gateway name can break the document (keys are literals and are not). Failure is textbuf's: look at `overflow`. */
#ifndef RUUVI_JSON_WRITER_H
#define RUUVI_JSON_WRITER_H

#include "textbuf.h"

struct json_writer {
    struct textbuf *out;
    bool first;
};

void jw_begin(struct json_writer *jw, struct textbuf *out);
void jw_end(struct json_writer *jw);
void jw_string(struct json_writer *jw, const char *key, const char *value);
void jw_int(struct json_writer *jw, const char *key, int64_t value);
void jw_uint(struct json_writer *jw, const char *key, uint64_t value);
void jw_fixed(struct json_writer *jw, const char *key, int64_t value, unsigned decimals);
/* Appends `text` as the value without looking at it: how deliberately broken values get in. */
void jw_raw(struct json_writer *jw, const char *key, const char *text);

#endif
