/* Bounded text buffer, see textbuf.h for the story. */
#include "textbuf.h"

void tb_init(struct textbuf *tb, char *memory, size_t cap)
{
    tb->at = memory;
    tb->len = 0;
    tb->cap = cap;
    tb->overflow = false;
}

void tb_cut(struct textbuf *tb, const char *text, size_t len)
{
    /* A truncated log line is worth more than none. */
    size_t fits = tb->cap - tb->len;
    memcpy(tb->at + tb->len, text, len < fits ? len : fits);
    tb->len += len < fits ? len : fits;
    tb->overflow = true;
}

void tb_u64(struct textbuf *tb, uint64_t value)
{
    char digits[20];
    size_t n = sizeof digits;
    do {
        digits[--n] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    tb_mem(tb, digits + n, sizeof digits - n);
}

/* The magnitude as unsigned, so that INT64_MIN does not overflow. */
static uint64_t magnitude(int64_t value)
{
    return value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
}

void tb_i64(struct textbuf *tb, int64_t value)
{
    if (value < 0)
        tb_chr(tb, '-');
    tb_u64(tb, magnitude(value));
}

void tb_fixed(struct textbuf *tb, int64_t value, unsigned decimals)
{
    char digits[32];
    size_t n = sizeof digits;
    uint64_t rest = magnitude(value);
    if (decimals > 9)
        decimals = 9;
    for (unsigned i = 0; i < decimals; i++) {
        digits[--n] = (char)('0' + rest % 10);
        rest /= 10;
    }
    if (decimals > 0)
        digits[--n] = '.';
    do {
        digits[--n] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest != 0);
    if (value < 0)
        digits[--n] = '-';
    tb_mem(tb, digits + n, sizeof digits - n);
}
