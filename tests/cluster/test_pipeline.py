"""The whole pipeline on real servers, with the gateways' own ledger as judge.

One stack and one Ray cluster serve the module; every test sends traffic of its
own tags, and has everything sent so far judged. What kills do to it is tests/chaos'
business.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path

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
