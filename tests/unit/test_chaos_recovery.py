"""How long readings came late after a fault, and when that is only a lower bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayapp.chaos.recovery import Done, baseline_ms, p99_by_second, recoveries, sparkline, worst_by_group

BEGAN_S = 1_000.0
TRAFFIC_S = (BEGAN_S, BEGAN_S + 60)
GOOD_MS, LATE_MS = 300.0, 2_500.0


def seconds(late: range | list[int] = range(0), missing: range | list[int] = range(0)) -> dict[int, float]:
    """Return 60 seconds of traffic, counted from its beginning, some late and some of which nothing was stored."""
    return {
        int(BEGAN_S) + s: LATE_MS if s in late else GOOD_MS
        for s in range(60) if s not in missing
    }  # fmt: skip


def fault(at_s: float, lasted_s: float = 0.0, kind: str = "actor_kill", group: str = "actor") -> Done:
    return Done(kind, "write/0", group, BEGAN_S + at_s, BEGAN_S + at_s + lasted_s, hit="yes")


def test_recovery_counts_from_the_end_of_the_cause_to_the_end_of_the_last_late_second() -> None:
    """Late from 20 to 24, the server away until 22: two seconds; four since it went."""
    (cost,) = recoveries(seconds(range(20, 24)), [fault(20.0, 2.0, "kafka_kill", "kafka")], TRAFFIC_S)
    assert (cost.seconds, cost.since_end_s, cost.since_begin_s, cost.recovered) == (2.0, 2.0, 4.0, True)
    assert cost.worst_ms == LATE_MS


def test_a_killed_drivers_recovery_counts_from_the_kill() -> None:
    """Submitting the new job is part of the cure: 7 s, though only 3 since it was submitted."""
    driver = fault(20.0, 4.0, "driver_kill", "driver")
    (cost,) = recoveries(seconds(range(20, 27)), [driver], TRAFFIC_S)
    assert (cost.seconds, cost.since_end_s) == (7.0, 3.0)
    assert worst_by_group([driver], [cost]) == {"driver": 7.0, "driver_since_submitted": 3.0}


def test_a_fault_that_made_nothing_late_costs_nothing() -> None:
    """Zero seconds, recovered."""
    (cost,) = recoveries(seconds(), [fault(20.0)], TRAFFIC_S)
    assert (cost.seconds, cost.recovered, cost.worst_ms) == (0.0, True, GOOD_MS)


def test_seconds_of_which_nothing_was_stored_are_late() -> None:
    """A pipeline that stores nothing has not recovered, though no row of it was late."""
    (cost,) = recoveries(seconds(missing=range(20, 25)), [fault(20.0)], TRAFFIC_S)
    assert (cost.seconds, cost.recovered) == (5.0, True)
    assert math.isinf(cost.worst_ms)


def test_one_good_second_between_late_ones_is_no_recovery() -> None:
    """Late, good for a second, late again: over after the last."""
    (cost,) = recoveries(seconds([20, 21, 23, 24]), [fault(20.0)], TRAFFIC_S)
    assert cost.seconds == 5.0


def test_trouble_that_lasts_until_the_next_fault_is_a_lower_bound() -> None:
    """The first fault's recovery is not seen: at least until shortly before the second; the second's is its own."""
    first, second = recoveries(seconds(range(20, 42)), [fault(20.0), fault(32.0)], TRAFFIC_S)
    assert (first.recovered, first.seconds) == (False, 11.0)
    assert (second.recovered, second.seconds, second.late_before) == (True, 10.0, True)


def test_a_single_good_second_before_the_next_fault_is_not_enough() -> None:
    """Two good seconds in a row are asked for."""
    late_until_29, late_until_28 = (recoveries(seconds(range(20, end)), [fault(20.0), fault(32.0)], TRAFFIC_S)[0] for end in (30, 29))
    assert (late_until_29.recovered, late_until_28.recovered) == (False, True)
    assert (late_until_29.seconds, late_until_28.seconds) == (11.0, 9.0)


def test_a_server_that_serves_again_only_before_the_next_fault_leaves_an_open_end() -> None:
    """Its cause lasts up to the next fault, so nothing is known but that it was late."""
    cost, _ = recoveries(seconds(range(20, 33)), [fault(20.0, 11.5, "kafka_kill", "kafka"), fault(32.0)], TRAFFIC_S)
    assert not cost.recovered
    assert cost.since_begin_s >= 11.0


def test_trouble_up_to_the_end_of_the_traffic_is_an_open_end() -> None:
    """The last fault is judged by whole seconds of traffic."""
    (cost,) = recoveries(seconds(range(50, 60)), [fault(50.0)], TRAFFIC_S)
    assert (cost.recovered, cost.seconds) == (False, 10.0)


def test_what_was_late_before_the_fault_is_not_its_doing() -> None:
    """The start of a run is slow: said as the baseline, and the first fault has no part in it."""
    slow_start = seconds(range(8))
    (cost,) = recoveries(slow_start, [fault(12.0)], TRAFFIC_S)
    assert (cost.seconds, cost.late_before) == (0.0, False)
    assert baseline_ms(slow_start, TRAFFIC_S, BEGAN_S + 12) == GOOD_MS
    assert baseline_ms(seconds(range(12)), TRAFFIC_S, BEGAN_S + 12) == LATE_MS
    assert math.isinf(baseline_ms({}, TRAFFIC_S, BEGAN_S + 12))


def test_readings_due_shortly_before_the_blow_can_be_its_victims() -> None:
    """What was due half a second before the kill and came late counts as late."""
    (cost,) = recoveries(seconds([19]), [fault(20.2)], TRAFFIC_S)
    assert cost.worst_ms == LATE_MS


def test_p99_is_taken_of_the_readings_due_in_a_second_and_of_known_commit_times_alone() -> None:
    """99 quick ones and two slow ones: late; a row without its commit time says nothing."""
    due_us = np.array([5_000_000] * 101 + [6_500_000, 7_000_000])
    latency = np.array([10.0] * 99 + [4_000.0] * 2 + [20.0, np.nan])
    found = p99_by_second(due_us, latency)
    assert sorted(found) == [5, 6]
    assert found[5] > 1_000
    assert found[6] == pytest.approx(20.0)
    assert p99_by_second(np.empty(0, np.int64), np.empty(0)) == {}


def test_the_line_of_blocks_shows_seconds_without_rows() -> None:
    """A gap is not a good second."""
    line = sparkline(seconds([3], missing=[5]), TRAFFIC_S)
    assert len(line) == 60
    assert (line[2], line[3], line[5]) == ("▁", "▆", "!")
