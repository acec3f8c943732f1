"""What a chaos run does is a function of its seed, and a run long enough does everything to everybody."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.chaos import run
from rayapp.chaos.plan import (
    CALM_S,
    KINDS,
    QUICK,
    QUICK_PACE,
    Fault,
    Pace,
    Unit,
    draw,
    draw_quick,
    enough_for_all,
    role_of,
    units_of,
)
from rayapp.chaos.run import ChaosOptions, programme, shape_of
from rayapp.config import FleetSettings
from rayapp.errors import ConfigurationError

SEEDS = st.integers(1, 2**31 - 1)
PACE = Pace(every_s=20.0)
ENOUGH_S = next(length for length in range(60, 3_600, 10) if enough_for_all(length, PACE, KINDS))
STALL_S = 30.0
"""The driver replaces an actor without progress for this long."""


def covered(faults: list[Fault]) -> set[Unit]:
    return {fault.unit for fault in faults}


@given(SEEDS)
def test_twenty_minutes_do_every_kind_to_every_role_whatever_the_seed(seed: int) -> None:
    """A fault every 20 s for 20 minutes covers every kind of fault on every role that it exists for."""
    assert covered(draw(seed, 1_200, PACE, list(KINDS))) == units_of(KINDS)


@given(SEEDS)
def test_twenty_minutes_have_a_stop_below_and_one_beyond_the_drivers_patience(seed: int) -> None:
    """One stopped actor goes on by itself, another is replaced while it is stopped."""
    lengths = [fault.seconds for fault in draw(seed, 1_200, PACE, list(KINDS)) if fault.kind == "actor_stop"]
    assert min(lengths) < STALL_S < max(lengths) <= 60


@given(SEEDS)
def test_a_short_run_never_waits_for_a_long_stop(seed: int) -> None:
    """In four minutes no stop moves what follows."""
    faults = draw(seed, 240, PACE, list(KINDS))
    assert all(fault.seconds <= PACE.room_s for fault in faults)
    assert len(faults) >= 10


@given(SEEDS, st.floats(60, 3_000), st.floats(9, 60))
def test_a_fault_begins_only_when_the_one_before_is_over_and_some_calm_has_passed(seed: int, total_s: float, every_s: float) -> None:
    """Recovery is measured per fault, so faults never overlap; and the last leaves time for its own."""
    faults = draw(seed, total_s, Pace(every_s), list(KINDS))
    ends = [fault.at_s + fault.seconds + CALM_S for fault in faults]
    assert all(end <= after.at_s + 0.11 for end, after in zip(ends, faults[1:]))
    assert all(after.at_s - before.at_s >= every_s - 0.11 for before, after in zip(faults, faults[1:]))
    assert not faults or ends[-1] <= total_s + 0.11


@given(SEEDS)
def test_members_of_a_role_take_turns(seed: int) -> None:
    """write/0 and write/1 are killed as often as each other, and so are the brokers."""
    faults = draw(seed, 3_600, PACE, ["actor_kill", "kafka_kill"])
    writers = [fault.target for fault in faults if fault.unit == Unit("actor_kill", "write")]
    assert len(writers) >= 4
    assert all(one != other for one, other in zip(writers, writers[1:]))
    brokers = Counter(fault.target for fault in faults if fault.kind == "kafka_kill")
    assert max(brokers.values()) - min(brokers.values()) <= 1
    assert len(brokers) == 3


@given(SEEDS)
def test_no_kind_comes_twice_before_all_have_come(seed: int) -> None:
    """A run that is broken off has seen as many kinds as it could."""
    faults = draw(seed, 1_200, PACE, list(KINDS))
    assert {fault.kind for fault in faults[: len(KINDS)]} == set(KINDS)


def test_the_same_seed_draws_the_same_faults_and_another_seed_others() -> None:
    """A run can be repeated by its seed."""
    assert draw(7, 1_200, PACE, list(KINDS)) == draw(7, 1_200, PACE, list(KINDS))
    assert draw(7, 1_200, PACE, list(KINDS)) != draw(8, 1_200, PACE, list(KINDS))


@given(SEEDS)
def test_the_quick_run_kills_every_role_and_takes_two_minutes(seed: int) -> None:
    """The run that belongs to the tests does everything it lists, in about two minutes."""
    faults = draw_quick(seed, KINDS)
    assert Counter(fault.kind for fault in faults) == Counter(kind for kind, _ in QUICK)
    assert {fault.unit.role for fault in faults if fault.kind == "actor_kill"} == {"ingest", "consume", "detect", "write"}
    last = faults[-1]
    assert last.at_s + QUICK_PACE.turn_s(KINDS[last.kind], last.seconds) <= 150


@given(SEEDS)
def test_a_length_that_is_enough_for_all_is_enough_for_every_seed(seed: int) -> None:
    """What validity asks for is what the plan delivers: the shortest such length covers everything."""
    assert ENOUGH_S <= 1_200
    assert covered(draw(seed, ENOUGH_S, PACE, list(KINDS))) == units_of(KINDS)


def test_kinds_asked_for_by_name_must_fit_in() -> None:
    """Two minutes cannot have all kinds: said at once when they were named, chosen from when they were not."""
    options = {"folder": None, "seed": 1, "minutes": 2.0}
    with pytest.raises(ConfigurationError, match="run longer, or name fewer"):
        programme(ChaosOptions(**options, kinds=tuple(KINDS)), 1, disks=True)
    chosen = programme(ChaosOptions(**options), 1, disks=True)
    assert 3 <= len(chosen.faults) < len(KINDS)
    assert chosen.required == covered(chosen.faults)


def test_a_long_run_requires_every_unit_and_a_machine_without_disks_says_what_it_lacks() -> None:
    """What the machine cannot do is not required, and named."""
    plan = programme(ChaosOptions(folder=None, minutes=20.0), 3, disks=False)
    assert plan.required == units_of(set(KINDS) - {"disk_full"})
    assert plan.unavailable == ["disk_full: only root may mount a small disk"]
    assert programme(ChaosOptions(folder=None, minutes=20.0), 3, disks=True).required == units_of(KINDS)


def test_a_plan_that_leaves_a_role_out_makes_a_long_run_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What must occur does not follow from the plan where the time is enough for everything."""
    writers_spared = [fault for fault in draw(3, 1_200, PACE, list(KINDS)) if fault.unit != Unit("actor_kill", "write")]
    monkeypatch.setattr(run, "draw", lambda *_: writers_spared)
    assert Unit("actor_kill", "write") in programme(ChaosOptions(folder=None, minutes=20.0), 3, disks=True).required


