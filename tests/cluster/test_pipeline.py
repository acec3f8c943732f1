"""The whole pipeline on real servers, with the gateways' own ledger as judge.

One stack and one Ray cluster serve the module; every test sends traffic of its
own tags, makes its trouble, and has everything sent so far judged.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation

pytestmark = [pytest.mark.cluster, pytest.mark.stack, pytest.mark.timeout(300)]

RATE = 600.0


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineSession]:
    """One running pipeline for all tests here."""
    folder: Path = tmp_path_factory.mktemp("pipeline")
    with PipelineSession(folder) as running:
        running.start()
        running.wait_running()
        yield running


def wait_until_sent(run: Simulation, messages: int, timeout_s: float = 30.0) -> None:
    """Wait until a run has sent so many messages."""
    deadline = time.monotonic() + timeout_s
    while run.progress().get("sent", 0) < messages:
        assert run.running, "the simulator ended early"
        assert time.monotonic() < deadline, f"not sent within {timeout_s} s: {run.progress()}"
        select.select([], [], [], 0.05)


def end(run: Simulation) -> None:
    """End a run's schedule; it still waits for its acknowledgements."""
    assert run.running, "traffic was to go on until here"
    run.stop()
    run.wait(90.0)


def settled(session: PipelineSession) -> None:
    """Wait until nothing is under way, then require that everything sent so far is where it belongs."""
    quiet = session.quiesce(90.0)
    assert quiet.quiet, quiet.reason
    verdict = session.judge()
    assert verdict.ok, verdict.problems


def test_every_reading_arrives_once_and_every_broken_message_is_a_dead_letter(session: PipelineSession) -> None:
    """Ten seconds of traffic with broken messages and faults end as rows, flags and dead letters, exactly."""
    run = session.simulate(rate=RATE, seconds=10, malformed_share=0.02, fault_share=0.02)
    summary = run.wait()

    settled(session)

    verdict = session.judge()
    assert summary["acked"] == summary["messages_sent"] == 6000
    assert verdict.readings_stored == (summary["messages_sent"] - summary["malformed"]) * 9
    assert verdict.dead_lettered == summary["malformed"] > 0
    assert verdict.anomalies >= summary["faults"] > 0


@pytest.mark.parametrize("slot", ["write/0", "detect/0", "consume/0", "ingest/0"])
def test_kill_minus_nine_of_an_actor_under_load_loses_and_doubles_nothing(session: PipelineSession, slot: str) -> None:
    """An actor killed in the middle of traffic is replaced, and the sender's ledger finds every reading once."""
    run = session.simulate(rate=RATE, seconds=90)
    wait_until_sent(run, int(RATE * 3))

    killed = session.kill_actor(slot)
    replacement = session.wait_replaced(slot, killed)

    sent_then = int(run.progress()["sent"])
    wait_until_sent(run, sent_then + int(RATE * 2))
    end(run)
    settled(session)
    assert not psutil.pid_exists(killed)
    assert psutil.pid_exists(replacement)


def test_job_stop_and_resubmit_under_load_lose_nothing(session: PipelineSession) -> None:
    """`ray job stop` drains and ends as STOPPED while gateways go on sending; the next job takes up where it ended."""
    run = session.simulate(rate=RATE, seconds=120)
    wait_until_sent(run, int(RATE * 3))

    assert session.stop_job() == "STOPPED"
    stored_at_stop = session.look().stored
    session.resubmit()
    session.wait_running()

    end(run)
    settled(session)
    assert session.look().stored > stored_at_stop


def test_a_driver_killed_with_its_fleet_is_resubmitted_without_loss(session: PipelineSession) -> None:
    """SIGKILL of the driver ends its actors too; a new job claims everything under higher epochs."""
    run = session.simulate(rate=RATE, seconds=120)
    wait_until_sent(run, int(RATE * 3))
    driver = session.look().driver_pid
    assert driver is not None

    os.kill(driver, signal.SIGKILL)
    session.resubmit()
    session.wait_running()

    end(run)
    settled(session)
