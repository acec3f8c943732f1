"""`rayapp dlq` on real servers: letters of every stage listed, shown, replayed through a real consumer, dropped; the largest one fits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import eventually, framed, message
from click.testing import CliRunner, Result
from plain_actors import Pipeline

from actors import dead_letters
from actors.adapters.kafka import RecordProducer, Topics, read_all
from actors.adapters.postgres import Connection
from actors.adapters.registry import Registry
from actors.base import now_us
from actors.consume import actor as consume_module
from actors.dead_letters import DeadLetter
from rayapp.claims import Claims
from rayapp.cli import cli
from rayapp.config import Settings
from rayapp.errors import ConfigurationError
from rayapp.files import reading_schema
from rayapp.local import write_settings
from rayapp.stack import StackState

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]
Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings, migrated: StackState, topics: Topics, tmp_path: Path) -> Run:
    """Run `rayapp dlq …` against the module's pipeline."""
    path = tmp_path / "rayapp.yaml"
    kafka = {name: getattr(settings.kafka, name) for name in ("topic", "dead_letter_topic", "group", "partitions")}
    write_settings(migrated, path, {"pipeline": settings.pipeline, "kafka": kafka})
    return lambda *arguments: CliRunner().invoke(cli, ["dlq", arguments[0], "--config", str(path), *arguments[1:]])


def mac() -> str:
    return ":".join(f"{byte:02x}" for byte in random.randbytes(6))


def send(settings: Settings, *letters: DeadLetter) -> None:
    """Put letters into the topic and wait until they are there."""
    producer, left = RecordProducer(settings.kafka), [len(letters)]

    def report(error: object | None, _record: object) -> None:
        assert error is None, error
        left[0] -= 1

    for letter in letters:
        assert producer.produce_one(settings.kafka.dead_letter_topic, letter.value, letter.headers(), report)

    def all_there() -> bool:
        producer.poll(0.1)
        return left[0] == 0

    assert eventually(all_there)