def test_servers_have_the_shape_that_the_faults_need() -> None:
    """A second node where one is killed; a small disk where one is filled, large enough for what the traffic leaves."""
    everything = shape_of(programme(ChaosOptions(folder=None, minutes=20.0), 3, disks=True), 1_000.0)
    assert (everything.ray_workers, everything.brokers, everything.kafka_proxied) == (1, 3, True)
    assert everything.ray_num_cpus / FleetSettings().cpus_per_actor < 6, "one node must not have room for the whole fleet"
    assert everything.postgres_disk_mb > 1_200 * 1_000 * 9 * 800 / 2**20
    quick = shape_of(programme(ChaosOptions(folder=None, quick=True), 3, disks=False), 500.0)
    assert (quick.ray_workers, quick.postgres_disk_mb) == (0, 0)


@pytest.mark.parametrize(
    ("kinds", "every_s", "said"),
    [(["actor_kil"], 20.0, "actor_kil"), ([], 20.0, "none"), (["cut"], 8.5, "at least 9")],
)
def test_a_plan_that_cannot_be_is_refused_with_what_to_change(kinds: list[str], every_s: float, said: str) -> None:
    """An unknown kind, no kind, faults too close."""
    with pytest.raises(ValueError, match=said):
        draw(1, 600, Pace(every_s), kinds)


def test_roles_are_read_off_targets() -> None:
    """Slots, brokers and links all have one."""
    assert [role_of(target) for target in ("write/1", "kafka-2", "database", "driver")] == ["write", "kafka", "database", "driver"]
