"""plan(): which slot is started, drained or killed, and why; pure, so time is just a number here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayapp.model import Action, Desired, Drain, Kill, Role, Slot, SlotKey, SlotState, Start
from rayapp.plan.slots import HEALTHY_AFTER_S, ended, plan, stopped

W, D, C, I = (SlotKey(role, 0) for role in (Role.WRITE, Role.DETECT, Role.CONSUME, Role.INGEST))  # noqa: E741
NOW = 1_000.0
ALIVE = (SlotState.STARTING, SlotState.RUNNING, SlotState.BLOCKED, SlotState.DRAINING)
Slots = dict[SlotKey, Slot]


def desired(*, stopping: bool = False) -> Desired:
    return Desired(stopping, start_timeout_s=60.0, stall_timeout_s=30.0, drain_timeout_s=45.0)


def fleet(state: SlotState = SlotState.RUNNING, **changes: Slot) -> Slots:
    """Return one slot a role, all fresh and in one state; a change names a role's slot."""
    slots = {key: Slot(key, state, incarnation=1, since_s=NOW, progress=5, progress_s=NOW) for key in (I, C, D, W)}
    slots[C] = replace(slots[C], needs=(slots[D].name, slots[W].name))
    return slots | {slot.key: slot for slot in changes.values()}


def acted(actions: list[Action]) -> list[tuple[type[Action], SlotKey]]:
    return [(type(action), action.key) for action in actions]


def test_healthy_fleet_is_left_alone() -> None:
    """Nothing is done where everything runs."""
    assert plan(desired(), fleet(), NOW + 1) == []


def test_roles_start_from_the_end_of_the_data() -> None:
    """Played forward from nothing, write and detect start before consume, and consume before ingest."""
    slots = {key: Slot(key) for key in (I, C, D, W)}
    order: list[list[SlotKey]] = []
    while any(slot.state is SlotState.PENDING for slot in slots.values()):
        actions = plan(desired(), slots, NOW)
        assert actions
        assert {Start} == {type(action) for action in actions}
        order.append([action.key for action in actions])
        slots |= {a.key: replace(slots[a.key], state=SlotState.RUNNING, incarnation=1, progress_s=NOW, since_s=NOW) for a in actions}

    assert order == [[W, D], [C], [I]]


@pytest.mark.parametrize("missing", [W, D])
def test_consume_waits_for_what_it_hands_to(missing: SlotKey) -> None:
    """While a writer or a detector is not there, consume is not started."""
    slots = fleet() | {C: Slot(C, incarnation=3), missing: Slot(missing, not_before_s=NOW + 9)}

    assert plan(desired(), slots, NOW) == []


def test_ingest_comes_back_without_consume() -> None:
    """Once it has run, ingest starts again even while consume is away: Kafka buffers."""
    slots = fleet() | {C: Slot(C, not_before_s=NOW + 9), I: Slot(I, incarnation=1)}

    assert [(Start, I)] == acted(plan(desired(), slots, NOW))
    assert plan(desired(), slots | {I: Slot(I)}, NOW) == []


def test_backoff_is_kept() -> None:
    """A pending slot is not started before its time, and is from then on, with the reason of its last end."""
    slots = {W: Slot(W, not_before_s=NOW + 5, last_end="OSError: disk")}

    assert plan(desired(), slots, NOW + 4.9) == []
    assert [Start(W, "OSError: disk")] == plan(desired(), slots, NOW + 5)


def test_start_that_takes_too_long_is_killed() -> None:
    """STARTING has a limit of its own."""
    slots = {W: Slot(W, SlotState.STARTING, 1, since_s=NOW)}

    assert plan(desired(), slots, NOW + 60) == []
    assert [Kill(W, "did not come up within 60 s")] == plan(desired(), slots, NOW + 60.1)


@pytest.mark.parametrize("state", [SlotState.RUNNING, SlotState.BLOCKED])
def test_stalled_actor_is_killed(state: SlotState) -> None:
    """No progress stamp for the stall time: killed; an actor that waits for a server goes on stamping and is left alone."""
    slot = Slot(D, state, 1, progress_s=NOW)

    assert plan(desired(), {D: slot}, NOW + 30) == []
    assert [Kill(D, "no progress for 31 s")] == plan(desired(), {D: slot}, NOW + 31)
    assert plan(desired(), {D: replace(slot, progress_s=NOW + 31)}, NOW + 31) == []


