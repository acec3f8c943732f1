/* Queue, publish window and replay ring, see publish_window.h for the story. */
#include "publish_window.h"

#include "mqtt_codec.h"

#include <string.h>

static struct pw_slot *at(const struct publish_window *pw, uint64_t pos)
{
    return &pw->slots[pos % pw->capacity];
}

uint16_t pw_packet_ids(uint32_t window)
{
    uint32_t ids = 2 * window + 16;
    return (uint16_t)(ids > 65535 ? 65535 : ids);
}

void pw_init(struct publish_window *pw, const struct pw_ops *ops, void *ctx, uint32_t window,
             int64_t hold_us, int64_t retry_us, struct pw_slot *slots, uint32_t capacity,
             uint32_t *by_packet_id, uint32_t *retry)
{
    memset(pw, 0, sizeof *pw);
    pw->ops = *ops;
    pw->ctx = ctx;
    pw->slots = slots;
    pw->capacity = capacity;
    pw->by_packet_id = by_packet_id;
    pw->packet_ids = pw_packet_ids(window);
    memset(by_packet_id, 0, (pw->packet_ids + (size_t)1) * sizeof *by_packet_id);
    pw->retry = retry;
    pw->window = window;
    pw->hold_us = hold_us;
    pw->retry_us = retry_us;
}

/* Forgets what was held long enough. Only the oldest can go; one that is not acknowledged keeps
 * younger ones in the ring, which costs memory but no correctness. */
static void retire(struct publish_window *pw)
{
    while (pw->tail < pw->head) {
        struct pw_slot *slot = at(pw, pw->tail);
        if (slot->state != PW_HELD || slot->when_us + pw->hold_us > pw->alive_us)
            break;
        pw->tail++;
    }
    if (pw->cursor < pw->tail)
        pw->cursor = pw->tail;
}

bool pw_push(struct publish_window *pw, uint64_t id)
{
    if (pw->head - pw->tail == pw->capacity)
        return false;
    struct pw_slot *slot = at(pw, pw->head++);
    memset(slot, 0, sizeof *slot);
    slot->id = id;
    slot->state = PW_QUEUED;
    pw->queued++;
    return true;
}

void pw_connected(struct publish_window *pw, uint16_t receive_maximum)
{
    pw->connected = true;
    pw->receive_maximum = receive_maximum;
    pw_alive(pw);
}

void pw_alive(struct publish_window *pw)
{
    pw->alive_us = pw->ops.now_us(pw->ctx);
    retire(pw);
}

void pw_lost(struct publish_window *pw)
{
    pw->connected = false;
    for (uint64_t pos = pw->tail; pos < pw->head; pos++) {
        struct pw_slot *slot = at(pw, pos);
        if (slot->state == PW_QUEUED)
            continue;
        if (slot->state == PW_HELD && slot->when_us + pw->hold_us <= pw->alive_us)
            continue; /* old enough, only waiting for its elders to leave */
        if (slot->state == PW_INFLIGHT)
            pw->by_packet_id[slot->packet_id] = 0;
        slot->state = PW_QUEUED;
        pw->queued++;
    }
    pw->inflight = 0;
    pw->retry_len = 0;
    pw->cursor = pw->tail;
}

void pw_puback(struct publish_window *pw, uint16_t packet_id, uint8_t reason)
{
    uint32_t index = packet_id <= pw->packet_ids ? pw->by_packet_id[packet_id] : 0;
    if (index == 0) {
        pw->count.stray++;
        return;
    }
    struct pw_slot *slot = &pw->slots[index - 1];
    int64_t now = pw->ops.now_us(pw->ctx);
    pw->by_packet_id[packet_id] = 0;
    pw->inflight--;
    if (reason == MQTT_REASON_SUCCESS) {
        slot->state = PW_HELD;
        slot->when_us = now; /* a replay's acknowledgement starts a new holding time */
        if (!(slot->flags & PW_ACKED)) {
            slot->flags |= PW_ACKED;
            pw->count.acked++;
            pw->ops.acked(pw->ctx, slot, now);
        }
        return;
    }
    if (reason == MQTT_REASON_NO_SUBSCRIBER)
        pw->count.no_subscriber++;
    else
        pw->count.refused++;
    slot->state = PW_BACKOFF;
    slot->when_us = now + pw->retry_us;
    pw->retry[(pw->retry_head + pw->retry_len++) % pw->window] = index - 1;
}

void pw_written(struct publish_window *pw, uint64_t pos, int64_t now_us)
{
    struct pw_slot *slot = at(pw, pos);
    if (!(slot->flags & PW_WRITTEN)) {
        slot->flags |= PW_WRITTEN;
        slot->first_us = now_us;
    }
}

/* The next free packet id after the last one, so that an id rests as long as possible before it
 * is used again. There are more ids than messages in flight: the search always ends. */
static uint16_t free_packet_id(struct publish_window *pw)
{
    uint16_t id = pw->last_packet_id;
    do
        id = (uint16_t)(id >= pw->packet_ids ? 1 : id + 1);
    while (pw->by_packet_id[id] != 0);
    return id;
}

static bool hand_over(struct publish_window *pw, struct pw_slot *slot, uint64_t pos)
{
    uint16_t before = slot->packet_id;
    slot->packet_id = free_packet_id(pw);
    if (!pw->ops.publish(pw->ctx, slot, pos)) {
        slot->packet_id = before;
        return false;
    }
    if (slot->flags & PW_ACKED)
        pw->count.replayed++;
    else if (slot->flags & PW_WRITTEN && slot->sends > 0)
        pw->count.resent++;
    if (slot->sends < UINT16_MAX)
        slot->sends++;
    slot->state = PW_INFLIGHT;
    pw->last_packet_id = slot->packet_id;
    pw->by_packet_id[slot->packet_id] = (uint32_t)(slot - pw->slots) + 1;
    pw->inflight++;
    return true;
}

/* Where a slot of the ring stands: its position is the one in [tail, head) that maps to it. */
static uint64_t position(const struct publish_window *pw, uint32_t index)
{
    uint64_t base = pw->tail % pw->capacity;
    return pw->tail + (index >= base ? index - base : index + pw->capacity - base);
}

uint32_t pw_pump(struct publish_window *pw)
{
    uint32_t handed = 0;
    int64_t now = pw->ops.now_us(pw->ctx);
    if (!pw->connected)
        return 0;
    /* Back-off first: those are older than anything queued. */
    while (pw->retry_len > 0 && pw->inflight < pw->receive_maximum) {
        uint32_t index = pw->retry[pw->retry_head];
        struct pw_slot *slot = &pw->slots[index];
        if (slot->when_us > now)
            break;
        if (!hand_over(pw, slot, position(pw, index)))
            return handed;
        pw->retry_head = (pw->retry_head + 1) % pw->window;
        pw->retry_len--;
        handed++;
    }
    while (pw->queued > 0 && pw->inflight < pw->receive_maximum &&
           pw->inflight + pw->retry_len < pw->window) {
        struct pw_slot *slot = at(pw, pw->cursor);
        if (slot->state == PW_QUEUED) {
            if (!hand_over(pw, slot, pw->cursor))
                return handed;
            pw->queued--;
            handed++;
        }
        pw->cursor++;
    }
    return handed;
}

uint64_t pw_outstanding(const struct publish_window *pw)
{
    return pw->queued + pw->inflight + pw->retry_len;
}

bool pw_blocked(const struct publish_window *pw)
{
    return pw->connected && pw->queued > 0 &&
           (pw->inflight >= pw->receive_maximum || pw->inflight + pw->retry_len >= pw->window);
}
