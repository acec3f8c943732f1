"""`rayapp replay` on real servers: deleted rows come back, nothing else moves, also beside live traffic and across kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import eventually, framed
from click.testing import CliRunner
from plain_actors import PARTITIONS, Pipeline, produce

from actors.adapters.kafka import Topics
from actors.adapters.kafka_read import RangeReader
from actors.adapters.postgres import Connection, connect
from actors.adapters.registry import Registry
from actors.base import now_us
from actors.consume import actor as consume_module
from rayapp.claims import Claims
from rayapp.cli import cli
from rayapp.config import Settings
from rayapp.errors import ConfigurationError, DatabaseUnavailable, DataLoss
from rayapp.files import reading_schema
from rayapp.local import write_settings
from rayapp.reread import jobs
from rayapp.stack import StackState

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]
EACH = 400


@pytest.fixture
def config(settings: Settings, migrated: StackState, tmp_path: Path) -> Path:
    """The module's pipeline as a YAML file."""
    path = tmp_path / "rayapp.yaml"
    kafka = {name: getattr(settings.kafka, name) for name in ("topic", "dead_letter_topic", "group", "partitions")}
    write_settings(migrated, path, {"pipeline": settings.pipeline, "kafka": kafka})
    return path


class World:
    """A pipeline that has stored some records of a tag a partition, and looks into the table."""

    def __init__(self, settings: Settings, pipeline: Pipeline, owner: Connection, schema_id: int, config: Path) -> None:
        self.settings, self.pipeline, self.owner, self.schema_id, self.config = settings, pipeline, owner, schema_id, config
        self.begun = datetime.now(UTC)
        self.start = self.begun - timedelta(hours=2)
        self.macs = [":".join(f"{byte:02x}" for byte in random.randbytes(6)) for _ in range(PARTITIONS)]
        self.sent = 0

    def live(self, each: int) -> None:
        """Produce records to all partitions and let the pipeline store them."""
        moments = [(self.start + timedelta(seconds=n)).isoformat() for n in range(self.sent, self.sent + each)]
        self.sent += each
        produce(
            self.settings,
            {
                p: [framed(schema_id=self.schema_id, device_id=f"{mac}_temperature", timestamp=when) for when in moments]
                for p, mac in enumerate(self.macs)
            },
        )
        self.pipeline.go(self.pipeline.stored() + each * PARTITIONS, None)

    def rows(self, columns: str = "id, device_id, timestamp, value, is_anomaly, created_at") -> set[tuple[Any, ...]]:
        return set(self.owner.execute(f"SELECT {columns} FROM sensor_readings WHERE left(device_id, 17) = ANY(%s)", (self.macs,)))

    def delete(self, where: str = "true") -> None:
        self.owner.execute(f"DELETE FROM sensor_readings WHERE left(device_id, 17) = ANY(%s) AND {where}", (self.macs,))

    def ledger(self) -> list[tuple[Any, ...]]:
        return self.owner.execute("SELECT * FROM ingest_ledger WHERE pipeline = %s ORDER BY partition", (self.settings.pipeline,))

    def replay(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run the command; return its exit code and its last line."""
        result = CliRunner().invoke(cli, ["replay", "--config", str(self.config), "--json", "--yes", *arguments])
        if isinstance(result.exception, ConfigurationError):
            raise result.exception
        assert result.stdout, result.output
        return result.exit_code, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def world(
    settings: Settings, topics: Topics, owner: Connection, claims: Claims, config: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """A world of which so many records a partition are stored."""
    monkeypatch.setattr(consume_module, "RETRY_S", 0.05)
    with Registry(settings.registry) as registry:
        schema_id = registry.register(f"{settings.kafka.topic}-value", reading_schema())
    monkeypatch.setattr("plain_actors.SCHEMA_ID", schema_id)
    pipeline = Pipeline(settings, topics, owner, claims)
    made = World(settings, pipeline, owner, schema_id, config)
    made.live(EACH)
    yield made
    pipeline.close()


def result(stored: int, duplicate: int, conflicts: int = 0) -> dict[str, int]:
    return {"stored": stored, "duplicate": duplicate, "other_gateway": 0, "conflicts": conflicts, "dead": 0}


def counts(found: dict[str, Any]) -> dict[str, int]:
    return {name: found[name] for name in result(0, 0)}


def test_deleted_rows_come_back_and_nothing_else_changes(world: World) -> None:
    """Rows that were deleted are stored again, the others keep their ids and times; a second run changes nothing; the ledger stands
    still; a stored reading that differs from the log stays and is counted."""
    first = {p: position - EACH for p, position in world.owner.execute(
        "SELECT partition, next_offset FROM ingest_ledger WHERE pipeline = %s", (world.settings.pipeline,))}  # fmt: skip
    keys, before, ledger = world.rows("device_id, timestamp, value, is_anomaly"), world.rows(), world.ledger()
    world.delete("mod(extract(second FROM timestamp)::int, 3) = 0")
    kept = world.rows()
    assert EACH < len(kept) < len(before)

    code, found = world.replay("--from", world.begun.isoformat())
    assert (0, True) == (code, found["done"])
    assert result(len(before) - len(kept), len(kept)) == counts(found)
    assert keys == world.rows("device_id, timestamp, value, is_anomaly")
    assert kept <= world.rows()

    settled = world.rows()
    again = world.replay("--from", str(first[1]), "--to", str(first[1] + 50), "--partition", "1")
    assert (0, result(0, 50)) == (again[0], counts(again[1]))
    assert settled == world.rows()

    one = f"device_id = '{world.macs[1]}_temperature' AND timestamp = '{(world.start + timedelta(seconds=7)).isoformat()}'"
    world.owner.execute(f"UPDATE sensor_readings SET value = 99 WHERE {one}")
    code, found = world.replay("--from", str(first[1]), "--partition", "1")
    assert (1, result(0, EACH - 1, conflicts=1)) == (code, counts(found))
    assert [(99.0,)] == world.owner.execute(f"SELECT value FROM sensor_readings WHERE {one}")
    assert ledger == world.ledger()
    world.owner.execute(f"UPDATE sensor_readings SET value = 21.5 WHERE {one}")  # the tests share a topic

    listed = CliRunner().invoke(cli, ["replay", "--list", "--json", "--config", str(world.config)])
    assert {"done"} == {json.loads(line)["state"] for line in listed.stdout.splitlines()}


def test_range_is_the_ledgers(world: World) -> None:
    """What the ledger has not stored is not read, by no flag; a range without records is none."""
    end = world.owner.execute("SELECT next_offset FROM ingest_ledger WHERE pipeline = %s AND partition = 0", (world.settings.pipeline,))[0][
        0
    ]
    produce(world.settings, {0: [framed(schema_id=world.schema_id, device_id=f"{world.macs[0]}_humidity")] * 10})
    with pytest.raises(ConfigurationError, match=f"stored up to offset {end}"):
        world.replay("--from", "start", "--to", str(end + 1), "--partition", "0")
    code, found = world.replay("--from", str(end - 5), "--to", "next", "--partition", "0")
    assert (0, result(0, 5)) == (code, counts(found))
    assert (0, 0) == (world.replay("--from", "0s")[0], world.replay("--from", "0s")[1]["partitions"])
    with RangeReader(world.settings.kafka, world.settings.kafka.topic) as reader, pytest.raises(DataLoss, match="the log holds"):
        list(reader.read({0: (end, end + 1_000)}))
    world.pipeline.go(world.pipeline.stored() + 10, None)


def test_rows_and_position_are_one_transaction(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that breaks between the rows and COMMIT leaves neither rows nor position; the job connects again and goes on."""
    keys = world.rows("device_id, timestamp, value, is_anomaly")
    world.delete()
    advance, seen = jobs.JobLedger.advance, list[tuple[int, int]]()

    def broken_once(ledger: jobs.JobLedger, batch: Any, found: Any) -> None:
        moved = world.owner.execute("SELECT sum(next_offset - from_offset)::int FROM replay_jobs WHERE job_id = %s", (job,))[0][0]
        seen.append((len(world.rows()), moved))
        advance(ledger, batch, found)
        if len(seen) == 1:
            raise DatabaseUnavailable("cut")

    monkeypatch.setattr(jobs.JobLedger, "advance", broken_once)
    job = f"cut-{random.randbytes(3).hex()}"
    code, found = world.replay("--from", world.begun.isoformat(), "--job", job)

    assert [(0, 0), (0, 0)] == seen[:2]
    assert (0, result(EACH * PARTITIONS, 0)) == (code, counts(found))
    assert keys == world.rows("device_id, timestamp, value, is_anomaly")


def test_killed_in_the_middle_it_goes_on_beside_live_traffic(world: World) -> None:
    """kill -9 loses and doubles nothing: rows and counts agree at the kill, the same job finishes the rest, while the pipeline stores
    new records of the same partitions; a second process on the job is refused."""
    keys = world.rows("device_id, timestamp, value, is_anomaly")
    world.delete()
    job = f"killed-{random.randbytes(3).hex()}"
    command = [
        sys.executable,
        "-m",
        "rayapp",
        "replay",
        "--config",
        str(world.config),
        "--from",
        world.begun.isoformat(),
        "--job",
        job,
        "--yes",
    ]

    def moved() -> int:
        rows = world.owner.execute("SELECT sum(stored)::int FROM replay_jobs WHERE job_id = %s", (job,))
        return rows[0][0] or 0

    running = subprocess.Popen([*command, "--rate", "40"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert eventually(lambda: moved() > 60), running.stderr
        other = connect(world.settings.database, "writer", application="tests second")
        with pytest.raises(ConfigurationError, match="another process works on this job"):
            jobs.lock(other, world.settings, job, wait_s=0.0)
        other.close()
        world.live(50)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.communicate(timeout=20)
    # A COMMIT may have been on its way: the server finishes it and frees the lock.
    other = connect(world.settings.database, "writer", application="tests after")
    jobs.lock(other, world.settings, job)
    other.close()
    done = moved()
    assert 60 < done < EACH * PARTITIONS
    assert done + 50 * PARTITIONS == len(world.rows())

    ledger = world.ledger()
    code, found = world.replay("--job", job)
    assert (0, EACH * PARTITIONS) == (code, found["stored"])
    assert keys <= world.rows("device_id, timestamp, value, is_anomaly")
    assert len(keys) + 50 * PARTITIONS == len(world.rows())
    assert ledger == world.ledger()
    (parts,) = world.owner.execute(
        "SELECT bool_and(next_offset = end_offset), sum(end_offset - from_offset), sum(stored + duplicate + other_gateway + conflicts + dead)"
        " FROM replay_jobs WHERE job_id = %s", (job,))  # fmt: skip
    assert parts[0]
    assert parts[1] == parts[2]


def test_what_was_in_time_when_it_came_is_not_too_old_now(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are judged by the day on which they reached Kafka: a lost day is restored also after `max_age_days`."""
    kept = world.rows("device_id, timestamp, value")
    world.delete()
    later_us = (world.settings.ingest.max_age_days + 1) * 86_400_000_000
    monkeypatch.setattr("rayapp.reread.run.now_us", lambda: now_us() + later_us)

    code, found = world.replay("--from", "start", "--to", "next")

    assert (0, 0) == (code, found["dead"])
    assert kept == world.rows("device_id, timestamp, value")
