/* Messages by number: purity, thresholds, faults, malformed payloads, spread, ledger rows, and the
 * histogram that records their delays. Story: the judge of a run trusts that what is in the ledger
 * is what was sent, and that only the listed faults are outside the thresholds. */
#include "unit.h"

#include "../core/csv.h"
#include "../core/histogram.h"
#include "../core/payload.h"

#define MESSAGES 70000

static struct source source;

static int fresh(void **state)
{
    (void)state;
    source_init(&source, 7, 200, 3, 1000.0, SPREAD_ONE / 100, SPREAD_ONE / 20);
    source.t0_us = INT64_C(1795500600000000);
    return 0;
}

static size_t render(const struct message *message, char out[PAYLOAD_MAX])
{
    struct textbuf text;
    tb_init(&text, out, PAYLOAD_MAX);
    payload_render(message, &text);
    assert_false(text.overflow);
    return text.len;
}

static int outside(const struct reading_values *v)
{
    return (v->temperature_milli >= 50000 || v->temperature_milli <= -50000) +
           (v->humidity_e4 < 150000 || v->humidity_e4 > 1000000) +
           (v->pressure_pa < 87000 || v->pressure_pa > 108500) + (v->battery_milli < 2000);
}

static void thresholds(void **state)
{
    (void)state;
    unsigned fields[5] = {0};
    for (uint64_t i = 0; i < MESSAGES; i++) {
        struct message m;
        source.t0_us += INT64_C(7123456); /* walk through the days */
        source_message(&source, i, &m);
        assert_int_equal(outside(&m.values), m.kind == KIND_FAULT);
        assert_int_equal(m.field != FIELD_NONE, m.kind == KIND_FAULT);
        fields[m.field]++;
        assert_int_equal(m.values.temperature_milli % 5, 0);
        assert_int_equal(m.values.humidity_e4 % 25, 0);
        assert_true(m.values.battery_milli > 0 && m.values.humidity_e4 > 0);
        assert_true(m.values.rssi_dbm < 0);
        assert_in_range(m.values.movement_counter, 0, 254);
        assert_in_range(m.values.measurement_sequence, 0, 65534);
    }
    for (int f = FIELD_TEMPERATURE; f <= FIELD_BATTERY; f++)
        assert_in_range(fields[f], MESSAGES / 80 - 1, MESSAGES / 80 + 1);
}

static void shares(void **state)
{
    (void)state;
    unsigned kinds[KIND_COUNT] = {0};
    for (uint64_t i = 0; i < MESSAGES; i++)
        kinds[source_kind(&source, i)]++;
    for (int k = KIND_NOT_JSON; k < KIND_COUNT; k++)
        assert_in_range(kinds[k], MESSAGES / 700 - 1, MESSAGES / 700 + 1);
    assert_in_range(kinds[KIND_FAULT], MESSAGES / 20 - 1, MESSAGES / 20 + 1);
}

static void extreme_shares(void **state)
{
    (void)state;
    source_init(&source, 1, 10, 1, 10.0, 0, 0);
    for (uint64_t i = 0; i < 1000; i++)
        assert_int_equal(source_kind(&source, i), KIND_OK);
    source_init(&source, 1, 10, 1, 10.0, SPREAD_ONE, 0);
    for (uint64_t i = 0; i < 1000; i++)
        assert_true(source_kind(&source, i) >= KIND_NOT_JSON);
    source_init(&source, 1, 10, 1, 10.0, SPREAD_ONE / 4, SPREAD_ONE / 4 * 3);
    for (uint64_t i = 0; i < 1000; i++)
        assert_true(source_kind(&source, i) != KIND_OK);
}

static void spread_is_one_per_block(void **state)
{
    (void)state;
    struct spread spread = {3 * SPREAD_ONE / 1000, 99};
    uint64_t hits = 0, before;
    for (uint64_t n = 0; n < 100000; n++) {
        bool hit = spread_hit(&spread, n, &before);
        assert_int_equal(before, hits);
        hits += hit;
    }
    assert_in_range(hits, 299, 301);
}

static void same_number_same_bytes(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 2000; i++) {
        struct message a, b;
        char x[PAYLOAD_MAX], y[PAYLOAD_MAX];
        source_message(&source, i, &a);
        source_message(&source, i + 1, &b);
        source_message(&source, i, &b);
        size_t n = render(&a, x);
        assert_int_equal(render(&b, y), n);
        assert_memory_equal(x, y, n);
    }
}

