"""The store on a real PostgreSQL: every reading exactly once, every record counted once, whatever comes in.

Each test has a partition and a tag of its own, so that they share the table
and nothing else.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from builders import DAY_US, SECOND_US
from partition import IDENTITY, TODAY_US, Partition, counts

from actors.base import now_us
from actors.batch import DetectorSnapshot, Outcome, WriteAnswer
from actors.write.ledger import Ledger
from actors.write.store import BatchStore
from rayapp.errors import DatabaseUnavailable, LedgerBroken, StaleClaim

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


def test_new_rows_are_stored_and_the_ledger_moves(one: Partition) -> None:
    """A batch of new rows is in the table with its values, and the ledger stands behind it."""
    answer = one.write([one.row(0, value=1.5), one.row(1, value=None), one.row(2, is_anomaly=True, gateway_id=None)], 0, 3)

    assert WriteAnswer(Outcome.STORED, 3, 3) == answer
    assert [(1.5, False, "gw-1"), (None, False, "gw-1"), (21.5, True, None)] == one.stored("value, is_anomaly, gateway_id")
    assert counts(next_offset=3, records=3, stored=3) == one.ledger()


def test_batch_without_rows_moves_the_ledger(one: Partition) -> None:
    """Dead letters alone, and a log's trailing marker, are a batch too."""
    assert Outcome.STORED is one.write([], 0, 2, dead=2).outcome
    assert Outcome.STORED is one.write([], 2, 3).outcome
    assert counts(next_offset=3, records=2, dead=2) == one.ledger()


def test_empty_batch_passes_the_careful_path(one: Partition) -> None:
    """The path that absorbs duplicates takes a batch without rows as well."""
    one.writer.careful_batches = 1

    assert WriteAnswer(Outcome.STORED, 1) == one.write([], 0, 1, dead=1)
    assert 0 == one.writer.careful_batches


def test_redelivered_rows_are_absorbed_and_counted(one: Partition) -> None:
    """The same readings under new offsets are counted as duplicates, new ones beside them are stored."""
    one.write([one.row(0), one.row(1)], 0, 2)
    again = [one.row(0) | {"offset": 2}, one.row(1) | {"offset": 3}, one.row(4)]

    assert WriteAnswer(Outcome.STORED, 5, stored=1, duplicate=2) == one.write(again, 2, 5)
    assert 3 == len(one.stored("id"))
    assert counts(next_offset=5, records=5, stored=3, duplicate=2) == one.ledger()
    assert 0 < one.writer.careful_batches


def test_same_key_and_gateway_with_other_content_is_a_conflict(one: Partition) -> None:
    """The first reading stays; the later one is named, nothing of its batch is stored, and without it the rest is."""
    one.write([one.row(0, value=1.0)], 0, 1)
    rows = [one.row(0, value=2.0) | {"offset": 1}, one.row(2)]

    assert WriteAnswer(Outcome.REJECTED, 1, rejected={1: "conflict"}) == one.write(rows, 1, 3)
    assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    assert Outcome.STORED is one.write(rows[1:], 1, 3, dead=1).outcome
    assert [(1.0,), (21.5,)] == one.stored("value")
    assert counts(next_offset=3, records=3, stored=2, dead=1) == one.ledger()


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"value": None}, Outcome.REJECTED), ({"unit": "K"}, Outcome.REJECTED), ({"value": 21.5}, Outcome.STORED),
        ({"battery_level": 1.0, "signal_strength": -3.0, "is_anomaly": True, "tags": ["moved"], "measurement_sequence": 9}, Outcome.STORED),
    ],
)  # fmt: skip
def test_content_is_value_and_unit(one: Partition, change: dict[str, Any], outcome: Outcome) -> None:
    """Only value and unit make a conflict; what is derived or descriptive does not."""
    one.write([one.row(0)], 0, 1)

    assert outcome is one.write([one.row(0) | {"offset": 1} | change], 1, 2).outcome


