/* One MQTT connection, see link.h for the story. */
#include "link.h"

#include "../core/mqtt_codec.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define KEEP_ALIVE_S 30
#define BACKOFF_MIN_US 50000
#define BACKOFF_MAX_US 2000000
#define HANDSHAKE_US 5000000 /* an answer to CONNECT takes longer than this only from a dead peer */
#define PINGRESP_US 15000000
#define STABLE_US 1000000 /* a connection that lived this long resets the back-off */

bool link_init(struct link *link, const struct link_ops *ops, void *ctx,
               const struct link_address *to, const char *client_id, const char *username,
               const char *password, int epoll_fd, uint32_t epoll_key, uint64_t seed)
{
    memset(link, 0, sizeof *link);
    link->ops = *ops;
    link->ctx = ctx;
    link->to = to;
    link->client_id = client_id;
    link->username = username;
    link->password = password;
    link->epoll_fd = epoll_fd;
    link->epoll_key = epoll_key;
    link->fd = -1;
    link->jitter.state = seed;
    link->backoff_us = BACKOFF_MIN_US;
    link->out = malloc(LINK_OUT);
    link->in = malloc(LINK_IN);
    return link->out != NULL && link->in != NULL;
}

static void drop(struct link *link, int64_t now_us)
{
    enum link_state was = link->state;
    if (link->fd >= 0)
        close(link->fd); /* leaves the epoll set by itself */
    link->fd = -1;
    link->state = LINK_DOWN;
    link->out_len = link->out_off = link->in_len = 0;
    if (was == LINK_UP && now_us - link->up_since_us >= STABLE_US)
        link->backoff_us = BACKOFF_MIN_US;
    /* Half fixed, half drawn: gateways that lost the same broker must not return as one crowd. */
    int64_t half = link->backoff_us / 2;
    link->next_attempt_us = now_us + half + rng_below(&link->jitter, (uint32_t)half + 1);
    link->backoff_us = link->backoff_us * 2 > BACKOFF_MAX_US ? BACKOFF_MAX_US : link->backoff_us * 2;
    if (was == LINK_UP) {
        link->disconnects++;
        link->ops.lost(link->ctx);
    }
}

static void fail(struct link *link, int64_t now_us)
{
    link->failed++;
    drop(link, now_us);
}

static void watch(struct link *link, int op, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u32 = link->epoll_key};
    epoll_ctl(link->epoll_fd, op, link->fd, &event);
}

