/* What a simulated RuuviTag measures: a daily curve, a place of its own, and a little noise.
 *
 * Story: source.c calls it for each message with (seed, tag, round, time). All values are integers
 * in the sensor's own resolution (RAWv2: 0.005 degrees, 0.0025 %, 1 Pa, 1 mg, 1 mV), and always
 * strictly inside the pipeline's anomaly thresholds, so that only a deliberate fault can be one.
 * A pure function of its arguments; it cannot fail. */
#ifndef RUUVI_VALUE_MODEL_H
#define RUUVI_VALUE_MODEL_H

#include <stdint.h>

struct reading_values {
    int32_t temperature_milli;   /* 0.001 degrees, a multiple of 5 */
    int32_t humidity_e4;         /* 0.0001 %, a multiple of 25 */
    int32_t pressure_pa;
    int32_t acceleration_milli[3];
    int32_t battery_milli;
    int32_t tx_power_dbm;
    int32_t movement_counter;     /* 0..254 wraps, 255 means "not available" on the tag */
    int32_t measurement_sequence; /* 0..65534 wraps, 65535 means "not available" */
    int32_t rssi_dbm;
};

/* Sine of a 16-bit angle (65536 = full turn) in 1/4096, within 0.2 % of full scale. */
int32_t value_sine(uint16_t angle);

void value_model(uint64_t seed, uint32_t tag, uint64_t round, uint64_t seq, int64_t epoch_us,
                 struct reading_values *out);

#endif
