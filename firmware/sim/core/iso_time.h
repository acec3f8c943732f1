/* Epoch microseconds as ISO-8601 text in UTC, e.g. 2026-11-24T06:10:00.123456Z.
 *
 * Story: payload.c stamps every message with its intended send time. The C library's gmtime is
 * avoided because it is not the same on every device and pulls in time-zone data. Times before
 * 1970 or after 9999 cannot occur here and are not handled. */
#ifndef RUUVI_ISO_TIME_H
#define RUUVI_ISO_TIME_H

#include <stdint.h>

#define ISO_TIME_LEN 27

/* Writes 27 characters and a terminating zero. */
void iso_time(int64_t epoch_us, char out[ISO_TIME_LEN + 1]);

#endif
