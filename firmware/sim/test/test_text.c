/* Text: the buffer, the JSON writer, ISO time, CSV quoting. Story: everything the simulator prints
 * goes through these; a wrong digit here would make sent ledger and payload both wrong together. */
#include "unit.h"

#include "../core/csv.h"
#include "../core/iso_time.h"
#include "../core/json_writer.h"

static char memory[2048];
static struct textbuf text;

static int fresh(void **state)
{
    (void)state;
    tb_init(&text, memory, sizeof memory);
    return 0;
}

static void fixed_point(void **state)
{
    (void)state;
    static const struct { int64_t value; unsigned decimals; const char *text; } cases[] = {
        {0, 3, "0.000"}, {5, 3, "0.005"}, {-5, 3, "-0.005"}, {24305, 3, "24.305"},
        {-24305, 3, "-24.305"}, {1000, 3, "1.000"}, {325025, 4, "32.5025"}, {101325, 0, "101325"},
        {-1, 0, "-1"}, {INT64_MIN, 0, "-9223372036854775808"},
        {INT64_MAX, 9, "9223372036.854775807"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tb_init(&text, memory, sizeof memory);
        tb_fixed(&text, cases[i].value, cases[i].decimals);
        assert_text(&text, cases[i].text);
    }
}

static void integers(void **state)
{
    (void)state;
    tb_u64(&text, UINT64_MAX);
    tb_chr(&text, ' ');
    tb_i64(&text, INT64_MIN);
    assert_text(&text, "18446744073709551615 -9223372036854775808");
}

static void overflow_is_bounded(void **state)
{
    (void)state;
    tb_init(&text, memory, 5);
    tb_str(&text, "abc");
    assert_false(text.overflow);
    tb_str(&text, "defg");
    assert_true(text.overflow);
    assert_text(&text, "abcde");
    tb_chr(&text, 'x');
    tb_u64(&text, 12);
    assert_text(&text, "abcde");
}

static void json_object(void **state)
{
    (void)state;
    struct json_writer jw;
    jw_begin(&jw, &text);
    jw_string(&jw, "s", "a\"b\\c\n\x01\xc3\xa4");
    jw_int(&jw, "i", -7);
    jw_uint(&jw, "u", 7);
    jw_fixed(&jw, "f", -1250, 3);
    jw_raw(&jw, "r", "NaN");
    jw_string(&jw, "e", "");
    jw_end(&jw);
    assert_text(&text, "{\"s\":\"a\\\"b\\\\c\\u000a\\u0001\xc3\xa4\",\"i\":-7,\"u\":7,\"f\":-1.250,"
                       "\"r\":NaN,\"e\":\"\"}");
}

static void json_empty_object(void **state)
{
    (void)state;
    struct json_writer jw;
    jw_begin(&jw, &text);
    jw_end(&jw);
    assert_text(&text, "{}");
}

static void iso_times(void **state)
{
    (void)state;
    static const struct { int64_t us; const char *text; } cases[] = {
        {0, "1970-01-01T00:00:00.000000Z"},
        {INT64_C(951782399999999), "2000-02-28T23:59:59.999999Z"},
        {INT64_C(951782400000000), "2000-02-29T00:00:00.000000Z"},
        {INT64_C(1709164800000001), "2024-02-29T00:00:00.000001Z"},
        {INT64_C(1795500600123456), "2026-11-24T06:10:00.123456Z"},
        {INT64_C(4107542399000000), "2100-02-28T23:59:59.000000Z"},
        {INT64_C(4107542400000000), "2100-03-01T00:00:00.000000Z"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[ISO_TIME_LEN + 1];
        iso_time(cases[i].us, out);
        assert_string_equal(out, cases[i].text);
    }
}

static void csv_quoting(void **state)
{
    (void)state;
    csv_quote(&text, "", 0);
    csv_quote(&text, "a,b", 3);
    csv_quote(&text, "\"", 1);
    csv_quote(&text, "{\"k\":\"v\"}\n", 10);
    assert_text(&text, "\"\"\"a,b\"\"\"\"\"\"{\"\"k\"\":\"\"v\"\"}\n\"");
}

static void csv_acked(void **state)
{
    (void)state;
    csv_acked_row(&text, 12, INT64_C(1795500600123456), 3);
    assert_text(&text, "12,1795500600123456,3\n");
}

#define T(f) cmocka_unit_test_setup(f, fresh)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(fixed_point), T(integers), T(overflow_is_bounded), T(json_object),
        T(json_empty_object), T(iso_times), T(csv_quoting), T(csv_acked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
