/* ruuvi-sim: an open-loop gateway simulator with a ledger of what it sent.
 *
 * Story: one thread, one loop. Each turn generates every message that has become due by the
 * schedule (never fewer because the broker is slow: they wait in their gateway's ring), steps the
 * gateways, and sleeps until the next turn. Turns are TICK_US apart, so that at high rates many
 * messages share one write and many acknowledgements one read. A signal or the end of the
 * schedule stops generating; then the outstanding acknowledgements have --drain-seconds to come.
 * A second signal ends the wait. Exit status: see --help. */
#include "clock.h"
#include "gateway.h"
#include "options.h"
#include "report.h"

#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#define TICK_US 2000
#define IDLE_US 20000        /* timers (back-off, retry) are looked at at least this often */
#define FLUSH_US 500000
#define FIRST_CONNECT_US 1000000 /* without --start-at: how long the schedule waits for CONNACKs */

static volatile sig_atomic_t signals;

static void on_signal(int number)
{
    (void)number;
    signals = signals + 1;
}

struct run {
    struct options options;
    struct books *books;
    struct gateway *gateways;
    int epoll_fd;
    uint64_t total, next; /* messages of the schedule, next one to become due */
    int64_t turn_us, flush_us, progress_us;
};

static bool resolve(const struct options *options, struct link_address *to)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found;
    char port[8];
    snprintf(port, sizeof port, "%u", options->port);
    int error = getaddrinfo(options->host, port, &hints, &found);
    if (error != 0) {
        fprintf(stderr, "ruuvi-sim: --host \"%s\": %s\n", options->host, gai_strerror(error));
        return false;
    }
    memcpy(&to->address, found->ai_addr, found->ai_addrlen);
    to->length = found->ai_addrlen;
    freeaddrinfo(found);
    return true;
}

static void collect(struct run *run, int timeout_ms)
{
    struct epoll_event events[64];
    int n = epoll_wait(run->epoll_fd, events, 64, timeout_ms);
    for (int i = 0; i < n; i++)
        run->gateways[events[i].data.u32].events |= events[i].events;
}

/* Sleeps until the next turn: precisely when the schedule is dense, on the sockets when there is
 * nothing to do before something arrives. */
static void wait_for_turn(struct run *run, bool generating)
{
    int64_t now = clock_now_us();
    int64_t until = now + IDLE_US;
    bool blocked = !generating;
    for (uint32_t i = 0; i < run->options.gateways; i++)
        blocked = blocked || pw_blocked(&run->gateways[i].window);
    if (generating && run->next < run->total) {
        int64_t due = source_due_us(&run->books->source, run->next);
        until = due < until ? due : until;
    }
    if (until < run->turn_us + TICK_US)
        until = run->turn_us + TICK_US;
    if (until <= now)
        collect(run, 0);
    else if (blocked || until - now > TICK_US)
        collect(run, (int)((until - now) / 1000));
    else {
        clock_sleep_until(until);
        collect(run, 0);
    }
    run->turn_us = clock_now_us();
}

static void step_all(struct run *run)
{
    for (uint32_t i = 0; i < run->options.gateways; i++)
        gateway_step(&run->gateways[i], clock_now_us());
}

static void periodic(struct run *run)
{
    int64_t now = clock_now_us();
    if (now >= run->flush_us) {
        ledger_flush(&run->books->ledger);
        run->flush_us = now + FLUSH_US;
    }
    if (run->options.progress && now >= run->progress_us) {
        progress(run->books, run->gateways, run->options.gateways, now);
        run->progress_us += 1000000;
    }
}

/* Chooses the schedule's start: the asked-for time, or when all gateways are connected. */
static void choose_start(struct run *run)
{
    int64_t deadline = clock_now_us() + FIRST_CONNECT_US;
    for (;;) {
        uint32_t up = 0;
        step_all(run);
        for (uint32_t i = 0; i < run->options.gateways; i++)
            up += run->gateways[i].link.state == LINK_UP;
        if (signals || run->options.start_at_us != 0 || up == run->options.gateways ||
            clock_now_us() >= deadline)
            break;
        collect(run, 10);
    }
    run->books->source.t0_us = run->options.start_at_us ? run->options.start_at_us
                                                        : clock_now_us() + TICK_US;
    run->progress_us = run->books->source.t0_us + 1000000;
}

static void generate(struct run *run)
{
    int64_t now = clock_now_us();
    while (run->next < run->total && source_due_us(&run->books->source, run->next) <= now) {
        uint32_t speaker = source_gateway(&run->books->source, run->next);
        gateway_push(&run->gateways[speaker], run->next, now);
        run->next++;
    }
}

static uint64_t outstanding(const struct run *run)
{
    struct run_totals sum;
    totals(run->gateways, run->options.gateways, &sum);
    return sum.outstanding;
}

static void schedule(struct run *run)
{
    while (run->next < run->total && !signals && !run->books->ledger.failed) {
        generate(run);
        step_all(run);
        periodic(run);
        wait_for_turn(run, true);
    }
}

static void drain(struct run *run)
{
    int64_t deadline = clock_now_us() + (int64_t)(run->options.drain_seconds * 1e6);
    sig_atomic_t seen = signals;
    step_all(run);
    while (outstanding(run) > 0 && clock_now_us() < deadline && signals == seen &&
           !run->books->ledger.failed) {
        periodic(run);
        wait_for_turn(run, false);
        step_all(run);
    }
}

static bool prepare(struct run *run, const struct link_address *to)
{
    const struct options *options = &run->options;
    struct rlimit files;
    /* A thousand gateways need more descriptors than the usual soft limit. */
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    run->total = (uint64_t)(options->rate * options->seconds + 0.5);
    run->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    run->books = calloc(1, sizeof *run->books);
    run->gateways = calloc(options->gateways, sizeof *run->gateways);
    if (run->epoll_fd < 0 || run->books == NULL || run->gateways == NULL)
        return false;
    source_init(&run->books->source, options->seed, options->tags, options->gateways,
                options->rate, options->malformed_share, options->fault_share);
    for (uint32_t i = 0; i < options->gateways; i++)
        if (!gateway_init(&run->gateways[i], run->books, options, to, run->epoll_fd, i))
            return false;
    return true;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_signal}; /* no SA_RESTART: sleeps must end */
    struct link_address to;
    static struct run run; /* static: what hangs on it lives until the process ends */
    if (!options_parse(&run.options, argc, argv))
        return 0;
    if (!resolve(&run.options, &to))
        return 1;
    clock_start();
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    if (!prepare(&run, &to)) {
        fprintf(stderr, "ruuvi-sim: cannot set up the run: %s\n", strerror(errno));
        return 1;
    }
    if (!ledger_open(&run.books->ledger, run.options.out))
        return 1;
    choose_start(&run);
    schedule(&run);
    drain(&run);
    for (uint32_t i = 0; i < run.options.gateways; i++)
        gateway_finish(&run.gateways[i]);
    bool ok = ledger_close(&run.books->ledger);
    ok = summary_write(&run.options, run.books, run.gateways, clock_now_us()) && ok;

    struct run_totals sum;
    totals(run.gateways, run.options.gateways, &sum);
    if (sum.accepted == 0 && !signals) {
        fprintf(stderr, "ruuvi-sim: never connected to %s port %u: %lu refused, %lu failed\n",
                run.options.host, run.options.port, (unsigned long)sum.refused,
                (unsigned long)sum.failed);
        ok = false;
    }
    return ok ? 0 : 1;
}
