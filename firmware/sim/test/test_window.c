/* The publish window on a live connection: limits, acknowledgements in any order, refusals,
 * packet ids, a full ring. Story: window_fake.h plays clock and broker. */
#include "window_fake.h"

static void nothing_before_connected(void **state)
{
    (void)state;
    push(0, 2);
    assert_int_equal(pw_pump(&w.pw), 0);
    pw_connected(&w.pw, 65535);
    assert_int_equal(pw_pump(&w.pw), 3);
    SENT(0, 0, 1, 2);
}

static void window_and_receive_maximum(void **state)
{
    (void)state;
    push(0, 9);
    pw_connected(&w.pw, 2);
    pw_pump(&w.pw);
    SENT(0, 0, 1);
    assert_true(pw_blocked(&w.pw));
    ack(0, 0);
    pw_pump(&w.pw);
    SENT(0, 0, 1, 2);
    pw_lost(&w.pw);
    w.count = 0;
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    SENT(0, 0, 1, 2, 3); /* the window of four, the acknowledged one included */
}

static void out_of_order_acks(void **state)
{
    (void)state;
    push(0, 3);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(2, 0);
    ack(0, 0);
    ack(3, 0);
    ack(1, 0);
    assert_int_equal(w.acked_count, 4);
    assert_int_equal(w.acked[0], 2);
    assert_int_equal(w.acked[3], 1);
    assert_int_equal(pw_outstanding(&w.pw), 0);
    w.now += HOLD_US;
    pw_alive(&w.pw);
    assert_int_equal(w.pw.tail, 4);
}

static void no_subscriber_backs_off(void **state)
{
    (void)state;
    push(0, 5);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(0, MQTT_REASON_NO_SUBSCRIBER);
    ack(1, 0x97);
    assert_int_equal(w.acked_count, 0);
    assert_int_equal(pw_pump(&w.pw), 0); /* both still fill the window */
    w.now += RETRY_US - 1;
    assert_int_equal(pw_pump(&w.pw), 0);
    w.now += 1;
    assert_int_equal(pw_pump(&w.pw), 2);
    SENT(4, 0, 1);
    assert_int_equal(w.sent[0].len, w.sent[4].len);
    assert_memory_equal(w.sent[0].bytes, w.sent[4].bytes, w.sent[4].len);
    assert_int_equal(w.pw.count.no_subscriber, 1);
    assert_int_equal(w.pw.count.refused, 1);
    ack(4, 0);
    ack(5, 0);
    assert_int_equal(w.acked_count, 2);
    pw_pump(&w.pw);
    SENT(6, 4, 5);
}

static void packet_ids_are_reused_only_when_free(void **state)
{
    (void)state;
    uint16_t stuck;
    push(0, 1);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    stuck = w.sent[0].packet_id;
    ack(1, 0);
    for (uint64_t id = 2; id < 60; id++) {
        w.now += HOLD_US; /* held ones leave the ring as soon as their elder lets them */
        if (!pw_push(&w.pw, id))
            break;
        pw_pump(&w.pw);
        assert_int_equal(w.sent[w.count - 1].id, id);
        assert_int_not_equal(w.sent[w.count - 1].packet_id, stuck);
        assert_in_range(w.sent[w.count - 1].packet_id, 1, pw_packet_ids(WINDOW));
        ack(w.count - 1, 0);
    }
    assert_int_equal(w.count, CAPACITY); /* then the ring is full behind message 0 */
    ack(0, 0);
    w.now += HOLD_US;
    pw_alive(&w.pw);
    for (uint64_t id = 100; id < 200; id++) {
        push(id, id);
        pw_pump(&w.pw);
        ack(w.count - 1, 0);
        w.now += HOLD_US;
        pw_alive(&w.pw);
    }
    assert_int_equal(w.pw.count.acked, CAPACITY + 100);
}

static void stray_pubacks_change_nothing(void **state)
{
    (void)state;
    push(0, 0);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    pw_puback(&w.pw, 65535, 0);
    pw_puback(&w.pw, (uint16_t)(w.sent[0].packet_id + 1), 0);
    ack(0, 0);
    ack(0, 0);
    assert_int_equal(w.pw.count.stray, 3);
    assert_int_equal(w.pw.count.acked, 1);
    pw_lost(&w.pw);
    pw_connected(&w.pw, 65535);
    ack(0, 0); /* an id of the old connection */
    assert_int_equal(w.pw.count.stray, 4);
}

static void transport_without_room(void **state)
{
    (void)state;
    push(0, 3);
    pw_connected(&w.pw, 65535);
    w.room = 1;
    assert_int_equal(pw_pump(&w.pw), 1);
    assert_int_equal(pw_outstanding(&w.pw), 4);
    w.room = SENDS;
    assert_int_equal(pw_pump(&w.pw), 3);
    SENT(0, 0, 1, 2, 3);
}

static void full_ring_refuses(void **state)
{
    (void)state;
    push(0, CAPACITY - 1);
    assert_false(pw_push(&w.pw, 99));
    pw_connected(&w.pw, 65535);
    for (uint32_t i = 0; i < CAPACITY; i++) {
        pw_pump(&w.pw);
        ack(i, 0);
    }
    w.now += HOLD_US;
    pw_alive(&w.pw);
    assert_true(pw_push(&w.pw, 99));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(nothing_before_connected),
        T(window_and_receive_maximum),
        T(out_of_order_acks),
        T(no_subscriber_backs_off),
        T(packet_ids_are_reused_only_when_free),
        T(stray_pubacks_change_nothing),
        T(transport_without_room),
        T(full_ring_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
