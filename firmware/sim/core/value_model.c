/* Simulated measurements, see value_model.h for the story. */
#include "value_model.h"

#include "rng.h"

int32_t value_sine(uint16_t angle)
{
    /* Bhaskara's rational approximation of one half wave: no table, no floating point. */
    const int64_t half = 32768;
    int64_t p = angle & 0x7fff;
    int64_t q = p * (half - p);
    int64_t wave = 4 * q * 4096 / (half * half * 5 / 4 - q);
    return (int32_t)((angle & 0x8000) ? -wave : wave);
}

static int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

void value_model(uint64_t seed, uint32_t tag, uint64_t round, uint64_t seq, int64_t epoch_us,
                 struct reading_values *out)
{
    struct rng place = {rng_hash(seed ^ 0x7461677, tag)}; /* what never changes for this tag */
    struct rng noise = {rng_hash(seed, seq)};             /* what changes with each message */
    uint32_t of_day = (uint32_t)(epoch_us / 1000 % 86400000);
    uint16_t angle = (uint16_t)((uint64_t)of_day * 65536 / 86400000 + rng_below(&place, 8192));
    int32_t wave = value_sine(angle);

    /* 21 degrees +- 6 by place, +- 4 by day, +- 0.05 noise */
    int32_t t = 4200 + rng_around(&place, 1200) + wave * 800 / 4096 + rng_around(&noise, 10);
    out->temperature_milli = 5 * clamp(t, -9000, 9000);

    /* 45 % +- 12 by place, -+ 8 by day (warm air is drier), +- 0.2 noise */
    int32_t h = 18000 + rng_around(&place, 4800) - wave * 3200 / 4096 + rng_around(&noise, 80);
    out->humidity_e4 = 25 * clamp(h, 7200, 38000);

    out->pressure_pa = clamp(101325 + rng_around(&place, 900) + wave * 180 / 4096 +
                             rng_around(&noise, 12), 88000, 108000);

    /* A tag lies on one of its sides: gravity on one axis, small tilts on the others. */
    uint32_t axis = rng_below(&place, 3);
    int32_t sign = rng_below(&place, 2) ? 1 : -1;
    for (uint32_t i = 0; i < 3; i++)
        out->acceleration_milli[i] = (i == axis ? sign * 1000 : 0) + rng_around(&place, 30) +
                                     rng_around(&noise, 8);

    /* 2.55..3.05 V by age, a little lower when it is cold, +- 3 mV noise */
    int32_t mv = 2550 + (int32_t)rng_below(&place, 500) + wave * 12 / 4096 + rng_around(&noise, 3);
    out->battery_milli = clamp(mv, 2100, 3600);

    out->tx_power_dbm = 4;
    uint32_t moves = rng_below(&place, 255);
    out->movement_counter = (int32_t)((moves + round / 37) % 255);
    uint32_t first = rng_below(&place, 65535);
    out->measurement_sequence = (int32_t)((first + round) % 65535);
    out->rssi_dbm = clamp(-50 - (int32_t)rng_below(&place, 40) + rng_around(&noise, 6), -120, -20);
}
