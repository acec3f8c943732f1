/* Which messages are special: exactly one in every block of 1/share, at a seeded place.
 *
 * Story: source.c asks for every message number whether it belongs to a share (malformed, faulty).
 * Plain accumulation of the share would always hit the same tags (share 0.01 and 200 tags: two of
 * them), so the place within each block is drawn from the seed; the spread stays even, because
 * each block has exactly one. A pure function of the number: nothing to store, nothing to fail. */
#ifndef RUUVI_SPREAD_H
#define RUUVI_SPREAD_H

#include <stdbool.h>
#include <stdint.h>

#define SPREAD_ONE UINT64_C(1000000000) /* a share of 1.0 */

struct spread {
    uint64_t share; /* in 1e-9 */
    uint64_t seed;
};

/* True when message n is special; *before is set to how many special ones have a lower number. */
bool spread_hit(const struct spread *spread, uint64_t n, uint64_t *before);

#endif
