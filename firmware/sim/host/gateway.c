/* A simulated gateway, see gateway.h for the story. */
#include "gateway.h"

#include "../core/mqtt_codec.h"
#include "../core/payload.h"
#include "clock.h"

#include <stdlib.h>
#include <string.h>

#define OUTAGE_S 120       /* the ring keeps this much of the schedule while the broker is away */
#define RETRY_US 200000    /* before a message is offered again that the broker did not take */
#define FRAMING_MAX 16     /* fixed header, packet id, property length */

static int64_t now_us(void *ctx)
{
    (void)ctx;
    return clock_now_us();
}

static bool publish(void *ctx, const struct pw_slot *slot, uint64_t pos)
{
    struct gateway *gateway = ctx;
    struct books *books = gateway->books;
    size_t need = FRAMING_MAX + gateway->topic_len + PAYLOAD_MAX;
    uint8_t *out = link_reserve(&gateway->link, need);
    bool first = !(slot->flags & PW_WRITTEN);
    if (out == NULL || (first && gateway->pending_len == gateway->pending_cap))
        return false;

    struct message message;
    char bytes[PAYLOAD_MAX];
    struct textbuf payload;
    source_message(&books->source, slot->id, &message);
    tb_init(&payload, bytes, sizeof bytes);
    payload_render(&message, &payload);
    size_t len = mqtt_publish(out, need, gateway->topic, gateway->topic_len, slot->packet_id,
                              bytes, payload.len);
    /* The ledger row comes before the first byte: what may have left is always listed. */
    if (slot->sends == 0)
        ledger_sent(&books->ledger, &message);
    if (first) {
        uint32_t at = (gateway->pending_head + gateway->pending_len++) % gateway->pending_cap;
        gateway->pending[at] = (struct first_write){gateway->link.stream_queued, pos,
                                                    message.time_us};
    }
    link_commit(&gateway->link, len);
    return true;
}

static void acked(void *ctx, const struct pw_slot *slot, int64_t now)
{
    struct gateway *gateway = ctx;
    histogram_add(&gateway->books->ack, now - slot->first_us);
    ledger_acked(&gateway->books->ledger, slot->id, now, slot->sends);
}

/* Settles the first writes of all messages of which a byte is out by now. */
static void settle(struct gateway *gateway)
{
    struct books *books = gateway->books;
    int64_t now = 0;
    while (gateway->pending_len > 0) {
        const struct first_write *write = &gateway->pending[gateway->pending_head];
        if (write->offset >= gateway->link.stream_sent)
            return;
        if (now == 0)
            now = clock_now_us();
        pw_written(&gateway->window, write->pos, now);
        histogram_add(&books->slip, now - write->due_us);
        if (books->written++ == 0)
            books->first_us = now;
        books->last_us = now;
        gateway->pending_head = (gateway->pending_head + 1) % gateway->pending_cap;
        gateway->pending_len--;
    }
}

static void link_is_up(void *ctx, uint16_t receive_maximum)
{
    struct gateway *gateway = ctx;
    pw_connected(&gateway->window, receive_maximum);
}

static void link_puback(void *ctx, uint16_t packet_id, uint8_t reason)
{
    struct gateway *gateway = ctx;
    pw_puback(&gateway->window, packet_id, reason);
}

static void link_alive(void *ctx)
{
    struct gateway *gateway = ctx;
    pw_alive(&gateway->window);
}

static void link_lost(void *ctx)
{
    struct gateway *gateway = ctx;
    settle(gateway);
    /* What was handed over but not written goes back to the queue with the rest. */
    gateway->pending_len = 0;
    pw_lost(&gateway->window);
}

bool gateway_init(struct gateway *gateway, struct books *books, const struct options *options,
                  const struct link_address *to, int epoll_fd, uint32_t index)
{
    static const struct pw_ops window_ops = {now_us, publish, acked};
    static const struct link_ops link_ops = {link_is_up, link_puback, link_alive, link_lost};
    memset(gateway, 0, sizeof *gateway);
    gateway->books = books;
    gateway->topic = options->topic;
    gateway->topic_len = strlen(options->topic);
    memcpy(gateway->client_id, "sim-", 4);
    source_gateway_name(options->seed, index, gateway->client_id + 4);

    /* This gateway's part of the schedule, rounded up to whole tags. */
    double tags = (options->tags + options->gateways - 1) / options->gateways;
    double rate = options->rate * tags / options->tags;
    double kept = rate * (OUTAGE_S + options->replay_seconds);
    double whole = options->rate * options->seconds * tags / options->tags + tags;
    if (kept > whole)
        kept = whole; /* a short run never has more messages than its schedule */
    uint32_t capacity = (uint32_t)(kept * 1.05) + options->window + 64;
    uint16_t ids = pw_packet_ids(options->window);
    struct pw_slot *slots = calloc(capacity, sizeof *slots);
    uint32_t *by_packet_id = calloc(ids + 1u, sizeof *by_packet_id);
    uint32_t *retry = calloc(options->window, sizeof *retry);
    gateway->pending_cap = options->window;
    gateway->pending = calloc(gateway->pending_cap, sizeof *gateway->pending);
    if (!slots || !by_packet_id || !retry || !gateway->pending)
        return false;
    pw_init(&gateway->window, &window_ops, gateway, options->window,
            (int64_t)(options->replay_seconds * 1e6), RETRY_US, slots, capacity, by_packet_id,
            retry);
    return link_init(&gateway->link, &link_ops, gateway, to, gateway->client_id,
                     options->username, options->username ? options->password : NULL, epoll_fd,
                     index, rng_hash(options->seed, 1000 + index));
}

void gateway_push(struct gateway *gateway, uint64_t seq, int64_t now)
{
    struct books *books = gateway->books;
    enum message_kind kind = source_kind(&books->source, seq);
    books->due++;
    histogram_add(&books->late, now - source_due_us(&books->source, seq));
    books->malformed += kind >= KIND_NOT_JSON;
    books->faults += kind == KIND_FAULT;
    if (!pw_push(&gateway->window, seq)) {
        struct message message;
        source_message(&books->source, seq, &message);
        ledger_sent(&books->ledger, &message);
        books->overflow++;
    }
}

void gateway_step(struct gateway *gateway, int64_t now)
{
    link_step(&gateway->link, now, gateway->events);
    gateway->events = 0;
    /* Fill the buffer, write it, and go on as long as both the window and the kernel take more. */
    for (;;) {
        uint32_t handed = pw_pump(&gateway->window);
        bool empty = link_flush(&gateway->link, now);
        settle(gateway);
        if (handed == 0 || !empty)
            return;
    }
}

void gateway_finish(struct gateway *gateway)
{
    struct publish_window *window = &gateway->window;
    for (uint64_t pos = window->cursor; pos < window->head; pos++) {
        const struct pw_slot *slot = &window->slots[pos % window->capacity];
        if (slot->sends == 0) {
            struct message message;
            source_message(&gateway->books->source, slot->id, &message);
            ledger_sent(&gateway->books->ledger, &message);
        }
    }
    link_goodbye(&gateway->link);
}
