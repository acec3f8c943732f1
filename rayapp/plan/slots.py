"""What to do about each slot: start, drain or kill, each with a reason a person understands.

Roles start in the order of the data's end first (write, detect, consume,
ingest), so that nothing is read before it can be stored, and stop the other
way round, so that what was read is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rayapp.model import Action, Desired, Drain, Kill, Role, Slot, SlotKey, SlotState, Start

_ALIVE = (SlotState.STARTING, SlotState.RUNNING, SlotState.BLOCKED, SlotState.DRAINING)
_UP = (SlotState.RUNNING, SlotState.BLOCKED)

NEEDS: Mapping[Role, tuple[Role, ...]] = {
    Role.WRITE: (),
    Role.DETECT: (),
    Role.CONSUME: (Role.WRITE, Role.DETECT),
    Role.INGEST: (Role.CONSUME,),
}
"""Roles whose actors must exist before a slot of this role starts. Existing is enough: calls to an actor that is
still starting wait for it, so a fleet comes up in the time of one actor and not of three in a row."""

HEALTHY_AFTER_S = 60.0
"""A run longer than this clears the failure count."""


def plan(desired: Desired, slots: Mapping[SlotKey, Slot], now_s: float) -> list[Action]:
    """Return the actions that bring the observed slots nearer to the desired ones."""
    if desired.stopping:
        return _plan_stop(desired, slots, now_s)
    actions: list[Action] = []
    alive = {slot.name for slot in slots.values() if slot.state in _ALIVE}
    for key, slot in sorted(slots.items(), key=lambda item: (list(Role).index(item[0].role), item[0].index)):
        if slot.state is SlotState.PENDING and now_s >= slot.not_before_s:
            missing = _missing(slot, slots)
            if not missing:
                actions.append(Start(key, slot.last_end))
        elif slot.state is SlotState.STARTING and now_s - slot.since_s > desired.start_timeout_s:
            actions.append(Kill(key, f"did not come up within {desired.start_timeout_s:g} s"))
        elif slot.state in _ALIVE and (gone := [name for name in slot.needs if name not in alive]):
            actions.append(Kill(key, f"hands batches to {', '.join(gone)}, which is gone"))
        elif slot.state in _UP and now_s - slot.progress_s > desired.stall_timeout_s:
            actions.append(Kill(key, f"no progress for {now_s - slot.progress_s:.0f} s"))
    return actions


def _missing(slot: Slot, slots: Mapping[SlotKey, Slot]) -> list[SlotKey]:
    """Return the slots this one waits for. Ingest waits for consume only at the very start: Kafka buffers afterwards."""
    if slot.key.role is Role.INGEST and slot.incarnation > 0:
        return []
    return [key for key, other in slots.items() if key.role in NEEDS[slot.key.role] and other.state not in _ALIVE]


def _plan_stop(desired: Desired, slots: Mapping[SlotKey, Slot], now_s: float) -> list[Action]:
    """Drain one role at a time, last first; what does not drain in time is killed, which loses nothing."""
    for role in reversed(Role):
        alive = {key: slot for key, slot in slots.items() if key.role is role and slot.state in _ALIVE}
        if not alive:
            continue
        actions: list[Action] = []
        for key, slot in sorted(alive.items()):
            if slot.state is not SlotState.DRAINING:
                actions.append(Drain(key, "the pipeline stops"))
            elif now_s - slot.since_s > desired.drain_timeout_s:
                actions.append(Kill(key, f"did not drain within {desired.drain_timeout_s:g} s"))
        return actions
    return []


def stopped(slots: Mapping[SlotKey, Slot]) -> bool:
    """True when no actor is alive."""
    return not any(slot.state in _ALIVE for slot in slots.values())


def ended(slot: Slot, reason: str, now_s: float, *, stopping: bool, backoff_s: float, backoff_max_s: float) -> Slot:
    """Return the slot after its actor ended: stopped for good when it was drained, else pending with backoff.

    The first replacement is immediate; each further failure within a minute
    doubles the wait, from `backoff_s` to `backoff_max_s`.
    """
    if stopping or slot.state is SlotState.DRAINING:
        return replace(slot.into(SlotState.STOPPED, now_s), last_end=reason)
    healthy = slot.state in _UP and now_s - slot.since_s > HEALTHY_AFTER_S
    failures = 1 if healthy else slot.failures + 1
    wait_s = (
        0.0 if failures == 1 else min(backoff_s * 2.0 ** min(failures - 2, 64), backoff_max_s)
    )  # a float overflows after a night's failures
    pending = slot.into(SlotState.PENDING, now_s)
    return replace(pending, failures=failures, not_before_s=now_s + wait_s, last_end=reason, blocked_on=None)
