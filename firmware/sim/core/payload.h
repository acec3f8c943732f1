/* A message as the JSON bytes that go into PUBLISH, including the deliberately broken ones.
 *
 * Story: gateway.c renders right before writing, ledger.c renders malformed ones to quote them.
 * Each malformed payload carries the token <seed>-<seq>, so its bytes are unique in a run and a
 * dead letter can be traced to the message. Failure: `overflow` of the buffer (512 bytes are
 * enough for every kind). */
#ifndef RUUVI_PAYLOAD_H
#define RUUVI_PAYLOAD_H

#include "source.h"
#include "textbuf.h"

#define PAYLOAD_MAX 512

void payload_render(const struct message *message, struct textbuf *out);

#endif
