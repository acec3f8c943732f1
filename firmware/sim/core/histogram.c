/* Delay histogram, see histogram.h for the story. */
#include "histogram.h"

#define FINE_US 100
#define COARSE_US 10000
#define FINE_END ((int64_t)HISTOGRAM_FINE * FINE_US)

void histogram_add(struct histogram *histogram, int64_t us)
{
    if (us < 0)
        us = 0;
    histogram->count++;
    if (us > histogram->max_us)
        histogram->max_us = us;
    if (us < FINE_END) {
        histogram->fine[us / FINE_US]++;
        return;
    }
    int64_t step = (us - FINE_END) / COARSE_US;
    histogram->coarse[step < HISTOGRAM_COARSE ? step : HISTOGRAM_COARSE]++;
}

static int64_t at_most(int64_t edge, int64_t max)
{
    return edge < max ? edge : max;
}

int64_t histogram_percentile(const struct histogram *histogram, unsigned per_mille)
{
    if (histogram->count == 0)
        return 0;
    uint64_t wanted = (histogram->count * per_mille + 999) / 1000;
    uint64_t seen = 0;
    for (int i = 0; i < HISTOGRAM_FINE; i++) {
        seen += histogram->fine[i];
        if (seen >= wanted)
            return at_most((int64_t)(i + 1) * FINE_US, histogram->max_us);
    }
    for (int i = 0; i < HISTOGRAM_COARSE; i++) {
        seen += histogram->coarse[i];
        if (seen >= wanted)
            return at_most(FINE_END + (int64_t)(i + 1) * COARSE_US, histogram->max_us);
    }
    return histogram->max_us;
}
