/* A simulated gateway: one link, one publish window, and the run's shared books.
 *
 * Story: main.c pushes due message numbers and steps every gateway in each turn; the gateway
 * renders messages when the window lets them out, records the slip when their first byte was
 * written, and writes the ledger. What does not fit into the ring (an outage longer than it was
 * sized for) is listed in the ledger and counted as overflow: never silently skipped. */
#ifndef RUUVI_GATEWAY_H
#define RUUVI_GATEWAY_H

#include "../core/histogram.h"
#include "../core/publish_window.h"
#include "ledger.h"
#include "link.h"
#include "options.h"

/* What all gateways of a run share. */
struct books {
    struct source source;
    struct ledger ledger;
    struct histogram slip, ack;
    struct histogram late; /* generated - due: the simulator's own lateness, whatever the broker did */
    uint64_t due;      /* messages that became due */
    uint64_t written;  /* messages of which a byte went out */
    uint64_t malformed, faults, overflow;
    int64_t first_us, last_us; /* first write of the first and of the last message */
};

struct first_write {
    uint64_t offset; /* in the connection's stream */
    uint64_t pos;    /* in the window */
    int64_t due_us;
};

struct gateway {
    struct books *books;
    struct link link;
    struct publish_window window;
    const char *topic;
    size_t topic_len;
    char client_id[GATEWAY_NAME_MAX + 8];
    struct first_write *pending; /* handed over, first byte not yet written: a FIFO */
    uint32_t pending_head, pending_len, pending_cap;
    uint32_t events; /* what epoll reported since the last step */
};

bool gateway_init(struct gateway *gateway, struct books *books, const struct options *options,
                  const struct link_address *to, int epoll_fd, uint32_t index);
void gateway_push(struct gateway *gateway, uint64_t seq, int64_t now_us);
void gateway_step(struct gateway *gateway, int64_t now_us);
/* Lists what is still queued for its first time, then closes the connection. */
void gateway_finish(struct gateway *gateway);

#endif
