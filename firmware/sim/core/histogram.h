/* A histogram of delays: 0.1 ms steps to 10 s, 10 ms steps to 1000 s, exact maximum.
 *
 * Story: the run records every message's slip and acknowledgement time here; report.c reads
 * percentiles. A percentile is the upper edge of its step, so it is never flattering. Delays
 * beyond the last step count in it; the maximum stays exact. About 1.2 MB, zero-initialised. */
#ifndef RUUVI_HISTOGRAM_H
#define RUUVI_HISTOGRAM_H

#include <stdint.h>

#define HISTOGRAM_FINE 100000
#define HISTOGRAM_COARSE 99000

struct histogram {
    uint64_t count;
    int64_t max_us;
    uint32_t fine[HISTOGRAM_FINE];
    uint32_t coarse[HISTOGRAM_COARSE + 1];
};

void histogram_add(struct histogram *histogram, int64_t us);
/* The per_mille-th percentile (500 = median) in microseconds; 0 when nothing was recorded. */
int64_t histogram_percentile(const struct histogram *histogram, unsigned per_mille);

#endif
