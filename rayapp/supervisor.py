"""The driver's loop: observe, plan, act, publish, about twice a second and at once when an actor ends.

observe  which run() calls ended, which statuses came
plan     rayapp.plan.slots: a pure function from desired and observed to actions
act      start (claim first), drain, kill, through rayapp.runtime alone
publish  one log event a decision, metrics, and the pipeline row's status

The loop never ends for an error of an actor or a server; it ends when
everything is drained (SIGTERM) or when another driver has taken over, and then
it kills what is left: ending an actor loses nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.adapters.kafka import TopicIdentity, Topics
from actors.base import Actor, ActorState, Status
from actors.batch import PartitionClaim
from actors.consume.actor import Consume
from actors.detect.actor import Detect
from actors.ingest.actor import Ingest
from actors.write.actor import Write
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import DependencyUnavailable, StaleDriver
from rayapp.log import Events
from rayapp.metrics import FleetMetrics
from rayapp.model import Action, Desired, Drain, Role, Slot, SlotKey, SlotState, Start
from rayapp.plan import slots as slot_plan
from rayapp.plan.assign import assign
from rayapp.runtime import Runtime

BEAT_EVERY_S = 1.0

_events = Events(__name__)

_STATES = {
    ActorState.STARTING: SlotState.STARTING,
    ActorState.RUNNING: SlotState.RUNNING,
    ActorState.BLOCKED: SlotState.BLOCKED,
    ActorState.DRAINING: SlotState.DRAINING,
}


@dataclass(frozen=True)
class Wire:
    """What actors need to speak on the topic: schema text, its id in the registry, the topic's identity."""

    schema: str
    schema_id: int
    identity: TopicIdentity


