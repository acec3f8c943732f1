/* Ledger files, see ledger.h for the story. */
#include "ledger.h"

#include "../core/csv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LEDGER_BUFFER (1 << 20) /* a burst must not wait for the disk between two flushes */

static FILE *open_one(struct ledger *ledger, const char *prefix, const char *suffix,
                      const char *header, char **buffer)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    FILE *file = fopen(path, "we");
    *buffer = malloc(LEDGER_BUFFER); /* without it stdio's own small one serves */
    if (file == NULL || (*buffer && setvbuf(file, *buffer, _IOFBF, LEDGER_BUFFER) != 0) ||
        fputs(header, file) == EOF) {
        fprintf(stderr, "ruuvi-sim: cannot write %s: %s\n", path, strerror(errno));
        ledger->failed = true;
    }
    return file;
}

bool ledger_open(struct ledger *ledger, const char *prefix)
{
    memset(ledger, 0, sizeof *ledger);
    ledger->sent = open_one(ledger, prefix, ".sent.csv", csv_sent_header,
                            &ledger->buffers[0]);
    if (!ledger->failed)
        ledger->acked = open_one(ledger, prefix, ".acked.csv", csv_acked_header,
                                 &ledger->buffers[1]);
    ledger_flush(ledger);
    return !ledger->failed;
}

static void report(struct ledger *ledger, const char *what)
{
    if (!ledger->failed)
        fprintf(stderr, "ruuvi-sim: cannot write the %s ledger: %s\n", what, strerror(errno));
    ledger->failed = true;
}

static void append(struct ledger *ledger, FILE *file, const struct textbuf *row, const char *what)
{
    if (file == NULL || row->overflow || fwrite_unlocked(row->at, 1, row->len, file) != row->len)
        report(ledger, what);
}

void ledger_sent(struct ledger *ledger, const struct message *message)
{
    char bytes[CSV_ROW_MAX];
    struct textbuf row;
    tb_init(&row, bytes, sizeof bytes);
    csv_sent_row(&row, message);
    append(ledger, ledger->sent, &row, "sent");
}

void ledger_acked(struct ledger *ledger, uint64_t seq, int64_t acked_us, unsigned sends)
{
    char bytes[CSV_ROW_MAX];
    struct textbuf row;
    tb_init(&row, bytes, sizeof bytes);
    csv_acked_row(&row, seq, acked_us, sends);
    append(ledger, ledger->acked, &row, "acked");
}

void ledger_flush(struct ledger *ledger)
{
    if (ledger->sent != NULL && fflush(ledger->sent) != 0)
        report(ledger, "sent");
    if (ledger->acked != NULL && fflush(ledger->acked) != 0)
        report(ledger, "acked");
}

bool ledger_close(struct ledger *ledger)
{
    ledger_flush(ledger);
    if (ledger->sent != NULL && fclose(ledger->sent) != 0)
        report(ledger, "sent");
    if (ledger->acked != NULL && fclose(ledger->acked) != 0)
        report(ledger, "acked");
    ledger->sent = ledger->acked = NULL;
    free(ledger->buffers[0]);
    free(ledger->buffers[1]);
    return !ledger->failed;
}
