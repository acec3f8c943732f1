/* The replay ring over lost connections: what is sent again, what is not, and that in the end
 * everything settles. Story: window_fake.h plays clock and broker. */
#include "window_fake.h"

static void lost_puback_is_sent_again(void **state)
{
    (void)state;
    push(0, 1);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    w.now += HOLD_US * 3; /* no timer resends on a live connection: MQTT 5 forbids it */
    assert_int_equal(pw_pump(&w.pw), 0);
    pw_lost(&w.pw);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    SENT(2, 0, 1);
    assert_int_equal(w.pw.count.resent, 2);
    assert_int_equal(w.pw.count.replayed, 0);
    ack(2, 0);
    ack(3, 0);
    assert_int_equal(w.pw.count.acked, 2);
}

static void reconnect_replays_byte_for_byte(void **state)
{
    (void)state;
    push(0, 3);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    for (uint32_t i = 0; i < 4; i++)
        ack(i, i == 2 ? MQTT_REASON_NO_SUBSCRIBER : 0);
    w.now += HOLD_US / 2;
    pw_lost(&w.pw);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    SENT(4, 0, 1, 2, 3);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(w.sent[i].len, w.sent[i + 4].len);
        assert_memory_equal(w.sent[i].bytes, w.sent[i + 4].bytes, w.sent[i].len);
    }
    assert_int_equal(w.pw.count.replayed, 3);
    assert_int_equal(w.pw.count.resent, 1);
    for (uint32_t i = 4; i < 8; i++)
        ack(i, 0);
    assert_int_equal(w.acked_count, 4); /* told once each */
    assert_int_equal(pw_outstanding(&w.pw), 0);
}

static void replay_refused_is_tried_again(void **state)
{
    (void)state;
    push(0, 0);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(0, 0);
    pw_lost(&w.pw);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(1, MQTT_REASON_NO_SUBSCRIBER); /* the restarted broker has not its subscribers yet */
    assert_int_equal(pw_outstanding(&w.pw), 1);
    w.now += RETRY_US;
    pw_pump(&w.pw);
    ack(2, 0);
    assert_int_equal(pw_outstanding(&w.pw), 0);
    assert_int_equal(w.pw.count.acked, 1);
    assert_int_equal(w.pw.count.replayed, 2);
}

static void held_time_stands_still_in_an_outage(void **state)
{
    (void)state;
    push(0, 1);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(0, 0);
    w.now += HOLD_US; /* 0 was acknowledged long before the last sign of life, 1 just then */
    ack(1, 0);
    pw_alive(&w.pw);
    w.now += HOLD_US * 100;
    pw_lost(&w.pw);
    w.now += HOLD_US * 100;
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    SENT(2, 1);
}

static void second_loss_replays_the_replay(void **state)
{
    (void)state;
    push(0, 0);
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    ack(0, 0);
    pw_lost(&w.pw);
    w.now += HOLD_US * 5;
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw); /* in flight, never acknowledged by the second broker */
    pw_lost(&w.pw);
    w.now += HOLD_US * 5;
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    SENT(0, 0, 0, 0);
    ack(2, 0);
    w.now += HOLD_US / 2;
    pw_alive(&w.pw);
    pw_lost(&w.pw); /* held anew since its last acknowledgement */
    pw_connected(&w.pw, 65535);
    pw_pump(&w.pw);
    assert_int_equal(w.count, 4);
}

/* Random faults against the promise: all acknowledged, each told once, nothing left behind. */
static void random_faults_settle(void **state)
{
    (void)state;
    struct rng rng = {42};
    uint64_t next = 0;
    /* Losses must be rarer than the holding time, or replays never end: each one starts it anew. */
    w.pw.hold_us = 1000000;
    for (uint32_t step = 0; next < 3000 || pw_outstanding(&w.pw) > 0; step++) {
        bool calm = next >= 3000;
        assert_true(step < 200000);
        w.now += rng_below(&rng, 400000);
        w.count = 0;
        w.acked_count = 0;
        if (!calm && pw_push(&w.pw, next))
            next++;
        if (!w.pw.connected) {
            pw_connected(&w.pw, (uint16_t)(1 + rng_below(&rng, 6)));
        } else if (!calm && rng_below(&rng, 20) == 0) {
            pw_lost(&w.pw);
            continue;
        }
        w.room = rng_below(&rng, 6);
        pw_pump(&w.pw);
        assert_true(w.pw.inflight + w.pw.retry_len <= WINDOW);
        for (uint16_t id = 1; id <= pw_packet_ids(WINDOW); id++)
            if (w.ids[id] != 0 && rng_below(&rng, 3) != 0) {
                pw_alive(&w.pw);
                pw_puback(&w.pw, id, rng_below(&rng, 5) == 0 ? 0x10 : 0);
            }
    }
    assert_int_equal(w.pw.count.acked, 3000);
    assert_int_equal(w.pw.count.stray, 0);
    assert_true(w.pw.count.replayed > 0 && w.pw.count.resent > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(lost_puback_is_sent_again),
        T(reconnect_replays_byte_for_byte),
        T(replay_refused_is_tried_again),
        T(held_time_stands_still_in_an_outage),
        T(second_loss_replays_the_replay),
        T(random_faults_settle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
