"""Replaying dead letters without a server: today's judgement, and no state before every report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import MAC, SCHEMA_ID, codec, framed, message

from actors.adapters.kafka import LETTER_ID_HEADER
from actors.base import now_us
from actors.partitioner import partition_of
from rayapp.config import Settings
from rayapp.errors import DeliveryFailed
from rayapp.letters.judge import Judge, Outgoing, Verdict
from rayapp.letters.letter import Letter, add_copy, copy_of
from rayapp.letters.replay import Replayer
from rayapp.letters.view import why_skipped

TOPIC = "iot-sensor-data"
NOW_US = now_us()


def letter(letter_id: str = f"{TOPIC}/3/7", stage: str = "consume", time_us: int = NOW_US, reason: str = "undecodable") -> Letter:
    found: dict[str, Letter] = {}
    add_copy(found, copy_of((0, 0), b"", {"id": letter_id, "reason": reason, "stage": stage, "time": str(time_us)}))
    return found[letter_id]


@pytest.fixture
def judge() -> Judge:
    return Judge(Settings(), codec(), SCHEMA_ID, lambda _id: None)


def test_message_becomes_the_same_readings_every_time(judge: Judge) -> None:
    """A message without a time of its own gets the letter's, so a second replay makes the same rows."""
    letter_of_message = letter("ruuvitag/data/" + "0" * 32, "ingest", NOW_US - 5_000_000)
    verdicts = [judge.judge(letter_of_message, message(timestamp=None)) for _ in range(2)]

    assert verdicts[0] == verdicts[1]
    assert verdicts[0].refused is None
    assert {partition_of(MAC, 6)} == {record.partition for record in verdicts[0].records}
    assert len(verdicts[0].records) == 9
    assert f"{MAC}_temperature" in {record.key for record in verdicts[0].records}


@pytest.mark.parametrize(
    ("made", "value", "reason"),
    [
        (("x/" + "0" * 32, "ingest"), b"{", "not_json"),
        (("x/" + "0" * 32, "ingest"), message(timestamp="2001-01-01T00:00:00Z"), "time_out_of_range:timestamp"),
        (("x/" + "0" * 32, "ingest", 1_000_000_000_000_000), message(timestamp=None), "time_out_of_range:timestamp"),
        ((f"{TOPIC}/3/7",), b"rubble", "not_framed"),
        ((f"{TOPIC}/3/7",), framed(schema_id=99), "unknown_schema"),
        (("another/3/7",), framed(timestamp="%NOW%"), "not_ours:another[3]"),
        ((f"{TOPIC}/6/7",), framed(timestamp="%NOW%"), f"not_ours:{TOPIC}[6]"),
    ],
)
def test_what_is_refused_today_says_why(judge: Judge, made: tuple[Any, ...], value: bytes, reason: str) -> None:
    """Nothing goes out that would only come back; the reason is today's."""
    from datetime import UTC, datetime

    if b"%NOW%" in value:
        value = framed(timestamp=datetime.now(UTC).isoformat())
    assert Verdict(reason, [], judge.judge(letter(*made), value).view) == judge.judge(letter(*made), value)


def test_record_goes_back_as_it_was(judge: Judge) -> None:
    """A Kafka record is sent to its own partition, byte by byte the same."""
    from datetime import UTC, datetime

    value = framed(timestamp=datetime.now(UTC).isoformat())
    assert [Outgoing(3, f"{MAC}_temperature", value)] == judge.judge(letter(), value).records


@pytest.mark.parametrize(
    ("state", "reason", "skipped"),
    [("new", "x", False), ("new", "conflict", True), ("replayed", "x", True), ("refused", "x", True), ("dropped", "x", True)],
)
def test_a_second_run_skips(state: str, reason: str, skipped: bool) -> None:
    """What was decided before, and what will be refused for certain, goes only with --again."""
    one = letter(reason=reason)
    one.state = state
    assert skipped is (why_skipped(one) is not None)


class Producer:
    """A producer whose reports come when the test lets them."""

    def __init__(self, error: str | None = None, room: int = 1_000) -> None:
        self.error, self.room = error, room
        self.waiting: list[Callable[..., None]] = []
        self.sent: list[tuple[bytes, dict[str, bytes], int]] = []

    def produce_one(self, _topic: str, value: bytes, headers: dict[str, bytes], report: Any, *, key: Any, partition: int) -> bool:
        if len(self.waiting) >= self.room:
            return False
        self.waiting.append(report)
        self.sent.append((value, headers, partition))
        return True

    def poll(self, _timeout_s: float = 0.0) -> None:
        if self.waiting:
            self.waiting.pop(0)(self.error, None)


def two_records(_letter: Letter, value: bytes) -> Verdict:
    return Verdict("no" if value == b"bad" else None, [] if value == b"bad" else [Outgoing(1, None, value), Outgoing(1, None, value)], [])


def test_state_is_written_after_every_report() -> None:
    """A letter is called replayed only when the reports of all its records are in; refused ones are named and not sent."""
    producer, decided = Producer(room=3), list[tuple[list[str], int]]()
    replayer = Replayer(
        producer, TOPIC, two_records, lambda letters: decided.append(([one.id for one in letters], len(producer.waiting))),
        rate=None, stop=lambda: False,
    )  # fmt: skip
    tally = replayer.run([(letter("a/0/1"), b"1"), (letter("a/0/2"), b"bad"), (letter("a/0/3"), b"3")])

    assert [(["a/0/1", "a/0/3"], 0)] == decided
    assert (2, 4, {"a/0/2": "no"}) == (tally.letters, tally.records, tally.refused)
    assert [b"a/0/1", b"a/0/1", b"a/0/3", b"a/0/3"] == [headers[LETTER_ID_HEADER] for _, headers, _ in producer.sent]


def test_refused_delivery_writes_no_state() -> None:
    """When Kafka refuses a record, the letters on their way stay as they were."""
    decided: list[Any] = []
    with pytest.raises(DeliveryFailed, match="stay as they were"):
        Replayer(Producer("too large"), TOPIC, two_records, decided.append, rate=None, stop=lambda: False).run([(letter(), b"1")])
    assert not decided


def test_stopping_finishes_what_is_on_its_way() -> None:
    """Asked to stop, it takes no more letters and still writes the states of those it sent."""
    asked = iter([False, True])
    decided: list[list[str]] = []
    tally = Replayer(
        Producer(), TOPIC, two_records, lambda letters: decided.append([one.id for one in letters]), rate=None, stop=lambda: next(asked)
    ).run([(letter("a/0/1"), b"1"), (letter("a/0/2"), b"2")])

    assert (True, [["a/0/1"]]) == (tally.stopped, decided)