def test_negative_zero_is_zero(one: Partition) -> None:
    """-0.0 and 0.0 are the same content, in the table and within a batch."""
    one.write([one.row(0, value=-0.0)], 0, 1)
    answer = one.write([one.row(0, value=0.0) | {"offset": 1}, one.row(2, value=0.0), one.row(2, value=-0.0) | {"offset": 3}], 1, 4)

    assert WriteAnswer(Outcome.STORED, 4, stored=1, duplicate=2) == answer


def test_other_gateway_is_absorbed_whatever_it_says(one: Partition) -> None:
    """The same tag heard by another gateway in the same second is counted, not stored and not a conflict."""
    one.write([one.row(0, value=1.0)], 0, 1)
    rows = [one.row(0, value=2.0, gateway_id="gw-2") | {"offset": 1}, one.row(0, value=1.0, gateway_id=None) | {"offset": 2}]

    assert WriteAnswer(Outcome.STORED, 3, duplicate=2, other_gateway=2) == one.write(rows, 1, 3)
    assert [(1.0, "gw-1")] == one.stored("value, gateway_id")
    assert counts(next_offset=3, records=3, stored=1, duplicate=2, other_gateway=2) == one.ledger()


def test_repeats_within_a_batch_are_judged_by_the_lowest_offset(one: Partition) -> None:
    """The first of a batch stays; a copy is a duplicate, another gateway is counted, other content is a conflict."""
    rows = [
        one.row(0, value=1.0), one.row(0, value=1.0) | {"offset": 1}, one.row(0, value=3.0, gateway_id="gw-2") | {"offset": 2},
        one.row(0, value=4.0) | {"offset": 3},
    ]  # fmt: skip
    random.shuffle(rows)

    assert {3: "conflict"} == one.write(rows, 0, 4).rejected
    kept = [row for row in rows if row["offset"] != 3]
    assert WriteAnswer(Outcome.STORED, 4, stored=1, duplicate=2, other_gateway=1) == one.write(kept, 0, 4, dead=1)
    assert [(1.0,)] == one.stored("value")


def reference(rows: list[dict[str, Any]]) -> tuple[dict[tuple[str, int], dict[str, Any]], dict[str, int], set[int]]:
    """Judge readings one at a time in offset order: what is kept, the counters, and the conflicts."""
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    made, conflicts = counts(), set()
    for row in sorted(rows, key=lambda row: row["offset"]):
        first = kept.setdefault((row["device_id"], row["timestamp"]), row)
        made["records"] += 1
        if first is row:
            made["stored"] += 1
        elif first["gateway_id"] != row["gateway_id"]:
            made["duplicate"] += 1
            made["other_gateway"] += 1
        elif (first["value"], first["unit"]) == (row["value"], row["unit"]):
            made["duplicate"] += 1
        else:
            made["dead"] += 1
            conflicts.add(row["offset"])
    return kept, made, conflicts


@pytest.mark.parametrize("seed", range(12))
def test_outcome_does_not_depend_on_where_batches_are_cut(make: Callable[[], Partition], seed: int) -> None:
    """Random readings with few keys, in random batches, end as the reading-by-reading reference says."""
    rng, one = random.Random(seed), make()
    values, gateways = [0.0, -0.0, 1.0, None], ["a", "b", None]
    rows = [
        one.row(offset, timestamp=TODAY_US + rng.randrange(8), value=rng.choice(values), gateway_id=rng.choice(gateways))
        for offset in range(40)
    ]
    kept, expected, conflicts = reference(rows)
    found: set[int] = set()
    at = 0
    while at < len(rows):
        after = min(at + rng.randint(1, 20), len(rows))
        part, dead = rows[at:after], 0
        while (answer := one.write([row for row in part if row["offset"] not in found], at, after, dead=dead)).outcome is Outcome.REJECTED:
            assert answer.rejected
            found |= set(answer.rejected)
            dead += len(answer.rejected)
        at = after

    assert conflicts == found
    assert expected | {"next_offset": 40} == one.ledger()
    stored = one.stored("device_id, (extract(epoch FROM timestamp) * 1000000)::bigint, value, gateway_id")
    assert [(key[0], key[1], row["value"], row["gateway_id"]) for key, row in sorted(kept.items())] == stored