@pytest.mark.parametrize("gone", [W, D])
@pytest.mark.parametrize("state", ALIVE)
def test_consume_is_replaced_when_what_it_hands_to_is_gone(gone: SlotKey, state: SlotState) -> None:
    """A writer or detector that ended, or was replaced under a new name, takes its consume actor with it."""
    slots = fleet()
    consume = replace(slots[C], state=state)
    for other in (replace(slots[gone], state=SlotState.PENDING, not_before_s=NOW + 99), replace(slots[gone], incarnation=2)):
        (action,) = plan(desired(), slots | {C: consume, gone: other}, NOW)

        assert Kill(C, f"hands batches to {slots[gone].name}, which is gone") == action


def test_roles_drain_one_after_the_other_last_first() -> None:
    """Stopping drains ingest, then consume, then detect, then write, each only when the one before is gone."""
    slots = fleet()
    order = []
    while not stopped(slots):
        actions = plan(desired(stopping=True), slots, NOW)
        assert {Drain} == {type(action) for action in actions}
        order.append([action.key for action in actions])
        slots |= {a.key: slots[a.key].into(SlotState.DRAINING, NOW) for a in actions}
        assert plan(desired(stopping=True), slots, NOW + 45) == []
        slots |= {a.key: slots[a.key].into(SlotState.STOPPED, NOW) for a in actions}

    assert order == [[I], [C], [D], [W]]


def test_drain_that_takes_too_long_is_killed() -> None:
    """A drain has a limit; killing loses nothing."""
    slots = fleet() | {I: Slot(I, SlotState.DRAINING, 1, since_s=NOW)}

    assert [Kill(I, "did not drain within 45 s")] == plan(desired(stopping=True), slots, NOW + 45.1)


def test_nothing_starts_while_stopping() -> None:
    """A slot that died while the pipeline stops stays down."""
    slots = {key: Slot(key) for key in (I, C, D, W)}

    assert plan(desired(stopping=True), slots, NOW) == []
    assert stopped(slots)


def after(slot: Slot, *, stopping: bool = False, now: float = NOW) -> Slot:
    return ended(slot, "why", now, stopping=stopping, backoff_s=0.5, backoff_max_s=30.0)


def test_first_failure_is_mended_at_once_and_further_ones_wait_longer() -> None:
    """Waits are 0, then double from the base to the maximum."""
    slot, waits = Slot(W, SlotState.RUNNING, 1, since_s=NOW), []
    for _ in range(9):
        slot = after(slot)
        waits.append(slot.not_before_s - NOW)

    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert (slot.state, slot.last_end, slot.failures) == (SlotState.PENDING, "why", 9)


def test_an_outage_of_days_keeps_the_longest_wait() -> None:
    """After thousands of failures the wait is still the maximum, and the arithmetic does not overflow."""
    slot = after(Slot(W, SlotState.RUNNING, 1, since_s=NOW, failures=100_000))

    assert slot.not_before_s - NOW == 30.0


def test_a_long_healthy_run_clears_the_count() -> None:
    """An actor that ran for a while is replaced at once, however often it had failed before."""
    old = Slot(W, SlotState.RUNNING, 1, since_s=NOW - HEALTHY_AFTER_S - 1, failures=7)

    assert (after(old).failures, after(old).not_before_s) == (1, NOW)
    assert after(replace(old, since_s=NOW - HEALTHY_AFTER_S + 1)).failures == 8


@pytest.mark.parametrize(("state", "stopping"), [(SlotState.DRAINING, False), (SlotState.RUNNING, True)])
def test_a_drained_slot_stays_stopped(state: SlotState, stopping: bool) -> None:
    """What was drained on purpose is not started again."""
    assert SlotState.STOPPED is after(Slot(W, state, 1), stopping=stopping).state


slots_of_any_kind = st.fixed_dictionaries({
    key: st.builds(
        Slot, st.just(key), st.sampled_from(SlotState), st.integers(0, 3), st.floats(0, 2_000), st.integers(0, 9), st.floats(0, 2_000),
        st.integers(-1, 9), st.floats(0, 2_000), needs=st.sampled_from([(), (f"{W}#1",), (f"{D}#1", f"{W}#2")]),
    ) for key in (I, C, D, W)
})  # fmt: skip


@given(slots_of_any_kind, st.booleans(), st.floats(0, 4_000))
def test_plan_is_pure_and_does_one_thing_a_slot(slots: Slots, stopping: bool, now: float) -> None:
    """Same input, same output, whatever the order of slots; at most one action a slot, and only ones that fit its state."""
    actions = plan(desired(stopping=stopping), slots, now)

    assert actions == plan(desired(stopping=stopping), dict(reversed(slots.items())), now)
    assert len(actions) == len({action.key for action in actions})
    for action in actions:
        state = slots[action.key].state
        assert state is SlotState.PENDING if isinstance(action, Start) else state in ALIVE
        assert action.reason
