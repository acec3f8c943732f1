/* The run's clock: wall time that never steps.
 *
 * Story: everything in the simulator is in epoch microseconds. The wall clock is read once at the
 * start and advanced by the monotonic clock, so that a step of the wall clock in the middle of a
 * run neither stops the schedule nor lets it race. */
#ifndef RUUVI_CLOCK_H
#define RUUVI_CLOCK_H

#include <stdint.h>

void clock_start(void);
int64_t clock_now_us(void);
/* Sleeps until then, or until a signal arrives. */
void clock_sleep_until(int64_t epoch_us);

#endif
