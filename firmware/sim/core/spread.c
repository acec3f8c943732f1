/* Even, seeded spread of special messages, see spread.h for the story. */
#include "spread.h"

#include "rng.h"

/* First number of block k: the smallest n with floor(n * share / ONE) == k. */
static uint64_t block_start(uint64_t share, uint64_t k)
{
    return (k * SPREAD_ONE + share - 1) / share;
}

bool spread_hit(const struct spread *spread, uint64_t n, uint64_t *before)
{
    if (spread->share == 0) {
        *before = 0;
        return false;
    }
    uint64_t block = n * spread->share / SPREAD_ONE;
    uint64_t start = block_start(spread->share, block);
    uint64_t length = block_start(spread->share, block + 1) - start;
    uint64_t chosen = start + rng_hash(spread->seed, block) % length;
    *before = block + (chosen < n ? 1 : 0);
    return chosen == n;
}
