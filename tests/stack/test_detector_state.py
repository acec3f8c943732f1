"""Flags are a function of the log, on real servers: runs with kills of consume, detect and write equal a run without, bit by bit.

One fixed log in Kafka, two pipelines with a ledger each. The first goes through
it undisturbed; its rows are taken out of the table, and the second goes through
it with actors that are abandoned in the middle of their work and claimed anew,
as the driver would. What an abandoned actor still does, it does: the ledger's
epochs must keep it out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from builders import framed
from plain_actors import PARTITIONS, Pipeline, produce

from actors.adapters.kafka import Topics, read_all
from actors.adapters.postgres import Connection, connect
from actors.consume import actor as consume_module
from actors.detect import actor as detect_module
from rayapp.claims import Claims
from rayapp.config import Settings

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DEVICES, RECORDS = 12, 9_000
KILLS = ("consume", "detect", "write")
STEPS = {"limits": {"temperature_sensor": 5.0}, "max_gap_s": 120.0}

Key = tuple[str, datetime]


def fixed_log(macs: list[str]) -> dict[int, list[bytes]]:
    """Return each partition's records: readings that step, come late, come twice, conflict, and some that are none."""
    dice = random.Random(7)
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)
    found: dict[int, list[bytes]] = {p: [] for p in range(PARTITIONS)}
    seconds, values = dict.fromkeys(macs, 0), dict.fromkeys(macs, 20.0)
    for number in range(RECORDS):
        mac = dice.choice(macs)
        partition = macs.index(mac) % PARTITIONS
        seconds[mac] += dice.choice([1, 1, 1, 2, 200])
        values[mac] += dice.choice([0.0, 0.1, -0.1, 4.9, -4.9, 9.0, -9.0])
        late = dice.choice([0, 0, 0, 0, 0, 3])
        at = start + timedelta(seconds=seconds[mac] - late, milliseconds=number % 1000 if late else 0)
        record = framed(device_id=f"{mac}_temperature", timestamp=at.isoformat(), value=values[mac])
        found[partition].append(record)
        if dice.random() < 0.05:
            found[partition].append(found[partition][-dice.randrange(1, 20) :][0])
        if dice.random() < 0.01:
            found[partition].append(framed(device_id=f"{mac}_temperature", timestamp=at.isoformat(), value=values[mac] + 1.0))
        if dice.random() < 0.01:
            found[partition].append(b"not avro")
    return found


@pytest.fixture
def make(
    settings: Settings, topics: Topics, owner: Connection, connections: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Pipeline]]:
    """A function that makes a pipeline of its own name over the module's topic, with short waits and small batches."""
    monkeypatch.setattr(detect_module, "SNAPSHOT_EVERY_S", 0.1)
    monkeypatch.setattr(consume_module, "RETRY_S", 0.05)
    made: list[Pipeline] = []

    def pipeline(name: str) -> Pipeline:
        own = settings.model_copy(
            update={
                "pipeline": f"{settings.pipeline}-{name}",
                "steps": settings.steps.model_validate(STEPS),
                "batch": settings.batch.model_copy(update={"max_rows": 150, "interval_s": 0.01}),
            }
        )
        connection = connect(own.database, "driver", application="tests driver")
        connections.append(connection)
        claims = Claims(connection, own.pipeline, "tests")
        claims.become_driver()
        made.append(Pipeline(own, topics, owner, claims))
        return made[-1]

    yield pipeline
    for each in made:
        each.close()


def test_flags_of_a_log_with_kills_are_those_without(settings: Settings, make: Callable[[str], Pipeline], owner: Connection) -> None:
    """Consume, detect and write are abandoned nine times in the middle of a log; rows, flags, counts and dead letters stay the same."""
    macs = [":".join(f"{byte:02x}" for byte in random.randbytes(6)) for _ in range(DEVICES)]
    total = produce(settings, fixed_log(macs))

    def taken() -> dict[Key, tuple[bool, float]]:
        ids = [f"{mac}_temperature" for mac in macs]
        rows = owner.execute("SELECT device_id, timestamp, is_anomaly, value FROM sensor_readings WHERE device_id = ANY(%s)", (ids,))
        owner.execute("DELETE FROM sensor_readings WHERE device_id = ANY(%s)", (ids,))
        assert len(rows) == len({(device, at) for device, at, *_ in rows})
        return {(device, at): (flag, value) for device, at, flag, value in rows}

    def counts(pipeline: Pipeline) -> tuple[Any, ...]:
        return owner.execute(
            "SELECT sum(next_offset), sum(records), sum(stored), sum(duplicate), sum(dead) FROM ingest_ledger WHERE pipeline = %s",
            (pipeline.settings.pipeline,),
        )[0]

    def letters() -> set[str]:
        return {headers["id"] for _, headers in read_all(settings.kafka, settings.kafka.dead_letter_topic)}

    quiet = make("quiet")
    quiet.go(total, None)
    expected, ids = taken(), letters()
    assert total == quiet.stored()
    assert 0 == quiet.warm

    shaken = make("shaken")
    dice = random.Random(11)
    for number, who in enumerate(KILLS * 3, 1):
        shaken.go(total * number // 11 + dice.randrange(200), who)
    shaken.go(total, None)
    found = taken()

    assert total == shaken.stored()
    assert expected == found
    assert counts(quiet) == counts(shaken)
    assert ids == letters()
    flags = [flag for flag, _ in found.values()]
    assert 0.05 < sum(flags) / len(flags) < 0.95
    assert shaken.warm > 0, "no recovery began below the ledger: the snapshots were not what was tested"
    assert all(not consume.halted for consume in shaken.consumers)