def listed(run: Run, *arguments: str) -> dict[str, dict[str, Any]]:
    result = run("list", "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    return {letter["id"]: letter for letter in map(json.loads, result.stdout.splitlines())}


def test_letters_from_list_to_table(
    run: Run, settings: Settings, topics: Topics, owner: Connection, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message and a record that were refused by mistake are replayed into the table, once; what is still wrong stays; a replayed
    record that is refused again comes back under its old id; dropped letters rest."""
    monkeypatch.setattr(consume_module, "RETRY_S", 0.05)
    with Registry(settings.registry) as registry:
        schema_id = registry.register(f"{settings.kafka.topic}-value", reading_schema())
    monkeypatch.setattr("plain_actors.SCHEMA_ID", schema_id)
    mqtt_mac, kafka_mac, twin_mac, topic = mac(), mac(), mac(), settings.kafka.topic
    when = datetime.now(UTC) - timedelta(hours=1)
    good = message(device_id=mqtt_mac, timestamp=None)
    reading = framed(schema_id=schema_id, device_id=f"{kafka_mac}_temperature", timestamp=when.isoformat())
    mine = dead_letters.of_message("ruuvitag/data", good, "bad_value:rssi", now_us() - 60_000_000)
    bad = dead_letters.of_message("ruuvitag/data", b"{", "not_json", now_us())
    theirs = dead_letters.of_record(topic, 1, 1_000, reading, "unknown_schema", "consume", now_us())
    # Two letters of one key and gateway with different values: the second will be refused as a conflict, which nobody can know before.
    twins = [
        dead_letters.of_record(
            topic, 2, offset, framed(schema_id=schema_id, device_id=f"{twin_mac}_temperature", timestamp=when.isoformat(), value=value),
            "refused_by_database", "write", now_us(),
        )
        for offset, value in ((5, 20.0), (6, 21.0))
    ]  # fmt: skip
    send(settings, mine, mine, bad, theirs, *twins)

    found = listed(run)
    assert {letter.id for letter in (mine, bad, theirs, *twins)} == set(found)
    assert (2, mqtt_mac, "ruuvitag/data", None) == tuple(found[mine.id][key] for key in ("copies", "device", "topic", "partition"))
    assert (1, kafka_mac, topic, 1, 1_000) == tuple(found[theirs.id][key] for key in ("copies", "device", "topic", "partition", "offset"))
    assert [bad.id] == list(listed(run, "--reason", "not_*"))
    assert 1 == run("list", "--reason", "nothing").exit_code
    assert 2 == len(run("list", "--limit", "2").stdout.splitlines())
    assert {"write", "ingest", "consume"} == {
        json.loads(line)["stage"] for line in run("list", "--count-by", "stage", "--json").stdout.splitlines()
    }

    assert good == run("show", mine.id, "--raw").stdout_bytes
    assert "accepted: 9 records" in run("show", mine.id).stdout
    assert "refused: not_json" in run("show", bad.id[:-3]).stdout

    before = topics.offsets(topic, 3)
    dry = run("replay", "--dry-run", "--json")
    assert (1, 4, 12) == (dry.exit_code, json.loads(dry.stdout)["replayed"], json.loads(dry.stdout)["records"])
    assert before == topics.offsets(topic, 3)
    assert set(listed(run)) == set(found)

    first = run("replay", "--yes", "--json")
    assert {"dry_run": False, "replayed": 4, "records": 12, "skipped": 0, "refused": {bad.id: "not_json"}, "stopped": False} == json.loads(
        first.stdout
    )
    assert 1 == first.exit_code
    assert [bad.id] == list(listed(run))
    assert 0 == json.loads(run("replay", "--yes", "--json").stdout)["replayed"]
    assert 12 == sum(high - low for low, high in topics.offsets(topic, 3).values())

    pipeline = Pipeline(settings, topics, owner, claims)
    pipeline.go(12, None)
    pipeline.close()
    rows = owner.execute(
        "SELECT left(device_id, 17), count(*) FROM sensor_readings WHERE left(device_id, 17) = ANY(%s) GROUP BY 1",
        ([mqtt_mac, kafka_mac, twin_mac],),
    )
    assert {mqtt_mac: 9, kafka_mac: 1, twin_mac: 1} == dict(rows)
    again = listed(run, "--state", "refused")
    assert {twins[1].id: ("refused", "conflict", 2, 6)} == {
        key: (letter["state"], letter["reason"], letter["copies"], letter["offset"]) for key, letter in again.items()
    }
    counted = [json.loads(line) for line in run("list", "--state", "all", "--count-by", "reason", "--json").stdout.splitlines()]
    assert {"reason": "conflict", "letters": 1, "ledger": 1} in counted
    assert {"reason": "not_json", "letters": 1, "ledger": 0} in counted

    assert 0 == run("replay", twins[0].id, "--again", "--yes").exit_code, "sent twice it is absorbed"
    assert 0 == run("drop", twins[1].id, bad.id, "--why", "bench", "--yes").exit_code
    assert not listed(run)
    assert {"bench"} == {letter["why"] for letter in listed(run, "--state", "dropped").values()}
    assert 1 == run("replay", bad.id, "--yes").exit_code, "dropped letters are not replayed"


def test_wrong_ids_and_times_are_named(run: Run) -> None:
    """What cannot be meant is said with its key and its rule."""
    for arguments in (("show", "no/such/id"), ("list", "--since", "soon"), ("replay", "x", "--stage", "write")):
        result = run(*arguments)
        assert isinstance(result.exception, ConfigurationError), result.output
    assert 2 == run("list", "--state", "odd").exit_code


@pytest.mark.parametrize("size", [131_072, 1_048_576])
def test_largest_message_fits_as_a_letter(settings: Settings, topics: Topics, run: Run, size: int) -> None:
    """A message of the MQTT broker's limit, and one of max_dead_letter_bytes, fit with all their headers, from an overlong topic, too."""
    payload = random.randbytes(size)
    letter = dead_letters.of_message("t" * 60_000, payload, "not_json", now_us())
    send(settings, letter)

    assert letter.id in {headers["id"] for _, headers in read_all(settings.kafka, settings.kafka.dead_letter_topic)}
    assert payload == run("show", letter.id, "--raw").stdout_bytes
