"""A session on real servers: kills, a second job, a second pipeline beside it, and a judge that is not fooled."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.adapters.postgres import connect
from rayapp.bench.session import PipelineSession, SessionFailed
from rayapp.stack import StackOptions, StackState, start_stack

pytestmark = [pytest.mark.stack, pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """Servers with Ray, shared by the sessions of this module."""
    with start_stack(StackOptions(folder=tmp_path_factory.mktemp("bench") / "stack", ray=True, leash=True)) as running:
        yield running.state


def own_names(name: str) -> dict[str, Any]:
    """Settings of a pipeline that shares servers: its own topics everywhere (the broker lets `gateway` write below ruuvi/gateway/)."""
    return {
        "pipeline": name,
        "kafka": {"topic": name, "dead_letter_topic": f"{name}-dlq", "group": name},
        "mqtt": {"topics": [f"ruuvi/gateway/{name}"]},
    }


def test_kills_and_a_second_job_lose_nothing(servers: StackState, tmp_path: Path) -> None:
    with PipelineSession(tmp_path, stack=servers, overrides=own_names("kills")) as session:
        session.start()
        session.wait_running(120)
        run = session.simulate(rate=300, seconds=12, topic="ruuvi/gateway/kills")
        for slot in ("write/0", "ingest/0"):
            pid = session.kill_actor(slot)
            assert session.wait_replaced(slot, pid) != pid
        assert run.wait()["unknown"] == 0
        quiet = session.quiesce()
        assert quiet.quiet, quiet.reason
        verdict = session.judge()
        assert verdict.ok, verdict.problems
        assert verdict.readings_stored == verdict.readings_promised > 30_000
        assert session.stop_job() == "STOPPED"

        session.resubmit()
        session.wait_running(120)
        again = session.simulate(rate=100, seconds=3, topic="ruuvi/gateway/kills")
        again.wait()
        assert session.quiesce().quiet
        assert session.judge().ok
        assert session.judge([again]).readings_promised < verdict.readings_promised


def test_the_judge_of_shared_servers_sees_its_own_tags_and_every_fault(servers: StackState, tmp_path: Path) -> None:
    with PipelineSession(tmp_path, stack=servers, overrides=own_names("beside")) as session:
        session.start()
        session.wait_running(120)
        session.simulate(rate=100, seconds=4, topic="ruuvi/gateway/beside").wait()
        assert session.quiesce().quiet
        assert session.judge().ok
        mac = session.sent().macs[0]
        owner = connect(session.settings.database, "owner", application="test")
        gone = owner.count("DELETE FROM sensor_readings WHERE device_id = %s", (f"{mac}_humidity",))
        owner.commit()
        owner.close()
        verdict = session.judge()
        assert not verdict.ok
        assert verdict.lost == gone > 0


def test_a_session_says_what_it_lacks(tmp_path: Path) -> None:
    session = PipelineSession(tmp_path)
    with pytest.raises(SessionFailed, match="start"):
        session.simulate(rate=1, seconds=1)
    with pytest.raises(SessionFailed, match="start"):
        session.stop_job()
    session.close()