class Supervisor:
    """Keep the fleet as desired until stopped.

    Args:
        claims: returns a live Claims; may raise DatabaseUnavailable, and is asked again next time.
    """

    def __init__(self, settings: Settings, runtime: Runtime, claims: Callable[[], Claims], topics: Topics, wire: Wire, run_id: str) -> None:
        self._settings = settings
        self._runtime = runtime
        self._claims = claims
        self._topics = topics
        self._wire = wire
        self._run_id = run_id
        self._metrics = FleetMetrics()
        self._statuses: dict[str, Status] = {}
        self._beaten_s = 0.0
        self._announced = False
        fleet = settings.fleet
        counts = {Role.WRITE: fleet.write, Role.DETECT: fleet.detect, Role.CONSUME: fleet.consume, Role.INGEST: fleet.ingest}
        # A slot in the database is a session at the broker that goes on receiving its share: serve all of them, however few are configured.
        counts[Role.INGEST] = max(counts[Role.INGEST], *(index + 1 for index in claims().slots(Role.INGEST)), 0)
        self._counts = counts
        self._slots = {key: Slot(key) for role, count in counts.items() for key in (SlotKey(role, i) for i in range(count))}
        self._assignment: dict[Role, dict[int, int]] = {role: {} for role in (Role.CONSUME, Role.DETECT, Role.WRITE)}

    def run(self, stop: threading.Event) -> None:
        """Supervise until `stop` is set and everything is drained.

        Raises:
            StaleDriver: another driver took over; all actors were killed.
        """
        try:
            while True:
                self._observe(self._settings.fleet.tick_s)
                now = time.monotonic()
                desired = self._desired(stopping=stop.is_set())
                if desired.stopping and slot_plan.stopped(self._slots):
                    _events.info("pipeline_stopped", pipeline=self._settings.pipeline)
                    return
                for action in slot_plan.plan(desired, self._slots, now):
                    self._act(action, now)
                self._publish(now, desired.stopping)
        except StaleDriver:
            for slot in self._slots.values():
                if slot.state not in (SlotState.PENDING, SlotState.STOPPED):
                    self._runtime.kill(self._name(slot))
            raise

    def _desired(self, *, stopping: bool) -> Desired:
        fleet = self._settings.fleet
        return Desired(stopping, fleet.start_timeout_s, fleet.stall_timeout_s, fleet.drain_timeout_s)

    def _name(self, slot: Slot) -> str:
        """Name of the slot's current incarnation, unique across drivers."""
        return f"{slot.name}.{self._run_id}"

    def _observe(self, wait_s: float) -> None:
        """Take in ended actors and arrived statuses."""
        fleet = self._settings.fleet
        ended = self._runtime.finished(wait_s)
        if not ended and not any(slot.state is not SlotState.PENDING for slot in self._slots.values()):
            threading.Event().wait(min(wait_s, 0.1))  # nothing to watch yet
        now = time.monotonic()
        by_name = {self._name(slot): slot for slot in self._slots.values()}
        for end in ended:
            slot = by_name[end.name]
            drained = end.error is None
            (_events.info if drained else _events.warning)("actor_ended", actor=end.name, reason=end.reason)
            self._slots[slot.key] = slot_plan.ended(
                slot, end.reason, now, stopping=drained, backoff_s=fleet.backoff_s, backoff_max_s=fleet.backoff_max_s
            )
            self._metrics.actor_ended(end.name)
        for name, status in self._runtime.statuses().items():
            found = by_name.get(name)
            if found is None or self._slots[found.key].incarnation != found.incarnation:
                continue
            self._statuses[name] = status
            slot = self._slots[found.key]
            if slot.state in (SlotState.PENDING, SlotState.STOPPED):
                continue
            if status.progress != slot.progress:
                slot = replace(slot, progress=status.progress, progress_s=now)
            if slot.state is not SlotState.DRAINING:
                slot = replace(slot.into(_STATES[status.state], now), blocked_on=status.blocked_on)
            self._slots[found.key] = slot

    def _act(self, action: Action, now: float) -> None:
        """Carry out one decision; a dependency that is away makes a start wait, with backoff."""
        slot = self._slots[action.key]
        if isinstance(action, Start):
            fleet = self._settings.fleet
            slot = replace(slot, incarnation=slot.incarnation + 1, progress=-1, progress_s=now)
            try:
                slot = self._start(slot)
            except DependencyUnavailable as error:
                _events.warning("start_waits", slot=str(slot.key), error=str(error))
                self._slots[slot.key] = slot_plan.ended(
                    slot, f"waits: {error}", now, stopping=False, backoff_s=fleet.backoff_s, backoff_max_s=fleet.backoff_max_s
                )
                return
            _events.info("actor_started", actor=self._name(slot), reason=action.reason)
            self._slots[slot.key] = slot.into(SlotState.STARTING, now)
        elif isinstance(action, Drain):
            _events.info("actor_drains", actor=self._name(slot), reason=action.reason)
            self._runtime.drain(self._name(slot))
            self._slots[slot.key] = slot.into(SlotState.DRAINING, now)
        else:
            _events.warning("actor_killed", actor=self._name(slot), reason=action.reason)
            self._runtime.kill(self._name(slot))

    def _start(self, slot: Slot) -> Slot:
        """Claim what the slot owns, make its actor and call run().

        Raises:
            DependencyUnavailable: a claim could not be made now.
            StaleDriver: another driver took over.
        """
        name, role, settings = self._name(slot), slot.key.role, self._settings
        if role in (Role.WRITE, Role.DETECT):
            kind: type[Actor] = Write if role is Role.WRITE else Detect
            self._runtime.create(name, kind, settings)
            self._runtime.run(name)
        elif role is Role.INGEST:
            self._claims().claim_slot(role, slot.key.index, name)
            self._runtime.create(name, Ingest, settings, slot.key.index, self._wire.schema, self._wire.schema_id)
            self._runtime.run(name)
        else:
            claims = self._claim_partitions(slot.key.index, name)
            detectors = {c.detect_slot: self._name(self._slots[SlotKey(Role.DETECT, c.detect_slot)]) for c in claims}
            writers = {c.write_slot: self._name(self._slots[SlotKey(Role.WRITE, c.write_slot)]) for c in claims}
            self._runtime.create(name, Consume, settings, self._wire.schema, self._wire.schema_id)
            self._runtime.run(name, claims, self._runtime.downstream(detectors, writers))
            needs = [self._slots[SlotKey(Role.DETECT, i)].name for i in detectors] + [
                self._slots[SlotKey(Role.WRITE, i)].name for i in writers
            ]
            slot = replace(slot, needs=tuple(sorted(needs)))
        return slot

    def _claim_partitions(self, index: int, owner: str) -> list[PartitionClaim]:
        """Claim the partitions of one consume slot."""
        kafka = self._settings.kafka
        partitions = range(kafka.partitions)
        for role in self._assignment:
            self._assignment[role] = assign(partitions, range(self._counts[role]), self._assignment[role])
        mine = [p for p, slot in sorted(self._assignment[Role.CONSUME].items()) if slot == index]
        first_offsets = self._topics.offsets(kafka.topic, kafka.partitions)
        claims = self._claims()
        made = []
        for partition in mine:
            claimed = claims.claim_partition(kafka.topic, self._wire.identity, partition, first_offsets[partition][0], owner)
            detect_slot, write_slot = self._assignment[Role.DETECT][partition], self._assignment[Role.WRITE][partition]
            made.append(PartitionClaim(kafka.topic, partition, claimed.epoch, owner, detect_slot, write_slot))
        return made

    def _publish(self, now: float, stopping: bool) -> None:
        """Export metrics; write heartbeat and status to the pipeline row; say once when everything is up."""
        current = {self._name(slot): slot for slot in self._slots.values()}
        self._statuses = {name: status for name, status in self._statuses.items() if name in current}
        if now - self._beaten_s < BEAT_EVERY_S:
            return
        self._beaten_s = now
        self._metrics.publish(self._slots.values(), self._statuses)
        up = all(slot.state is SlotState.RUNNING for slot in self._slots.values())
        if up and not self._announced:
            self._announced = True
            _events.info("pipeline_running", slots=len(self._slots))
        status = {
            "state": "stopping" if stopping else "running" if up else "degraded",
            "slots": {
                str(slot.key): {
                    "state": slot.state,
                    "name": name,
                    "pid": self._statuses[name].pid if name in self._statuses else None,
                    "incarnation": slot.incarnation,
                    "blocked_on": slot.blocked_on,
                    "last_end": slot.last_end,
                    "counters": self._statuses[name].counters if name in self._statuses else {},
                }
                for name, slot in current.items()
            },
        }
        try:
            self._claims().beat(json.dumps(status))
        except DependencyUnavailable as error:
            # An unreachable database makes no driver stale: everything goes on and waits with us.
            _events.warning("heartbeat_waits", error=str(error))