static void golden_payload(void **state)
{
    (void)state;
    struct message m = {.seq = 5, .seed = 7, .time_us = INT64_C(1795500600123456), .kind = KIND_OK,
                        .device = "c6:8d:c6:01:02:03", .gateway = "gw-7-0",
                        .values = {-5, 532525, 101325, {4, -4, 1036}, 2977, 4, 66, 205, -71}};
    char out[PAYLOAD_MAX];
    struct textbuf text = {out, 0, sizeof out, false};
    payload_render(&m, &text);
    assert_text(&text, "{\"device_id\":\"c6:8d:c6:01:02:03\",\"timestamp\":"
                       "\"2026-11-24T06:10:00.123456Z\",\"temperature\":-0.005,"
                       "\"humidity\":53.2525,\"pressure\":101325,\"acceleration_x\":0.004,"
                       "\"acceleration_y\":-0.004,\"acceleration_z\":1.036,"
                       "\"battery_voltage\":2.977,\"tx_power\":4,\"movement_counter\":66,"
                       "\"measurement_sequence\":205,\"rssi\":-71,\"gateway_id\":\"gw-7-0\"}");
    char row[CSV_ROW_MAX];
    tb_init(&text, row, sizeof row);
    csv_sent_row(&text, &m);
    assert_text(&text, "5,gw-7-0,c6:8d:c6:01:02:03,1795500600123456,ok,,-0.005,53.2525,101325,"
                       "0.004,-0.004,1.036,2.977,4,66,205,-71,\n");
    m.kind = KIND_NOT_JSON;
    tb_init(&text, row, sizeof row);
    csv_sent_row(&text, &m);
    assert_text(&text, "5,gw-7-0,c6:8d:c6:01:02:03,1795500600123456,bad:not_json,,,,,,,,,,,,,"
                       "\"not json 7-5\"\n");
}

static void malformed_payloads(void **state)
{
    (void)state;
    static const char *const marks[KIND_COUNT] = {
        [KIND_NOT_JSON] = "not json 7-", [KIND_TRUNCATED] = "\"temperature\"",
        [KIND_WRONG_TYPE] = "\"temperature\":\"warm\"", [KIND_NAN] = "\"humidity\":NaN",
        [KIND_NO_DEVICE] = "\"gateway_id\"", [KIND_BAD_MAC] = "\"device_id\":\"not-a-mac\"",
        [KIND_BAD_TIME] = "\"timestamp\":\"yesterday\"",
    };
    for (uint64_t i = 0; i < 20000; i++) {
        struct message m;
        char out[PAYLOAD_MAX + 1], token[32];
        struct textbuf text = {token, 0, sizeof token - 1, false};
        source_message(&source, i, &m);
        size_t n = render(&m, out);
        out[n] = '\0';
        tb_str(&text, "7-");
        tb_u64(&text, i);
        token[text.len] = '\0';
        if (m.kind < KIND_NOT_JSON) {
            assert_null(strstr(out, "token"));
            continue;
        }
        assert_non_null(strstr(out, token));
        assert_non_null(strstr(out, marks[m.kind]));
        if (m.kind == KIND_TRUNCATED)
            assert_null(strchr(out, '}'));
        if (m.kind == KIND_NO_DEVICE)
            assert_null(strstr(out, "device_id"));
    }
}

static void tags_and_times_are_unique(void **state)
{
    (void)state;
    static uint8_t seen[1 << 21];
    memset(seen, 0, sizeof seen);
    source_init(&source, 99, 100000, 7, 200000.0, 0, 0);
    for (uint32_t tag = 0; tag < 100000; tag++) {
        struct message m;
        unsigned low = 0;
        source_message(&source, tag, &m);
        for (int i = 9; i < DEVICE_LEN; i++)
            if (m.device[i] != ':')
                low = low * 16 + (unsigned)(m.device[i] <= '9' ? m.device[i] - '0' : m.device[i] - 'a' + 10);
        assert_int_equal(seen[low / 8] >> low % 8 & 1, 0);
        seen[low / 8] |= (uint8_t)(1 << low % 8);
    }
    source_init(&source, 99, 1, 1, 200000.0, 0, 0);
    for (uint64_t i = 1; i < 100000; i++)
        assert_true(source_due_us(&source, i) > source_due_us(&source, i - 1));
}

static void sine_is_a_wave(void **state)
{
    (void)state;
    assert_int_equal(value_sine(0), 0);
    assert_int_equal(value_sine(16384), 4096);
    assert_int_equal(value_sine(32768), 0);
    assert_int_equal(value_sine(49152), -4096);
}

static void percentiles(void **state)
{
    (void)state;
    static struct histogram h;
    assert_int_equal(histogram_percentile(&h, 500), 0);
    for (int i = 0; i < 98; i++)
        histogram_add(&h, 150);
    histogram_add(&h, -5);
    histogram_add(&h, INT64_C(20005000));
    assert_int_equal(histogram_percentile(&h, 500), 200);
    assert_int_equal(histogram_percentile(&h, 990), 200);
    assert_int_equal(histogram_percentile(&h, 1000), 20005000);
    assert_int_equal(h.max_us, 20005000);
    histogram_add(&h, INT64_C(5000000000));
    assert_int_equal(histogram_percentile(&h, 1000), INT64_C(5000000000));
}

#define T(f) cmocka_unit_test_setup(f, fresh)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(thresholds), T(shares), T(extreme_shares), T(spread_is_one_per_block),
        T(same_number_same_bytes), T(golden_payload), T(malformed_payloads),
        T(tags_and_times_are_unique), T(sine_is_a_wave), T(percentiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