static void attempt(struct link *link, int64_t now_us)
{
    int on = 1;
    link->fd = socket(link->to->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (link->fd < 0) {
        fail(link, now_us);
        return;
    }
    setsockopt(link->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    link->state = LINK_CONNECTING;
    link->deadline_us = now_us + HANDSHAKE_US;
    if (connect(link->fd, (const struct sockaddr *)&link->to->address, link->to->length) != 0 &&
        errno != EINPROGRESS) {
        fail(link, now_us);
        return;
    }
    watch(link, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void handshake(struct link *link, int64_t now_us)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(link->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
        fail(link, now_us);
        return;
    }
    watch(link, EPOLL_CTL_MOD, EPOLLIN); /* a full socket is tried again at every turn anyway */
    link->state = LINK_HANDSHAKE;
    link->stream_queued = link->stream_sent = 0;
    link->out_len = mqtt_connect(link->out, LINK_OUT, link->client_id, link->username,
                                 link->password, KEEP_ALIVE_S);
    link->stream_queued = link->out_len;
    link_flush(link, now_us);
}

static void connected(struct link *link, const struct mqtt_packet *packet, int64_t now_us)
{
    if (packet->reason != MQTT_REASON_SUCCESS || packet->maximum_qos < 1) {
        link->refused++;
        drop(link, now_us);
        return;
    }
    unsigned keep_alive = packet->server_keep_alive ? packet->server_keep_alive : KEEP_ALIVE_S;
    link->state = LINK_UP;
    link->accepted++;
    link->up_since_us = link->last_ping_us = now_us;
    link->keep_alive_us = (int64_t)keep_alive * 1000000 * 2 / 3;
    link->ping_pending = false;
    link->ops.up(link->ctx, packet->receive_maximum);
}

/* Returns false when the link went down. */
static bool handle(struct link *link, const struct mqtt_packet *packet, int64_t now_us)
{
    if ((packet->type == MQTT_CONNACK) != (link->state == LINK_HANDSHAKE) ||
        packet->type == MQTT_DISCONNECT) {
        fail(link, now_us);
        return false;
    }
    if (packet->type == MQTT_CONNACK)
        connected(link, packet, now_us);
    else if (packet->type == MQTT_PUBACK)
        link->ops.puback(link->ctx, packet->packet_id, packet->reason);
    else
        link->ping_pending = false;
    return link->state == LINK_UP;
}

static bool parse(struct link *link, int64_t now_us)
{
    size_t off = 0;
    while (off < link->in_len) {
        struct mqtt_packet packet;
        long n = mqtt_decode(link->in + off, link->in_len - off, &packet);
        if (n < 0) {
            fail(link, now_us);
            return false;
        }
        if (n == 0)
            break;
        if (!handle(link, &packet, now_us))
            return false;
        off += (size_t)n;
    }
    memmove(link->in, link->in + off, link->in_len - off);
    link->in_len -= off;
    return true;
}

static void receive(struct link *link, int64_t now_us)
{
    for (;;) {
        size_t room = LINK_IN - link->in_len;
        ssize_t n = recv(link->fd, link->in + link->in_len, room, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            fail(link, now_us);
            return;
        }
        link->in_len += (size_t)n;
        if (!parse(link, now_us))
            return;
        if (link->state == LINK_UP)
            link->ops.alive(link->ctx);
        if ((size_t)n < room)
            return; /* the socket is empty, or will report itself again */
    }
}

static void keep_alive(struct link *link, int64_t now_us)
{
    if (link->ping_pending && now_us > link->deadline_us) {
        fail(link, now_us);
        return;
    }
    if (link->ping_pending || now_us - link->last_ping_us < link->keep_alive_us)
        return;
    uint8_t *out = link_reserve(link, 2);
    if (out == NULL)
        return; /* the peer takes no bytes; the next turn tries again */
    link_commit(link, mqtt_pingreq(out, 2));
    link->last_ping_us = now_us;
    link->ping_pending = true;
    link->deadline_us = now_us + PINGRESP_US;
}

void link_step(struct link *link, int64_t now_us, uint32_t events)
{
    if (link->state == LINK_DOWN) {
        if (now_us >= link->next_attempt_us)
            attempt(link, now_us);
        return;
    }
    if (link->state == LINK_CONNECTING && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
        handshake(link, now_us);
    else if (link->state >= LINK_HANDSHAKE && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        receive(link, now_us);
    if ((link->state == LINK_CONNECTING || link->state == LINK_HANDSHAKE) &&
        now_us > link->deadline_us)
        fail(link, now_us);
    else if (link->state == LINK_UP)
        keep_alive(link, now_us);
}

uint8_t *link_reserve(struct link *link, size_t need)
{
    if (link->state < LINK_HANDSHAKE || link->out_off > 0 || LINK_OUT - link->out_len < need)
        return NULL;
    return link->out + link->out_len;
}

void link_commit(struct link *link, size_t len)
{
    link->out_len += len;
    link->stream_queued += len;
}

bool link_flush(struct link *link, int64_t now_us)
{
    while (link->out_off < link->out_len) {
        ssize_t n = send(link->fd, link->out + link->out_off, link->out_len - link->out_off,
                         MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno != EAGAIN)
                fail(link, now_us);
            return false;
        }
        link->out_off += (size_t)n;
        link->stream_sent += (size_t)n;
    }
    link->out_len = link->out_off = 0;
    return link->state >= LINK_HANDSHAKE;
}

void link_goodbye(struct link *link)
{
    if (link->fd < 0)
        return;
    uint8_t *out = link->state == LINK_UP ? link_reserve(link, 2) : NULL;
    if (out != NULL) {
        link_commit(link, mqtt_disconnect(out, 2));
        /* Whether it arrives does not matter: everything that counts was acknowledged before. */
        if (send(link->fd, link->out, link->out_len, MSG_NOSIGNAL) < 0)
            link->failed++;
    }
    close(link->fd);
    link->fd = -1;
    link->state = LINK_DOWN;
}
