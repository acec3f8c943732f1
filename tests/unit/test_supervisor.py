"""The supervisor's own decisions, with fakes for Ray and the database: who is started, who retires, who is let go on."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_books import ROW

from actors.base import ActorState, Status
from rayapp import supervisor as module
from rayapp.books import Ledger
from rayapp.claims import Claimed, ClaimedSet
from rayapp.config import FleetSettings, KafkaSettings, Settings
from rayapp.errors import DatabaseUnavailable, StaleDriver, StatementRefused
from rayapp.runtime import Ended
from rayapp.starts import Wire
from rayapp.supervisor import Supervisor

TURNS = 400


class Metrics:
    """Takes anything."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_arguments: None


class Runtime:
    """Ray, as far as the supervisor sees it: actors that run until a test ends them."""

    def __init__(self) -> None:
        self.created: dict[str, tuple[str, tuple[Any, ...]]] = {}
        self.alive: dict[str, Status] = {}
        self.ended: deque[Ended] = deque()
        self.killed: list[str] = []
        self.claims_of: dict[str, list[Any]] = {}
        self.spares = 0
        self.each_turn: Callable[[], None] = lambda: None
        self.turns = 0

    def create(self, name: str, actor: type, *arguments: object) -> None:
        self.created[name] = (actor.__name__, arguments)

    def run(self, name: str, *arguments: Any) -> None:
        self.alive[name] = Status(name, ActorState.RUNNING, 1, 1)
        if arguments:
            self.claims_of[name] = arguments[0]

    def downstream(self, *_names: object) -> object:
        return object()

    def finished(self, _timeout_s: float) -> list[Ended]:
        self.turns += 1
        assert self.turns < TURNS, "the supervisor goes on for ever"
        self.each_turn()
        found, self.ended = list(self.ended), deque()
        return found

    def statuses(self) -> dict[str, Status]:
        self.alive = {name: replace(status, progress=status.progress + 1) for name, status in self.alive.items()}
        return dict(self.alive)

    def end(self, name: str, reason: str, error: Exception | None = None) -> None:
        del self.alive[name]
        self.ended.append(Ended(name, reason, error))

    def drain(self, name: str) -> None:
        self.end(name, "drained")

    def kill(self, name: str) -> None:
        self.killed.append(name)
        self.end(name, "killed", RuntimeError("killed"))

    def tend_spares(self, _now_s: float) -> None:
        self.spares += 1


class Claims:
    """The driver's SQL."""

    def __init__(self, slots: list[int]) -> None:
        self.rows = set(slots)
        self.halted: dict[int, str] = {}
        self.claimed: list[list[int]] = []
        self.beats: list[dict[str, Any]] = []
        self.refuse_delete = 0
        self.stale = False

    def slots(self, _role: str) -> list[int]:
        return sorted(self.rows)

    def claim_slot(self, _role: str, slot: int, _owner: str) -> None:
        self.rows.add(slot)

    def delete_slot(self, _role: str, slot: int, _owner: str) -> None:
        if self.refuse_delete:
            self.refuse_delete -= 1
            raise DatabaseUnavailable("away")
        self.rows.remove(slot)

    def claim_partitions(self, _topic: str, _identity: object, first_offsets: dict[int, int], _owner: str) -> ClaimedSet:
        held = [p for p in sorted(first_offsets) if p not in self.halted]
        self.claimed.append(held)
        return ClaimedSet(tuple(Claimed(p, 1, 0) for p in held), {p: why for p, why in self.halted.items() if p in first_offsets})

    def beat(self, status: str) -> None:
        if self.stale:
            raise StaleDriver("another one")
        self.beats.append(json.loads(status))


