"""The driver's loop: observe, plan, act, publish, about twice a second and at once when an actor ends.

observe  which run() calls ended, which statuses came, which halted partitions were resumed
plan     rayapp.plan.slots: a pure function from desired and observed to actions
act      start (rayapp.starts: claim first), drain, kill, through rayapp.runtime alone
publish  one log event a decision, metrics, and the pipeline row's status (rayapp.report)

The loop never ends for an error of an actor or a server; it ends when
everything is drained (SIGTERM) or when another driver has taken over, and then
it kills what is left: ending an actor loses nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from actors.adapters.kafka import Topics
from actors.base import ActorState, Status
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import DependencyUnavailable, StaleDriver, StatementRefused
from rayapp.ledger_watch import LedgerWatch
from rayapp.log import Events
from rayapp.metrics import FleetMetrics
from rayapp.model import Action, Desired, Drain, Role, Slot, SlotKey, SlotState, Start
from rayapp.plan import slots as slot_plan
from rayapp.report import fleet_status
from rayapp.runtime import Ended, Runtime
from rayapp.starts import Starts, Wire

BEAT_EVERY_S = 1.0
RETIRED = "retired"
"""Report of an ingest actor that has ended its slot's session."""

_events = Events(__name__)

_STATES = {
    ActorState.STARTING: SlotState.STARTING,
    ActorState.RUNNING: SlotState.RUNNING,
    ActorState.BLOCKED: SlotState.BLOCKED,
    ActorState.DRAINING: SlotState.DRAINING,
}


class Supervisor:
    """Keep the fleet as desired until stopped.

    Args:
        claims: returns a live Claims; may raise DatabaseUnavailable, and is asked again next time.
    """

    def __init__(
        self,
        settings: Settings,
        runtime: Runtime,
        claims: Callable[[], Claims],
        topics: Topics,
        wire: Wire,
        watch: LedgerWatch,
        run_id: str,
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._claims = claims
        self._watch = watch
        self._run_id = run_id
        self._metrics = FleetMetrics()
        self._statuses: dict[str, Status] = {}
        self._standing: dict[int, float] = {}
        self._beaten_s = 0.0
        self._announced = False
        fleet = settings.fleet
        counts = {Role.WRITE: fleet.write, Role.DETECT: fleet.detect, Role.CONSUME: fleet.consume, Role.INGEST: fleet.ingest}
        self._starts = Starts(settings, runtime, claims, topics, wire, counts)
        self._slots = {key: Slot(key) for role, count in counts.items() for key in (SlotKey(role, i) for i in range(count))}
        # A slot in the database is a session at the broker that goes on receiving its share: those beyond the count are served until they retire.
        for index in claims().slots(Role.INGEST):
            key = SlotKey(Role.INGEST, index)
            if key not in self._slots:
                self._slots[key] = Slot(key, retire=True)

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
        ended = self._runtime.finished(wait_s)
        if not ended and not any(slot.state is not SlotState.PENDING for slot in self._slots.values()):
            threading.Event().wait(min(wait_s, 0.1))  # nothing to watch yet
        now = time.monotonic()
        by_name = {self._name(slot): slot for slot in self._slots.values()}
        for end in ended:
            self._take_end(by_name[end.name], end, now)
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
            slot = self._slots[slot.key] = replace(slot, incarnation=slot.incarnation + 1, progress=-1, progress_s=now)
            try:
                slot = self._starts.start(slot, self._name_of)
            except (DependencyUnavailable, StatementRefused) as error:
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

    def _take_end(self, slot: Slot, end: Ended, now: float) -> None:
        """Note that an actor is over: stopped, retired, or to be replaced."""
        fleet = self._settings.fleet
        drained = end.error is None
        (_events.info if drained else _events.warning)("actor_ended", actor=end.name, reason=end.reason)
        self._metrics.actor_ended(end.name)
        if slot.retire and drained and end.reason == RETIRED:
            try:
                self._claims().delete_slot(slot.key.role, slot.key.index, end.name)
            except (DependencyUnavailable, StatementRefused) as error:
                # Retiring again is harmless, and ends with another try.
                _events.warning("slot_stays", slot=str(slot.key), error=str(error))
                drained = False
            else:
                _events.info("slot_retired", slot=str(slot.key))
                del self._slots[slot.key]
                return
        self._slots[slot.key] = slot_plan.ended(
            slot, end.reason, now, stopping=drained, backoff_s=fleet.backoff_s, backoff_max_s=fleet.backoff_max_s
        )

    def _name_of(self, key: SlotKey) -> tuple[str, str]:
        """Return a slot's incarnation, without and with this driver's run."""
        slot = self._slots[key]
        return slot.name, self._name(slot)

    def _halted(self, now: float) -> dict[int, str]:
        """Return the partitions that stand still and why; remember since when."""
        reported = {p: why for status in self._statuses.values() for p, why in status.halted.items()}
        halted = {**self._starts.halted, **reported}
        self._standing = {p: self._standing.get(p, now) for p in halted}
        return halted

    def _let_go_on(self) -> None:
        """Have partitions that an operator resumed claimed again, with the others of their slot."""
        ledger = self._watch.latest
        resumed = ledger.resumed(self._standing) if ledger is not None else []
        for index in {self._starts.consume_slot(partition) for partition in resumed}:
            if index is None:
                continue
            slot = self._slots[SlotKey(Role.CONSUME, index)]
            if slot.state in (SlotState.RUNNING, SlotState.BLOCKED):
                _events.info("actor_killed", actor=self._name(slot), reason=f"partitions {resumed} were resumed")
                self._runtime.kill(self._name(slot))
                self._slots[slot.key] = slot.into(SlotState.STARTING, time.monotonic())

    def _publish(self, now: float, stopping: bool) -> None:
        """Export metrics; write heartbeat and status to the pipeline row; say once when everything is up."""
        current = {self._name(slot): slot for slot in self._slots.values()}
        self._statuses = {name: status for name, status in self._statuses.items() if name in current}
        if now - self._beaten_s < BEAT_EVERY_S:
            return
        self._beaten_s = now
        ledger, halted = self._watch.latest, self._halted(now)
        self._let_go_on()
        self._metrics.publish(self._slots.values(), self._statuses, ledger)
        up = all(slot.state is SlotState.RUNNING for slot in self._slots.values())
        if up and not self._announced:
            self._announced = True
            _events.info("pipeline_running", slots=len(self._slots))
        if self._announced and not stopping:
            self._runtime.tend_spares(now)
        status = fleet_status(current, self._statuses, halted, ledger, now_s=now, stopping=stopping)
        try:
            self._claims().beat(json.dumps(status))
        except (DependencyUnavailable, StatementRefused) as error:
            # An unreachable database makes no driver stale: everything goes on and waits with us.
            _events.warning("heartbeat_waits", error=str(error))