def test_missing_day_is_made(one: Partition) -> None:
    """A late reading gets its day partition, and its batch is stored."""
    old = TODAY_US - (100 + random.randrange(200)) * DAY_US

    assert WriteAnswer(Outcome.STORED, 2, stored=2) == one.write([one.row(0, timestamp=old), one.row(1)], 0, 2)
    assert 2 == len(one.stored("id"))


@pytest.mark.parametrize("careful", [0, 1])
def test_duplicate_missing_day_and_refused_row_in_one_batch(make: Callable[[], Partition], careful: int) -> None:
    """A batch with every kind of trouble at once is answered, in any order of the troubles, and never kills the actor."""
    for order in itertools.permutations(["duplicate", "missing", "refused"]):
        one = make()
        one.write([one.row(0, timestamp=TODAY_US + at) for at in range(3)], 0, 3)
        one.writer.careful_batches = careful
        trouble = {
            "duplicate": lambda at, one=one: one.row(at, timestamp=TODAY_US + at - 3),
            "missing": lambda at, one=one: one.row(at, timestamp=TODAY_US - (301 + random.randrange(3000)) * DAY_US),
            "refused": lambda at, one=one: one.row(at, status="BROKEN"),
        }
        # COPY meets rows in the order of device ids.
        suffixes = ("humidity", "pressure", "temperature")
        rows = [trouble[name](3 + i) for i, name in enumerate(order)]
        for row, suffix in zip(rows, suffixes, strict=True):
            if row["status"] == "BROKEN" or row["timestamp"] < TODAY_US:
                row["device_id"] = f"{one.mac}_{suffix}"
        refused = next(row["offset"] for row in rows if row["status"] == "BROKEN")

        assert {refused: "refused:22P02"} == one.write(rows, 3, 6).rejected, order
        answer = one.write([row for row in rows if row["offset"] != refused], 3, 6, dead=1)
        assert WriteAnswer(Outcome.STORED, 6, stored=1, duplicate=1) == answer, order


def test_refused_rows_are_found_by_halving(one: Partition) -> None:
    """Each row that the database refuses as data is named with its reason; without them the batch is stored."""
    rows = [one.row(offset) for offset in range(40)]
    rows[7] |= {"battery_level": 101.0}
    rows[8] |= {"latitude": None}
    rows[31] |= {"status": "BROKEN"}
    expected = {7: "refused:battery_level_percent", 8: "refused:coordinates_paired", 31: "refused:22P02"}

    assert WriteAnswer(Outcome.REJECTED, 0, rejected=expected) == one.write(rows, 0, 40)
    assert counts() == one.ledger()
    assert Outcome.STORED is one.write([row for row in rows if row["offset"] not in expected], 0, 40, dead=3).outcome
    assert 37 == len(one.stored("id"))


def test_position_rules(one: Partition) -> None:
    """Before the ledger is done already, exactly there goes, anything else is read again; nothing is stored twice."""
    rows = [one.row(offset) for offset in range(4)]
    one.write(rows[:2], 0, 2)

    assert WriteAnswer(Outcome.ALREADY_DONE, 2) == one.write(rows[:2], 0, 2)
    assert WriteAnswer(Outcome.ALREADY_DONE, 2) == one.write(rows[:1], 0, 1)
    assert WriteAnswer(Outcome.REWIND, 2) == one.write(rows[:3], 0, 3)
    assert WriteAnswer(Outcome.REWIND, 2) == one.write(rows[3:], 3, 4)
    assert Outcome.STORED is one.write(rows[2:], 2, 4).outcome
    assert counts(next_offset=4, records=4, stored=4) == one.ledger()