class Topics:
    """Kafka's admin."""

    def identity(self) -> object:
        return object()

    def offsets(self, _topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        return dict.fromkeys(range(partitions), (0, 0))


class Watch:
    """The latest look at the ledger."""

    latest: Ledger | None = None


class World:
    """A supervisor with everything faked."""

    def __init__(self, slots: list[int]) -> None:
        self.runtime, self.claims, self.watch = Runtime(), Claims(slots), Watch()
        fleet = FleetSettings(ingest=1, consume=1, detect=1, write=1)
        settings = Settings(fleet=fleet, kafka=KafkaSettings(partitions=2))
        live: Any = lambda: self.claims  # noqa: E731 - a stand-in
        runtime: Any = self.runtime
        topics: Any = Topics()
        watch: Any = self.watch
        self.supervisor = Supervisor(settings, runtime, live, topics, Wire("{}", 1), watch, "run")
        self.stop = threading.Event()

    def until(self, question: Callable[[], bool]) -> None:
        """Supervise until the answer is yes, then drain."""

        def look() -> None:
            if question():
                self.stop.set()

        self.runtime.each_turn = look
        self.supervisor.run(self.stop)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """A function that makes a world; the heartbeat comes every turn."""
    monkeypatch.setattr(module, "FleetMetrics", Metrics)
    monkeypatch.setattr(module, "BEAT_EVERY_S", 0.0)
    return lambda slots=(): World(list(slots))


def test_a_slot_above_the_count_retires_and_is_gone(world: Callable[..., World]) -> None:
    """The row of a session that nobody wants any more is served by an actor that ends it; then the row goes, and only then."""
    made = world([0, 1])

    def retire_when_up() -> bool:
        if "ingest/1#1.run" in made.runtime.alive and made.claims.beats:
            assert {0, 1} == made.claims.rows
            made.runtime.end("ingest/1#1.run", "retired")
        return 1 not in made.claims.rows

    made.until(retire_when_up)

    assert (False, True) == (made.runtime.created["ingest/0#1.run"][1][-1], made.runtime.created["ingest/1#1.run"][1][-1])
    assert {0} == made.claims.rows
    assert "ingest/1" not in made.claims.beats[-1]["slots"]


def test_a_retired_slot_whose_row_cannot_be_deleted_is_retired_again(world: Callable[..., World]) -> None:
    """While the database is away the slot stays and its retirement is done once more, which is harmless."""
    made = world([0, 1])
    made.claims.refuse_delete = 1

    def retire_when_up() -> bool:
        for name in [n for n in made.runtime.alive if n.startswith("ingest/1")]:
            made.runtime.end(name, "retired")
        return 1 not in made.claims.rows

    made.until(retire_when_up)

    assert "ingest/1#2.run" in made.runtime.created


def test_a_retiring_slot_killed_on_the_way_retires_again(world: Callable[..., World]) -> None:
    """Only a finished retirement ends a slot."""
    made = world([1])

    def kill_first() -> bool:
        if "ingest/1#1.run" in made.runtime.alive:
            made.runtime.end("ingest/1#1.run", "process gone", RuntimeError("gone"))
        elif "ingest/1#2.run" in made.runtime.alive:
            made.runtime.end("ingest/1#2.run", "retired")
        return 1 not in made.claims.rows

    made.until(kill_first)

    assert made.runtime.created["ingest/1#2.run"][1][-1] is True


def test_a_retirement_broken_off_by_the_stop_keeps_the_row(world: Callable[..., World]) -> None:
    """A drained actor has not ended its session: the next driver must find the slot."""
    made = world([0, 1])
    made.until(lambda: len(made.claims.beats) > 3)

    assert {0, 1} == made.claims.rows


def test_a_halted_partition_degrades_and_is_claimed_again_when_resumed(world: Callable[..., World]) -> None:
    """A partition that consume halted is shown with its reason; once the ledger says so, the slot claims it again."""
    made = world()
    consume = "consume/0#1.run"

    def halt_then_resume() -> bool:
        if consume in made.runtime.alive and len(made.claims.beats) == 3:
            made.runtime.alive[consume] = replace(made.runtime.alive[consume], halted={1: "too many dead"})
        if len(made.claims.beats) == 6:
            made.watch.latest = Ledger(time.monotonic(), {1: replace(ROW, partition=1)})
        return "consume/0#2.run" in made.runtime.alive

    made.until(halt_then_resume)

    degraded = [beat for beat in made.claims.beats if beat["halted"]]
    assert ("degraded", {"1": "too many dead"}) == (degraded[0]["state"], degraded[0]["halted"])
    assert [[0, 1], [0, 1]] == made.claims.claimed
    assert consume in made.runtime.killed


def test_a_look_from_before_the_halt_resumes_nothing(world: Callable[..., World]) -> None:
    """A look that began before the partition halted still shows it as going on; killing its owner for that would be wrong."""
    made = world()
    made.watch.latest = Ledger(0.0, {1: replace(ROW, partition=1)})

    def halt() -> bool:
        consume = "consume/0#1.run"
        if consume in made.runtime.alive:
            made.runtime.alive[consume] = replace(made.runtime.alive[consume], halted={1: "why"})
        return len(made.claims.beats) > 12

    made.until(halt)

    assert [] == made.runtime.killed


def test_a_partition_halted_before_the_start_is_left_out_of_the_claim(world: Callable[..., World]) -> None:
    """The owner gets the other partitions, and the status says why one stands still."""
    made = world()
    made.claims.halted = {0: "log truncated"}

    made.until(lambda: len(made.claims.beats) > 3)

    assert [1] == [claim.partition for claim in made.runtime.claims_of["consume/0#1.run"]]
    assert {"0": "log truncated"} == made.claims.beats[-1]["halted"]


def test_a_stale_driver_kills_its_actors_and_ends(world: Callable[..., World]) -> None:
    """Another driver took over: everything of ours is ended, and run() says so."""
    made = world()

    def take_over() -> bool:
        made.claims.stale = len(made.runtime.alive) == 4
        return False

    with pytest.raises(StaleDriver):
        made.until(take_over)
    assert {} == made.runtime.alive


def test_spares_are_kept_once_everything_runs(world: Callable[..., World]) -> None:
    """Not before: at the start every core is needed by the actors themselves."""
    made = world()
    made.until(lambda: made.runtime.spares > 2)
    assert "running" == made.claims.beats[-1]["state"] or "stopping" == made.claims.beats[-1]["state"]


def test_a_statement_that_is_refused_makes_the_driver_wait_and_try_again(
    world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right that is missing or a table that is gone is said and tried again; it does not end a driver whose actors work."""
    made = world()
    honest, refusals = made.claims.claim_partitions, deque([StatementRefused("permission denied", sqlstate="42501")])

    def refuse_once(*arguments: Any) -> ClaimedSet:
        if refusals:
            raise refusals.popleft()
        return honest(*arguments)

    monkeypatch.setattr(made.claims, "claim_partitions", refuse_once)
    made.until(lambda: "consume/0#2.run" in made.runtime.alive)

    assert [[0, 1]] == made.claims.claimed
