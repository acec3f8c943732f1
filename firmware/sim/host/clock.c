/* Wall time that never steps, see clock.h for the story. */
#include "clock.h"

#include <sys/prctl.h>
#include <time.h>

static int64_t wall_minus_monotonic_us;

static int64_t read_us(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

void clock_start(void)
{
    wall_minus_monotonic_us = read_us(CLOCK_REALTIME) - read_us(CLOCK_MONOTONIC);
    /* The kernel may add 50 us to every sleep to merge wake-ups; the slip should not pay for it. */
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
}

int64_t clock_now_us(void)
{
    return read_us(CLOCK_MONOTONIC) + wall_minus_monotonic_us;
}

void clock_sleep_until(int64_t epoch_us)
{
    int64_t us = epoch_us - wall_minus_monotonic_us;
    struct timespec until = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
