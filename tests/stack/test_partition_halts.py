"""Halts on real servers: one partition's records are gone or good for nothing, its reason is in the ledger, the others go on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from builders import framed
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from plain_actors import PARTITIONS, Pipeline, produce

from actors.adapters.kafka import Topics, client_configuration, read_all
from actors.adapters.postgres import Connection
from actors.consume import actor as consume_module
from rayapp.claims import Claims
from rayapp.config import Settings

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


@pytest.fixture
def pipeline(settings: Settings, topics: Topics, owner: Connection, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """A pipeline over the module's topic that judges dead letters after a hundred records."""
    monkeypatch.setattr(consume_module, "RETRY_S", 0.05)
    batch = settings.batch.model_copy(update={"max_rows": 50, "interval_s": 0.01, "dead_min_records": 100, "dead_window_records": 200})
    made = Pipeline(settings.model_copy(update={"batch": batch}), topics, owner, claims)
    yield made
    made.close()


def records(count: int) -> list[bytes]:
    """Return readings of a fresh tag, one a second."""
    mac = ":".join(f"{byte:02x}" for byte in random.randbytes(6))
    start = datetime.now(UTC) - timedelta(hours=2)
    return [framed(device_id=f"{mac}_temperature", timestamp=(start + timedelta(seconds=n)).isoformat()) for n in range(count)]


def ledger(owner: Connection, settings: Settings) -> dict[int, tuple[int, str | None]]:
    """Return partition -> position and reason of the halt."""
    rows = owner.execute("SELECT partition, next_offset, halted FROM ingest_ledger WHERE pipeline = %s", (settings.pipeline,))
    return {partition: (position, reason) for partition, position, reason in rows}


def test_partitions_halt_one_by_one(settings: Settings, pipeline: Pipeline, owner: Connection) -> None:
    """Retention passes the ledger of partition 1 while its actor is away, partition 2 fills with rubbish: both halt, each by itself
    and with its own reason, partition 0 goes on, and neither is given to the next actor."""
    produce(settings, {partition: records(300) for partition in range(PARTITIONS)})
    pipeline.go(900, None)
    assert {0: (300, None), 1: (300, None), 2: (300, None)} == ledger(owner, settings)

    produce(settings, {0: records(400), 1: records(400), 2: [b"rubbish"] * 400})
    topic = settings.kafka.topic
    admin = AdminClient(client_configuration(settings.kafka))
    admin.delete_records([TopicPartition(topic, 1, 450)])[TopicPartition(topic, 1)].result(20)

    def halted() -> bool:
        found = ledger(owner, settings)
        return found[0][0] == 700 and all(found[partition][1] for partition in (1, 2))

    consume = pipeline.go_while(lambda: not halted())

    found = ledger(owner, settings)
    assert halted(), found
    assert 300 == found[1][0]
    assert "the log holds 450..700: offsets 300..449 (150) are gone" in str(found[1][1])
    assert f"rayapp partition resume {topic} 1 --at" in str(found[1][1])
    # The window began with this actor: at its hundredth record all of them were dead.
    assert 300 <= found[2][0] < 400
    assert "100 of the last 100 records up to offset 399 are dead letters, more than 50%" in str(found[2][1])
    assert found[2][0] - 300 == len(read_all(settings.kafka, settings.kafka.dead_letter_topic))
    assert {1, 2} == set(consume.halted)

    produce(settings, {0: records(50)})
    pipeline.go(sum(position for position, _ in found.values()) + 50, None)
    assert {**found, 0: (750, None)} == ledger(owner, settings)
