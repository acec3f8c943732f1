/* The run's figures: a progress line per second and the summary at the end.
 *
 * Story: main.c calls progress() while the run goes on and summary_write() once at its end. The
 * summary is written to a temporary name and renamed, so that a reader never sees half of it, and
 * printed as the last line of standard output. A file that cannot be written returns false. */
#ifndef RUUVI_REPORT_H
#define RUUVI_REPORT_H

#include "gateway.h"

struct run_totals {
    struct pw_counters window;
    uint64_t outstanding;
    uint64_t accepted, refused, failed, reconnects, disconnects;
};

void totals(const struct gateway *gateways, uint32_t count, struct run_totals *out);
void progress(const struct books *books, const struct gateway *gateways, uint32_t count,
              int64_t now_us);
bool summary_write(const struct options *options, const struct books *books,
                   const struct gateway *gateways, int64_t now_us);

#endif
