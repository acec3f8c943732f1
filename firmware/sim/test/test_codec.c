/* MQTT framing: variable byte integers, encoders byte for byte, decoder on whole, cut and broken
 * packets. Story: no network, so what a server may send is spelled out as bytes. */
#include "unit.h"

#include "../core/mqtt_codec.h"

static void varint_round_trip(void **state)
{
    (void)state;
    static const uint32_t edges[] = {0, 1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455};
    static const size_t lengths[] = {1, 1, 1, 2, 2, 3, 3, 4, 4};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        uint8_t bytes[4];
        uint32_t back = 0;
        assert_int_equal(mqtt_varint_put(bytes, edges[i]), lengths[i]);
        assert_int_equal(mqtt_varint_get(bytes, lengths[i], &back), lengths[i]);
        assert_int_equal(back, edges[i]);
        for (size_t cut = 0; cut < lengths[i]; cut++)
            assert_int_equal(mqtt_varint_get(bytes, cut, &back), 0);
    }
}

static void varint_malformed(void **state)
{
    (void)state;
    uint32_t value;
    assert_int_equal(mqtt_varint_get((const uint8_t *)"\xff\xff\xff\xff\x01", 5, &value), -1);
    assert_int_equal(mqtt_varint_get((const uint8_t *)"\x80\x00", 2, &value), -1);
}

static void publish_bytes(void **state)
{
    (void)state;
    uint8_t out[64];
    static const uint8_t expected[] = {0x32, 11, 0, 3, 'a', '/', 'b', 0x12, 0x34, 0, 'x', 'y', 'z'};
    size_t n = mqtt_publish(out, sizeof out, "a/b", 3, 0x1234, "xyz", 3);
    assert_int_equal(n, sizeof expected);
    assert_memory_equal(out, expected, n);
    assert_int_equal(mqtt_publish(out, 12, "a/b", 3, 1, "xyz", 3), 0);
}

static void publish_two_byte_length(void **state)
{
    (void)state;
    uint8_t out[512];
    char payload[300];
    memset(payload, 'p', sizeof payload);
    size_t n = mqtt_publish(out, sizeof out, "t", 1, 7, payload, sizeof payload);
    assert_int_equal(n, 3 + 3 + 2 + 1 + 300);
    assert_int_equal(out[1] & 0x7f, 306 % 128);
    assert_int_equal(out[2], 306 / 128);
}

static void connect_bytes(void **state)
{
    (void)state;
    uint8_t out[64];
    static const uint8_t expected[] = {0x10, 19, 0, 4, 'M', 'Q', 'T', 'T', 5, 0xc2, 0, 30, 0,
                                       0, 1, 'c', 0, 1, 'u', 0, 0};
    size_t n = mqtt_connect(out, sizeof out, "c", "u", "", 30);
    assert_int_equal(n, sizeof expected);
    assert_memory_equal(out, expected, n);
    assert_int_equal(mqtt_connect(out, 10, "c", "u", "", 30), 0);
}

static void decode_ok(const char *bytes, size_t len, struct mqtt_packet *packet)
{
    for (size_t cut = 0; cut < len; cut++)
        assert_int_equal(mqtt_decode((const uint8_t *)bytes, cut, packet), 0);
    assert_int_equal(mqtt_decode((const uint8_t *)bytes, len, packet), len);
}

static void connack_properties(void **state)
{
    (void)state;
    struct mqtt_packet packet;
    /* Receive Maximum 20, Maximum QoS 1, a user property, Server Keep Alive 60 */
    decode_ok("\x20\x13\x00\x00\x10\x21\x00\x14\x24\x01\x26\x00\x01k\x00\x02vv\x13\x00\x3c", 21,
              &packet);
    assert_int_equal(packet.type, MQTT_CONNACK);
    assert_int_equal(packet.reason, 0);
    assert_int_equal(packet.receive_maximum, 20);
    assert_int_equal(packet.maximum_qos, 1);
    assert_int_equal(packet.server_keep_alive, 60);
    decode_ok("\x20\x03\x00\x87\x00", 5, &packet);
    assert_int_equal(packet.reason, 0x87);
    assert_int_equal(packet.receive_maximum, 65535);
}

static void puback_reasons(void **state)
{
    (void)state;
    struct mqtt_packet packet;
    decode_ok("\x40\x02\x01\x02", 4, &packet);
    assert_int_equal(packet.packet_id, 0x102);
    assert_int_equal(packet.reason, 0);
    decode_ok("\x40\x03\x00\x05\x10", 5, &packet);
    assert_int_equal(packet.reason, MQTT_REASON_NO_SUBSCRIBER);
    decode_ok("\x40\x04\x00\x05\x97\x00", 6, &packet);
    assert_int_equal(packet.reason, 0x97);
}

static void broken_packets(void **state)
{
    (void)state;
    struct mqtt_packet packet;
    static const struct { const char *bytes; size_t len; } broken[] = {
        {"\x30\x02\x00\x00", 4},                      /* PUBLISH to a publisher */
        {"\x41\x02\x00\x01", 4},                      /* reserved flags */
        {"\x40\x02\x00\x00", 4},                      /* packet id 0 */
        {"\x40\x01\x00", 3},                          /* too short */
        {"\x20\x03\x00\x00\x05", 5},                  /* properties longer than the packet */
        {"\x20\x05\x00\x00\x02\x7f\x00", 7},          /* unknown property */
        {"\x20\x06\x00\x00\x03\x21\x00\x00", 8},      /* Receive Maximum 0 */
        {"\x20\x05\x00\x00\x02\x26\x00", 7},          /* cut user property */
        {"\xe0\xff\xff\xff\x7f", 5},                  /* absurd length: not waited for */
        {"\xd0\x01\x00", 3},                          /* PINGRESP with a body */
    };
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_int_equal(mqtt_decode((const uint8_t *)broken[i].bytes, broken[i].len, &packet), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(varint_round_trip), cmocka_unit_test(varint_malformed),
        cmocka_unit_test(publish_bytes), cmocka_unit_test(publish_two_byte_length),
        cmocka_unit_test(connect_bytes), cmocka_unit_test(connack_properties),
        cmocka_unit_test(puback_reasons), cmocka_unit_test(broken_packets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
