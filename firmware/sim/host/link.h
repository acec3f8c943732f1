/* One MQTT connection: non-blocking socket, handshake, keep-alive, reconnect with back-off.
 *
 * Story: gateway.c owns one link and steps it in every turn of the loop. The link connects by
 * itself, tells the gateway what it hears (up, puback, alive, lost), and carries bytes out of one
 * buffer. Every failure - refused, reset, malformed, silent for too long - has the same outcome:
 * the socket is closed, `lost` is called if the link was up, and a new attempt follows after
 * 50 ms..2 s with jitter. A CONNACK that refuses is counted apart, because gateway accounts may
 * be enabled later than the gateway starts. */
#ifndef RUUVI_LINK_H
#define RUUVI_LINK_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../core/rng.h"

#define LINK_OUT (128 * 1024)
#define LINK_IN (64 * 1024)

enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_HANDSHAKE, LINK_UP };

struct link_ops {
    void (*up)(void *ctx, uint16_t receive_maximum);
    void (*puback)(void *ctx, uint16_t packet_id, uint8_t reason);
    void (*alive)(void *ctx);
    void (*lost)(void *ctx);
};

struct link_address {
    struct sockaddr_storage address;
    socklen_t length;
};

struct link {
    struct link_ops ops;
    void *ctx;
    const struct link_address *to;
    const char *client_id, *username, *password;
    int epoll_fd;
    uint32_t epoll_key;
    int fd;
    enum link_state state;
    struct rng jitter;
    int64_t next_attempt_us, backoff_us;
    int64_t deadline_us; /* of the handshake, or of a PINGRESP */
    int64_t up_since_us, last_ping_us, keep_alive_us;
    bool ping_pending;
    uint8_t *out;
    size_t out_len, out_off;
    uint64_t stream_queued, stream_sent; /* bytes of this connection */
    uint8_t *in;
    size_t in_len;
    uint64_t accepted, refused, failed; /* CONNACK 0, CONNACK with a reason, no CONNACK */
    uint64_t disconnects;               /* connections lost after they were up */
};

/* The memory of both buffers stays allocated until the process ends. */
bool link_init(struct link *link, const struct link_ops *ops, void *ctx,
               const struct link_address *to, const char *client_id, const char *username,
               const char *password, int epoll_fd, uint32_t epoll_key, uint64_t seed);
/* Timers, connecting, and reading when `events` (of epoll) say so. */
void link_step(struct link *link, int64_t now_us, uint32_t events);
/* Space for one packet of up to `need` bytes, or NULL while the kernel has not taken the last. */
uint8_t *link_reserve(struct link *link, size_t need);
void link_commit(struct link *link, size_t len);
/* Writes the buffer; false when bytes are left in it or the link went down. */
bool link_flush(struct link *link, int64_t now_us);
void link_goodbye(struct link *link);

#endif
