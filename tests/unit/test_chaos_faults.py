"""A fault is done to work under way, and whatever goes wrong with it, the run goes on to its verdict."""

from __future__ import annotations

import itertools
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from rayapp.bench.watch import View
from rayapp.chaos import faults as faults_module
from rayapp.chaos.faults import Faults
from rayapp.chaos.plan import KINDS, Fault
from rayapp.errors import DatabaseUnavailable


class Session:
    """A pipeline whose writers count up at every look, unless they are idle."""

    def __init__(self, *, idle: bool = False) -> None:
        self.idle = idle
        self.killed: list[str] = []
        self.resubmitted = 0
        self.looks = itertools.count(1)
        self.state = SimpleNamespace(
            components={"postgres": None, "kafka": None}, postgres=SimpleNamespace(pids=()), run_dir="/nowhere", control_socket=""
        )  # fmt: skip
        self.away = False

    def look(self) -> View:
        if self.away:
            raise DatabaseUnavailable("away")
        count = 1 if self.idle else next(self.looks)
        slots = {
            f"{role}/{index}": {"name": f"{role}/{index}#1", "state": "running", "pid": 4_000 + index, "counters": {counter: count}}
            for role, counter in (("write", "batches_total"), ("ingest", "mqtt_adapter_messages_received_total"))
            for index in (0, 1)
        }
        return View("running", slots, os.getpid(), 0, 0, 0, {0: 5}, {0: 9})

    def kill_actor(self, slot: str, _number: int) -> int:
        self.killed.append(slot)
        return 4_000

    def resubmit(self) -> None:
        self.resubmitted += 1


class Run:
    """The simulator, with so many messages unacknowledged."""

    def __init__(self, unacked: int = 3) -> None:
        self.unacked = unacked

    def progress(self) -> dict[str, float]:
        return {"unacked": self.unacked}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Components that were started again, instead of real servers."""
    names: list[str] = []
    monkeypatch.setattr(faults_module, "start_component", lambda _state, name: names.append(name) or [])
    monkeypatch.setattr(faults_module, "WORK_DEADLINE_S", 0.05)
    return names


def make(session: Session, run: Run | None = None) -> Faults:
    return Faults(session, run or Run(), None, lambda _seconds: None)


def fault(kind: str, target: str, seconds: float = 0.0) -> Fault:
    return Fault(20.0, kind, target, seconds, 0.5)


def test_every_kind_of_the_plan_can_be_done() -> None:
    """No kind is drawn that nobody knows how to do."""
    assert set(make(Session())._ways) == set(KINDS)
    assert {faults_module.role_of(target) for kind in KINDS.values() for target in kind.targets} <= set(faults_module.WORKERS)


def test_an_actor_is_killed_when_its_own_counter_has_just_moved(started: list[str]) -> None:
    """What was hit says whose counter, from where to where, and what was under way."""
    session = Session()
    done = make(session).do(fault("actor_kill", "write/1"))
    assert session.killed == ["write/1"]
    assert done.error == ""
    assert "write/1#1 batches_total 1 -> 2" in done.hit
    assert "write/0" not in done.hit
    assert "4 in Kafka" in done.hit


@pytest.mark.parametrize(
    ("session", "run", "target"),
    [(Session(idle=True), Run(), "write/0"), (Session(), Run(unacked=0), "ingest/0")],
)
def test_a_fault_that_waits_in_vain_for_work_is_done_and_met_none(session: Session, run: Run, target: str, started: list[str]) -> None:
    """An idle writer; an ingest that owes nobody an acknowledgement."""
    done = make(session, run).do(fault("actor_kill", target))
    assert (done.hit, done.error) == ("", "")
    assert session.killed == [target]


def test_a_full_disk_without_a_server_is_not_done_and_no_crash(started: list[str]) -> None:
    """The server's process leads to its disk; without it there is nothing to fill."""
    done = make(Session()).do(fault("disk_full", "postgres", 2.0))
    assert done.error.startswith("NotDone: postgres has no living process")


def test_an_error_nobody_thought_of_is_noted_and_everything_is_mended(started: list[str]) -> None:
    """The run goes on: its servers are started, and the trouble is told."""
    session = Session()
    session.kill_actor = lambda *_: {}["nobody"]  # type: ignore[method-assign]
    found = make(session)
    done = found.do(fault("actor_kill", "write/0"))
    assert done.error.startswith("KeyError")
    assert sorted(started) == ["kafka", "postgres"]
    assert found.troubles == ["actor_kill of write/0: KeyError: 'nobody'"]
    assert session.resubmitted == 0


def test_an_error_while_waiting_for_work_is_noted_like_any_other(started: list[str]) -> None:
    """Looking at the pipeline belongs to the fault: a status that cannot be read does not end the run."""
    session = Session()
    session.look = lambda: {}["no such slot"]  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        session.look()
    found = make(session)
    found._replace_driver = lambda: None  # type: ignore[method-assign]
    assert found.do(fault("actor_kill", "write/0")).error.startswith("KeyError")


def test_a_driver_that_is_dead_is_replaced_when_mending(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be mended is told, not raised."""
    session = Session()
    monkeypatch.setattr(faults_module.psutil, "pid_exists", lambda _pid: False)
    found = make(session)
    found.mend()
    found.mend()
    assert session.resubmitted == 1, "the one that was submitted is still coming up"
    session.away = True
    found.mend()
    assert found.troubles == ["driver was not mended: away"]


def test_a_long_stop_that_nobody_answers_is_not_done(started: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that leaves a stopped actor in its place for longer than its patience has failed."""
    session = Session()
    signals: list[Any] = []
    monkeypatch.setattr(faults_module.os, "kill", lambda pid, number: signals.append((pid, number)))
    found = make(session)
    assert "nobody replaced it" in found.do(fault("actor_stop", "write/0", 40.0)).error
    assert found.do(fault("actor_stop", "write/0", 5.0)).error == ""
    session.kill_actor = lambda *_: 3_999  # type: ignore[method-assign]
    done = found.do(fault("actor_stop", "write/0", 40.0))
    assert done.hit.endswith("replaced meanwhile")
    assert [pid for pid, number in signals if number == signal.SIGCONT] == [4_000, 4_000, 3_999]
