"""The vocabulary of the driver: roles, slots, what is observed and what is done about it.

A slot is a place for one actor of a role and lives as long as the pipeline; an
incarnation is one actor in that place, with a name that is never used again.
Everything here is a value: plan() reads these and returns actions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Role(StrEnum):
    """The four kinds of actors, in the order in which they start; they stop the other way round."""

    WRITE = "write"
    DETECT = "detect"
    CONSUME = "consume"
    INGEST = "ingest"


class SlotState(StrEnum):
    """Where a slot is in its life."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    BLOCKED = "blocked"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, order=True)
class SlotKey:
    """A role and a number."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"{self.role}/{self.index}"


@dataclass(frozen=True)
class Slot:
    """One slot as the driver sees it.

    Attributes:
        incarnation: how many actors this slot has had; names are unique by it.
        since_s: when the state began.
        failures: ends without a drain since the last long healthy run.
        not_before_s: backoff; PENDING until then.
        progress: last progress stamp, and progress_s when it last grew.
        needs: names of the incarnations this one hands batches to; when one is gone, this one is replaced.
        retire: its actor ends the slot's MQTT session in order, and then the slot is gone.
    """

    key: SlotKey
    state: SlotState = SlotState.PENDING
    incarnation: int = 0
    since_s: float = 0.0
    failures: int = 0
    not_before_s: float = 0.0
    progress: int = -1
    progress_s: float = 0.0
    blocked_on: str | None = None
    last_end: str = "first start"
    needs: tuple[str, ...] = ()
    retire: bool = False

    @property
    def name(self) -> str:
        """Name of the current incarnation."""
        return f"{self.key}#{self.incarnation}"

    def into(self, state: SlotState, now_s: float) -> Slot:
        """Return the slot in another state."""
        return self if state is self.state else replace(self, state=state, since_s=now_s)


@dataclass(frozen=True)
class Desired:
    """What the pipeline should look like.

    Attributes:
        stopping: drain everything in order and end.
    """

    stopping: bool
    start_timeout_s: float
    stall_timeout_s: float
    drain_timeout_s: float


@dataclass(frozen=True)
class Start:
    """Make a new incarnation and call its run()."""

    key: SlotKey
    reason: str


@dataclass(frozen=True)
class Drain:
    """Ask an actor to finish what it holds."""

    key: SlotKey
    reason: str


@dataclass(frozen=True)
class Kill:
    """End an actor's process; what it held is read or sent again."""

    key: SlotKey
    reason: str


Action = Start | Drain | Kill
