/* One CSV row of the sent ledger, and RFC 4180 quoting.
 *
 * Story: ledger.c appends rows with it. The values of a well-formed message are printed from the
 * same integers as its payload; of a malformed one the raw payload is kept instead, since its
 * values are no values. Failure: `overflow` of the buffer (CSV_ROW_MAX is enough for any row). */
#ifndef RUUVI_CSV_H
#define RUUVI_CSV_H

#include "source.h"
#include "textbuf.h"

#define CSV_ROW_MAX 1536

extern const char csv_sent_header[];
extern const char csv_acked_header[];

/* Always quoted, inner quotes doubled: any bytes go through. */
void csv_quote(struct textbuf *out, const char *text, size_t len);
void csv_sent_row(struct textbuf *out, const struct message *message);
void csv_acked_row(struct textbuf *out, uint64_t seq, int64_t acked_us, unsigned sends);

#endif
