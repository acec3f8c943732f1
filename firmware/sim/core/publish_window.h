/* The gateway's memory of its messages: queue, publish window and replay ring in one ring.
 *
 * Story: a gateway pushes each message's number when it is due, and calls pw_pump whenever it may
 * write. Up to `window` messages are unacknowledged at a time (and never more in flight than the
 * server's Receive Maximum). Only PUBACK reason 0x00 is success: 0x10 (nobody subscribed) and
 * errors put the message back after `retry_us`. Success does not free it either: the broker
 * acknowledges before it has it on disk, so a message is held for `hold_us` after its
 * acknowledgement, and after a lost connection everything unacknowledged and everything still
 * held is sent again, in order.
 *
 * Holding time is counted up to the last sign of life from the broker, not up to now: an outage
 * longer than hold_us must not make the ring forget what the broker may have lost.
 *
 * Hardware independent: clock, publish and notification are injected, the memory is the caller's,
 * nothing allocates. What can fail: pw_push when the ring is full (the caller decides what is
 * dropped and counts it). */
#ifndef RUUVI_PUBLISH_WINDOW_H
#define RUUVI_PUBLISH_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

enum pw_state {
    PW_QUEUED,   /* to be written: new, or again after a lost connection */
    PW_INFLIGHT, /* written on this connection, has a packet id */
    PW_BACKOFF,  /* the broker did not take it; written again at when_us */
    PW_HELD      /* acknowledged at when_us, kept for a replay */
};

#define PW_ACKED 1   /* was acknowledged at least once: a further send is a replay */
#define PW_WRITTEN 2 /* at least one byte went out once */

struct pw_slot {
    uint64_t id;
    int64_t first_us; /* first write */
    int64_t when_us;
    uint16_t packet_id;
    uint16_t sends;
    uint8_t state;
    uint8_t flags;
};

struct pw_ops {
    int64_t (*now_us)(void *ctx);
    /* Hands one message to the transport; false = no room now, it stays queued. `sends` is how
     * often it was handed over before, `pos` is for pw_written. */
    bool (*publish)(void *ctx, const struct pw_slot *slot, uint64_t pos);
    /* First acknowledgement of a message (replays are not told again). */
    void (*acked)(void *ctx, const struct pw_slot *slot, int64_t now_us);
};

struct pw_counters {
    uint64_t acked;         /* distinct messages acknowledged */
    uint64_t resent;        /* sends beyond the first of messages not yet acknowledged */
    uint64_t replayed;      /* sends of messages acknowledged before */
    uint64_t no_subscriber; /* PUBACK 0x10 */
    uint64_t refused;       /* PUBACK >= 0x80 and anything else that is not 0x00 or 0x10 */
    uint64_t stray;         /* PUBACK for a packet id that is not in use */
};

struct publish_window {
    struct pw_ops ops;
    void *ctx;
    struct pw_slot *slots;
    uint32_t capacity;
    uint32_t *by_packet_id; /* slot index + 1, 0 = free; [1..packet_ids] */
    uint16_t packet_ids;
    uint16_t last_packet_id;
    uint32_t *retry; /* FIFO of slot indexes in back-off: one delay for all keeps it sorted */
    uint32_t retry_head, retry_len;
    uint32_t window;
    uint32_t receive_maximum;
    int64_t hold_us, retry_us;
    int64_t alive_us; /* last sign of life of the broker */
    bool connected;
    uint64_t tail, head; /* positions grow for ever; slot = position % capacity */
    uint64_t cursor;     /* nothing before it is queued */
    uint64_t queued;
    uint32_t inflight;
    struct pw_counters count;
};

/* Packet ids to hand out for a window: more than fit in flight, so that a free one is near. */
uint16_t pw_packet_ids(uint32_t window);

/* `by_packet_id` has pw_packet_ids(window) + 1 entries, `retry` has `window` entries. */
void pw_init(struct publish_window *pw, const struct pw_ops *ops, void *ctx, uint32_t window,
             int64_t hold_us, int64_t retry_us, struct pw_slot *slots, uint32_t capacity,
             uint32_t *by_packet_id, uint32_t *retry);
bool pw_push(struct publish_window *pw, uint64_t id);
void pw_connected(struct publish_window *pw, uint16_t receive_maximum);
void pw_alive(struct publish_window *pw);
void pw_lost(struct publish_window *pw);
void pw_puback(struct publish_window *pw, uint16_t packet_id, uint8_t reason);
void pw_written(struct publish_window *pw, uint64_t pos, int64_t now_us);
/* Writes what may be written; returns how many messages were handed to the transport. */
uint32_t pw_pump(struct publish_window *pw);
/* Messages still to be settled: queued, in flight or in back-off, replays included. */
uint64_t pw_outstanding(const struct publish_window *pw);
/* Work is queued and only a PUBACK can make room for it. */
bool pw_blocked(const struct publish_window *pw);

#endif
