"""The contract every actor keeps, so that one supervisor can watch all roles.

run()     one long call on the `loop` thread; connects, works, returns a Report
          after drain(); an exception is the actor's death and its cause.
drain()   ask run() to finish what it holds and return; answers at once.
status()  answers at once on the `control` threads, also while run() is stuck;
          the progress stamp then stops growing and the supervisor sees it.

Actors never restart themselves and never swallow an error: ending loudly is
always safe, because Kafka and the MQTT session still hold what was not stored.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class ActorState(StrEnum):
    """What an actor says about itself."""

    STARTING = "starting"
    RUNNING = "running"
    BLOCKED = "blocked"
    DRAINING = "draining"


@dataclass(frozen=True)
class Status:
    """A snapshot for the supervisor, the dashboard and metrics.

    Attributes:
        progress: grows while the loop turns; equal values across a long time mean a stuck loop.
        blocked_on: name of the dependency that is away, when state is BLOCKED.
        counters: totals since the actor started, by metric name.
        gauges: current values, by metric name.
        halted: partition -> why it goes no further until an operator resumes it.
        reasons: dead letters by reason.
    """

    name: str
    state: ActorState
    progress: int
    pid: int
    blocked_on: str | None = None
    counters: dict[str, int] = field(default_factory=dict)
    gauges: dict[str, float] = field(default_factory=dict)
    halted: dict[int, str] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What run() returns after a drain: the reason and the final counters."""

    name: str
    reason: str
    counters: dict[str, int]


class Actor:
    """Progress stamp, drain flag and status of one actor; roles add run()."""

    role = "actor"

    def __init__(self, name: str) -> None:
        self.name = name
        self._pid = os.getpid()
        self._progress = 0
        self._state = ActorState.STARTING
        self._blocked_on: str | None = None
        self._draining = threading.Event()
        self.counters: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}
        self.halted: dict[int, str] = {}
        self.reasons: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def tick(self) -> None:
        """Stamp progress: call once a turn of the loop."""
        self._progress += 1

    def set_state(self, state: ActorState, blocked_on: str | None = None) -> None:
        """Say what the loop is doing; waiting for a dead server is BLOCKED, which is progress."""
        self._state, self._blocked_on = state, blocked_on

    @property
    def draining(self) -> bool:
        """True once drain() was called."""
        return self._draining.is_set()

    def drain(self) -> None:
        """Ask run() to finish what it holds and return."""
        self._draining.set()

    def status(self) -> Status:
        """Return the current status without touching any server."""
        return Status(
            name=self.name,
            state=ActorState.DRAINING if self.draining else self._state,
            progress=self._progress,
            pid=self._pid,
            blocked_on=self._blocked_on,
            counters=dict(self.counters),
            gauges=dict(self.gauges),
            halted=dict(self.halted),
            reasons=dict(self.reasons),
        )

    def report(self, reason: str) -> Report:
        """Return the value run() ends with."""
        return Report(self.name, reason, dict(self.counters))

    def wait_for_drain(self, tick_s: float = 0.5) -> Report:
        """Be a death watch: turn the loop until drain() (for roles whose work comes by calls)."""
        self.set_state(ActorState.RUNNING)
        while not self._draining.wait(tick_s):
            self.tick()
        return self.report("drained")


def now_us() -> int:
    """Return wall time in microseconds since the epoch."""
    return time.time_ns() // 1000