@pytest.mark.parametrize("change", [{"epoch": 99}, {"epoch": 0}, {"owner": "consume/0#2"}])
def test_batch_of_another_claim_is_refused(one: Partition, change: dict[str, Any]) -> None:
    """Another epoch or owner stores nothing and stops its sender."""
    stale = replace(one.batch([one.row(0)], 0, 1), claim=replace(one.claim, **change))
    with pytest.raises(StaleClaim):
        one.store.write(one.writer, stale, now_us())
    one.writer.connection.rollback()
    assert [] == one.stored("id")
    assert counts() == one.ledger()


def test_claim_between_look_and_commit_rolls_the_rows_back(one: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition claimed away while its rows were being copied keeps neither the rows nor the offset."""
    copy_binary = one.writer.connection.copy_binary

    def claimed_meanwhile(*arguments: Any) -> None:
        copy_binary(*arguments)
        one.owner.execute(
            "UPDATE ingest_ledger SET epoch = epoch + 1 WHERE pipeline = %s AND partition = %s", (one.settings.pipeline, one.number)
        )

    monkeypatch.setattr(one.writer.connection, "copy_binary", claimed_meanwhile)
    with pytest.raises(StaleClaim):
        one.write([one.row(0)], 0, 1)
    one.writer.connection.rollback()
    assert [] == one.stored("id")
    assert counts() == one.ledger()


def test_ledger_cannot_miscount(one: Partition) -> None:
    """The database itself refuses counters that do not add up, and that is no data error."""
    with pytest.raises(LedgerBroken) as refused:
        one.owner.execute("UPDATE ingest_ledger SET records = records + 1 WHERE pipeline = %s", (one.settings.pipeline,))
    assert "ledger_conserves" == refused.value.constraint


def test_snapshot_is_stored_in_the_transaction_of_its_batch(one: Partition) -> None:
    """The detector's state of a batch is there exactly when the batch is, written by the same transaction as ledger and rows."""
    seen = Ledger(one.owner, one.settings.pipeline)
    first, second = (DetectorSnapshot(one.claim.epoch, at, "v1", bytes([0, 255, at])) for at in (1, 2))
    one.write([one.row(0)], 0, 1, snapshot=first)

    assert first == seen.load_snapshot(one.claim)
    assert Outcome.REJECTED is one.write([one.row(1, status="BROKEN")], 1, 2, snapshot=second).outcome
    assert first == seen.load_snapshot(one.claim)
    one.write([one.row(1)], 1, 2, snapshot=second)
    assert second == seen.load_snapshot(one.claim)
    ((snapshot, ledger),) = one.owner.execute(
        "SELECT s.xmin::text, l.xmin::text FROM detector_snapshots s JOIN ingest_ledger l USING (pipeline, topic, partition)"
        " WHERE pipeline = %s AND partition = %s",
        (one.settings.pipeline, one.number),
    )
    assert ledger == snapshot
    assert [(ledger,)] == one.stored("xmin::text")[1:]


HOSTILE = [
    "'); DROP TABLE sensor_readings; --",
    "\\N",
    "\\",
    "a\tb\nc\r",
    '"{}",',
    "\U0001f321️ +21 °C",
    "",
    " ",
    "NULL",
    "\x01\x7f\u2028",
    "ä" * 5_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_read_back_identical(one: Partition, text: str) -> None:
    """Quotes, backslashes, control characters, emoji and long texts come back as they were sent, on both paths."""
    row = one.row(
        0, building=text, zone=text, room=text, firmware_version=text, gateway_id=text, unit=text, device_type=(text or "x")[:60],
        tags=[text[:60], "b"], device_metadata=[("k" + text, text), ("k", "v")],
    )  # fmt: skip
    one.write([row], 0, 1)
    one.writer.careful_batches = 1
    one.write([row | {"offset": 1, "timestamp": row["timestamp"] + 1}], 1, 2)
    columns = "building, zone, room, firmware_version, gateway_id, unit, tags, device_metadata"

    assert [(text,) * 6 + ([text[:60], "b"], {"k": "v", "k" + text: text} if text else {"k": "v"})] * 2 == one.stored(columns)


def test_own_columns_are_stored_only_when_they_differ(one: Partition) -> None:
    """A reading that says what its device says leaves it to the device; another keeps all of its own; the view shows both whole."""
    place = one.settings.place
    one.write([one.row(0), one.row(1, room="sauna"), one.row(2, tags=None, device_metadata=None)], 0, 3)

    assert [
        (False, None, None, None),
        (True, "sauna", place.building, ["ruuvitag", "ble", "temperature"]),
        (True, place.room, place.building, None),
    ] == one.stored("overrides_device, room, building, tags")
    metadata = {"parent_device": one.mac, "sensor_type": "temperature"}
    assert [(place.room, metadata), ("sauna", metadata), (place.room, None)] == one.stored("room, device_metadata", "readings")
    assert [(["ruuvitag", "ble", "temperature"], place.latitude, place.floor)] == one.stored("tags, latitude, floor", "readings")[:1]


def test_view_joins_the_device_of_the_readings_time(make: Callable[[], Partition]) -> None:
    """After a device moved, old readings show the old place and new ones the new, and a late reading keeps its own words."""
    one = make()
    moved_us = TODAY_US + 10 * SECOND_US
    one.write([one.row(0)], 0, 1)
    one.owner.execute(
        "INSERT INTO devices SELECT device_id, to_timestamp(%s / 1e6), latitude, longitude, building, floor, zone, 'attic', firmware_version,"
        ' device_metadata || \'{"note": "moved"}\', tags FROM devices WHERE device_id LIKE %s',
        (moved_us, f"{one.mac}%"),
    )
    one.store = BatchStore(one.settings.place)  # a writer that starts after the move
    moved = [*one.row(0)["device_metadata"], ("note", "moved")]
    one.write([one.row(5), one.row(11), one.row(12, room="attic", device_metadata=moved), one.row(13, room="attic")], 1, 14)

    assert [("room-101", None), ("room-101", None), ("room-101", None), ("attic", "moved"), ("attic", None)] == one.stored(
        "room, device_metadata ->> 'note'", "readings"
    )
    assert [(False,), (True,), (True,), (False,), (True,)] == one.stored("overrides_device")


def test_foreign_devices_keep_their_own_columns(one: Partition) -> None:
    """A device that configuration does not know is stored with everything its record says."""
    metadata = [("parent_device", "x"), ("a", "b")]
    one.write([one.row(0, device_id=f"co2-{one.mac}", room="lab", device_metadata=metadata)], 0, 1)

    assert [(True, "lab", dict(metadata))] == one.stored("overrides_device, room, device_metadata")
    assert [] == one.owner.execute("SELECT 1 FROM devices WHERE device_id = %s", (f"co2-{one.mac}",))


def test_broken_connection_is_the_database_away(one: Partition) -> None:
    """A backend that ends is DatabaseUnavailable, never a data error, and nothing is stored."""
    one.claims.claim_partition(one.settings.kafka.topic, IDENTITY, one.number, 0, "consume/0#2")
    with pytest.raises(DatabaseUnavailable):
        one.write([one.row(0)], 0, 1)
    assert [] == one.stored("id")
    one.claimed()
    assert Outcome.STORED is one.write([one.row(0)], 0, 1).outcome


def test_metadata_is_json(one: Partition) -> None:
    """Stored metadata can be asked for by key, and device rows hold what configuration says."""
    one.write([one.row(0, "acceleration_x", room="lab")], 0, 1)
    ((text,),) = one.stored("device_metadata::text")

    assert {"parent_device": one.mac, "sensor_type": "acceleration", "axis": "x"} == json.loads(text)
    assert [("x", ["ruuvitag", "ble", "acceleration", "x-axis"])] == one.owner.execute(
        "SELECT device_metadata ->> 'axis', tags FROM devices WHERE device_id = %s", (f"{one.mac}_acceleration_x",)
    )
