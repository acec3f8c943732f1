/* The run's ledger on disk: what was sent and what was acknowledged.
 *
 * Story: gateway.c adds a row when a message is handed to the transport for the first time, and
 * another when it is acknowledged for the first time; main.c flushes twice a second. The judge of
 * a run compares the database with these files, so a row that cannot be written fails the run:
 * `failed` is set, the reason is on standard error, and main.c ends with status 1. */
#ifndef RUUVI_LEDGER_H
#define RUUVI_LEDGER_H

#include "../core/source.h"

#include <stdbool.h>
#include <stdio.h>

struct ledger {
    FILE *sent;
    FILE *acked;
    char *buffers[2];
    bool failed;
};

bool ledger_open(struct ledger *ledger, const char *prefix);
void ledger_sent(struct ledger *ledger, const struct message *message);
void ledger_acked(struct ledger *ledger, uint64_t seq, int64_t acked_us, unsigned sends);
void ledger_flush(struct ledger *ledger);
bool ledger_close(struct ledger *ledger);

#endif
