/* A bounded text buffer: the one place where this program turns numbers into characters.
 *
 * Story: the payload renderer, the ledger and the summary all append text to a buffer somebody
 * else owns. Nothing here allocates, nothing here uses floating point (an ESP32 without its FPU
 * enabled in the task must be able to run it, and a decimal printed from an integer is the same
 * text in the payload and in the ledger). When the buffer is full the text stops at what fitted
 * and `overflow` is set: the caller looks once at the end instead of after every append. */
#ifndef RUUVI_TEXTBUF_H
#define RUUVI_TEXTBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct textbuf {
    char *at;
    size_t len;
    size_t cap;
    bool overflow;
};

void tb_init(struct textbuf *tb, char *memory, size_t cap);
/* What did not fit: keeps the part that does. Called by the two below, not by others. */
void tb_cut(struct textbuf *tb, const char *text, size_t len);

/* In the header because half of the simulator's own time goes through these three. */
static inline void tb_mem(struct textbuf *tb, const char *text, size_t len)
{
    if (len > tb->cap - tb->len) {
        tb_cut(tb, text, len);
        return;
    }
    memcpy(tb->at + tb->len, text, len);
    tb->len += len;
}

static inline void tb_str(struct textbuf *tb, const char *text)
{
    tb_mem(tb, text, strlen(text));
}

static inline void tb_chr(struct textbuf *tb, char c)
{
    if (tb->len < tb->cap)
        tb->at[tb->len++] = c;
    else
        tb->overflow = true;
}

void tb_u64(struct textbuf *tb, uint64_t value);
void tb_i64(struct textbuf *tb, int64_t value);
/* Fixed point: tb_fixed(tb, -24305, 3) appends "-24.305"; decimals 0 appends the integer. */
void tb_fixed(struct textbuf *tb, int64_t value, unsigned decimals);

#endif
