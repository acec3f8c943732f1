/* A fake clock, a fake transport and a publish window between them, for test_window.c and
 * test_replay.c.
 *
 * Story: the fake transport renders the real payload of each message it is handed and remembers
 * it, so that "sent again byte for byte" is compared as bytes. Packet ids are taken from the
 * record; time moves only when a test says so. */
#ifndef RUUVI_WINDOW_FAKE_H
#define RUUVI_WINDOW_FAKE_H

#include "unit.h"

#include "../core/mqtt_codec.h"
#include "../core/payload.h"
#include "../core/publish_window.h"

#include "../core/rng.h"

#include <stdlib.h>

#define WINDOW 4
#define CAPACITY 16
#define HOLD_US 10000000
#define RETRY_US 200000
#define SENDS 400

struct sent {
    uint64_t id;
    uint16_t packet_id;
    size_t len;
    char bytes[PAYLOAD_MAX];
};

static struct world {
    int64_t now;
    uint32_t room; /* messages the transport still takes */
    struct source source;
    struct sent sent[SENDS];
    uint32_t count;
    uint64_t acked[SENDS];
    uint32_t acked_count;
    struct publish_window pw;
    struct pw_slot slots[CAPACITY];
    uint32_t retry[WINDOW];
    uint32_t *ids;
} w;

static inline int64_t now_us(void *ctx)
{
    (void)ctx;
    return w.now;
}

static inline bool publish(void *ctx, const struct pw_slot *slot, uint64_t pos)
{
    (void)ctx;
    if (w.room == 0)
        return false;
    w.room--;
    struct sent *sent = &w.sent[w.count++];
    struct message message;
    struct textbuf text;
    assert_true(w.count < SENDS);
    source_message(&w.source, slot->id, &message);
    tb_init(&text, sent->bytes, sizeof sent->bytes);
    payload_render(&message, &text);
    sent->id = slot->id;
    sent->packet_id = slot->packet_id;
    sent->len = text.len;
    pw_written(&w.pw, pos, w.now);
    return true;
}

static inline void acked(void *ctx, const struct pw_slot *slot, int64_t now)
{
    (void)ctx;
    assert_int_equal(now, w.now);
    w.acked[w.acked_count++] = slot->id;
}

static inline int fresh(void **state)
{
    (void)state;
    static const struct pw_ops ops = {now_us, publish, acked};
    free(w.ids);
    memset(&w, 0, sizeof w);
    w.now = 1000000;
    w.room = SENDS;
    source_init(&w.source, 3, 5, 1, 10.0, SPREAD_ONE / 5, SPREAD_ONE / 5);
    /* Exactly as large as asked for, so that ASan sees an index beyond it. */
    w.ids = calloc(pw_packet_ids(WINDOW) + 1u, sizeof *w.ids);
    pw_init(&w.pw, &ops, NULL, WINDOW, HOLD_US, RETRY_US, w.slots, CAPACITY, w.ids, w.retry);
    return 0;
}

static inline int done(void **state)
{
    (void)state;
    free(w.ids);
    w.ids = NULL;
    return 0;
}

static inline void push(uint64_t first, uint64_t last)
{
    for (uint64_t id = first; id <= last; id++)
        assert_true(pw_push(&w.pw, id));
}

static inline void ack(uint32_t nth, uint8_t reason)
{
    pw_alive(&w.pw);
    pw_puback(&w.pw, w.sent[nth].packet_id, reason);
}

static inline void assert_sent(uint32_t from, const uint64_t *ids, uint32_t n)
{
    assert_int_equal(w.count, from + n);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(w.sent[from + i].id, ids[i]);
}

#define SENT(from, ...) \
    assert_sent(from, (const uint64_t[]){__VA_ARGS__}, \
                sizeof((const uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t))

#define T(f) cmocka_unit_test_setup_teardown(f, fresh, done)

#endif
