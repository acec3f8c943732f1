/* splitmix64: a small deterministic generator and a mixing function.
 *
 * Story: every value of message `seq` is drawn from a generator seeded with (seed, seq) alone.
 * That makes a message a pure function of its number, so a message need not be stored to be sent
 * again byte for byte: it is made again. It cannot fail, and it is no source of secrets. */
#ifndef RUUVI_RNG_H
#define RUUVI_RNG_H

#include <stdint.h>

struct rng {
    uint64_t state;
};

static inline uint64_t rng_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static inline uint64_t rng_hash(uint64_t a, uint64_t b)
{
    return rng_mix(rng_mix(a + UINT64_C(0x9e3779b97f4a7c15)) + b * UINT64_C(0x9e3779b97f4a7c15) + 1);
}

static inline uint64_t rng_next(struct rng *rng)
{
    rng->state += UINT64_C(0x9e3779b97f4a7c15);
    return rng_mix(rng->state);
}

/* Uniform in [0, n), n > 0; the bias of the multiplication is below 2^-32 and does not matter. */
static inline uint32_t rng_below(struct rng *rng, uint32_t n)
{
    return (uint32_t)(((rng_next(rng) >> 32) * n) >> 32);
}

/* Uniform in [-half, half]. */
static inline int32_t rng_around(struct rng *rng, int32_t half)
{
    return (int32_t)rng_below(rng, (uint32_t)(2 * half + 1)) - half;
}

#endif
