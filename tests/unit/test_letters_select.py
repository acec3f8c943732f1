"""Dead letters without a server: copies become letters, ids tell places, filters choose, states follow copies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from builders import MAC, framed, message

from actors.dead_letters import of_message, of_record
from rayapp.errors import ConfigurationError
from rayapp.letters.letter import Decision, Letter, add_copy, apply_decisions, coordinates, copy_of, device_in, state_key
from rayapp.letters.select import Filters, count_by, matches, named, parse_moment

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000


def headers(**changes: str) -> dict[str, str]:
    return {
        "id": "t/0/7",
        "reason": "undecodable",
        "stage": "consume",
        "time": str(NOW_US),
        "topic": "t",
        "partition": "0",
        "offset": "7",
    } | changes


def letters(*copies: dict[str, str], value: bytes = b"x") -> dict[str, Letter]:
    made: dict[str, Letter] = {}
    for offset, of in enumerate(copies):
        add_copy(made, copy_of((0, offset), value, of))
    return made


def one(value: bytes = b"x", **changes: str) -> Letter:
    (letter,) = letters(headers(**changes), value=value).values()
    return letter


def test_copies_of_one_id_are_one_letter() -> None:
    """Copies are counted; bytes, stage and place are the first one's, the reason is the last one's."""
    found = letters(headers(), headers(id="t/0/8"), headers(reason="conflict", stage="write", time=str(NOW_US + 5), offset="99"))
    letter = found["t/0/7"]

    assert ["t/0/7", "t/0/8"] == list(found)
    assert (2, "conflict", "consume", 7, NOW_US, NOW_US + 5) == (
        letter.copies, letter.reason, letter.first.stage, letter.first.offset, letter.first.time_us, letter.last_us
    )  # fmt: skip


@pytest.mark.parametrize(
    ("letter_id", "stage", "expected"),
    [
        ("iot-sensor-data/3/41", "consume", ("iot-sensor-data", 3, 41)),
        ("a.b_c/0/0", "write", ("a.b_c", 0, 0)),
        ("ruuvi/gw/1/2/" + "a" * 32, "ingest", ("ruuvi/gw/1/2", None, None)),
        ("ruuvi/1/2", "ingest", ("ruuvi/1/2", None, None)),
        ("nonsense", "consume", ("nonsense", None, None)),
    ],
)
def test_older_records_tell_their_place_by_their_id(letter_id: str, stage: str, expected: tuple[str, Any, Any]) -> None:
    """An id is enough to know topic, partition and offset; an MQTT topic keeps its slashes and numbers."""
    assert expected == coordinates(letter_id, stage)
    bare = {"id": letter_id, "stage": stage, "reason": "r", "time": "1"}
    copy = copy_of((0, 0), b"", bare)
    assert expected == (copy.topic, copy.partition, copy.offset)


def test_letters_as_the_actors_write_them() -> None:
    """What actors send comes back as it was: topic, place and time."""
    mqtt = of_message("ruuvi/1/2", message(), "bad_value:rssi", 5)
    kafka = of_record("t", 2, 9, b"x", "not_framed", "consume", 6)
    for letter, expected in ((mqtt, ("ruuvi/1/2", None, None, 5)), (kafka, ("t", 2, 9, 6))):
        copy = copy_of((0, 0), letter.value, {name: value.decode() for name, value in letter.headers().items()})
        assert (letter.id, *expected) == (copy.id, copy.topic, copy.partition, copy.offset, copy.time_us)


def test_a_record_without_headers_is_a_letter_of_its_own() -> None:
    """What somebody else wrote into the topic is listed, not fatal."""
    copy = copy_of((0, 4), b"\xff", {"time": "yesterday"})
    assert ("?/0/4", "unknown", 0) == (copy.id, copy.reason, copy.time_us)


def test_device_is_found_in_json_avro_and_rubble() -> None:
    """The tag's MAC is found in whatever bytes hold it."""
    assert [MAC] * 3 == [device_in(message()), device_in(framed()), device_in(b'{"device_id": "C6-8D-C6-26-39-A6", ')]
    assert device_in(b"\x00\xff") is None


@pytest.mark.parametrize(
    ("changes", "meant"),
    [
        ({}, True),
        ({"reason": "bad_*"}, True),
        ({"reason": "bad"}, False),
        ({"stage": "write"}, False),
        ({"ids": ("t/1", "t/0/7")}, True),
        ({"ids": ("t/1",)}, False),
        ({"since_us": NOW_US}, True),
        ({"since_us": NOW_US + 1}, False),
        ({"until_us": NOW_US}, False),
        ({"until_us": NOW_US + 1}, True),
        ({"device": MAC.upper().replace(":", "-")}, True),
        ({"device": f"{MAC}_temperature"}, True),
        ({"device": "00:00:00:00:00:00"}, False),
        ({"state": "replayed"}, False),
        ({"state": "all"}, True),
    ],
)
def test_filters(changes: dict[str, Any], meant: bool) -> None:
    """Each filter lets through what it says and nothing else."""
    assert meant is matches(one(framed(), reason="bad_value:value"), Filters(**changes))


@pytest.mark.parametrize(
    ("decided", "copies_then", "state", "listed"),
    [("replayed", 1, "replayed", False), ("replayed", 0, "refused", True), ("dropped", 0, "dropped", False)],
)
def test_replayed_letter_that_came_back_is_not_hidden(decided: str, copies_then: int, state: str, listed: bool) -> None:
    """A replayed letter of which a copy came since is `refused` and stands in the list of new ones again."""
    letter = one()
    apply_decisions([letter], {state_key(letter.id): Decision(decided, "then", "me", "", copies_then)})
    assert (state, listed) == (letter.state, matches(letter, Filters()))


def test_state_key_of_huge_topics_fits_an_index() -> None:
    """Ids of old letters may be longer than an index entry; they stay apart all the same."""
    long = "t" * 60_000
    assert "t/0/1" == state_key("t/0/1")
    assert len(state_key(long)) < 1_000
    assert state_key(long + "a") != state_key(long + "b")


def test_ids_name_letters() -> None:
    """A whole id wins over its prolongations, a beginning must be of one letter only, an unknown one is said."""
    every = list(letters(headers(id="t/0/7"), headers(id="t/0/77"), headers(id="u/1/1")).values())

    assert ["t/0/7", "u/1/1"] == [letter.id for letter in named(every, ("t/0/7", "u", "u/1/1"))]
    with pytest.raises(ConfigurationError, match="2 letters begin so"):
        named(every, ("t/0",))
    with pytest.raises(ConfigurationError, match="no such letter"):
        named(every, ("v",))


def test_moments() -> None:
    """Times are ISO, without a zone UTC, or ages."""
    assert int((NOW - timedelta(hours=2)).timestamp()) * 1_000_000 == parse_moment("2h", NOW)
    assert NOW_US == parse_moment("2026-03-01T12:00", NOW) == parse_moment("2026-03-01T14:00+02:00", NOW)
    for wrong in ("", "h", "2y", "-2h", "soon", "²h"):
        with pytest.raises(ConfigurationError, match="must be ISO"):
            parse_moment(wrong, NOW)


def test_counts() -> None:
    """Letters are counted, not copies; days are those of the first copy in UTC."""
    every = letters(headers(), headers(), headers(id="x/0/1", reason="conflict", time="99999999999999999999")).values()

    assert {"undecodable": 1, "conflict": 1} == count_by(every, "reason")
    assert 1 == count_by(every, "day")["2026-03-01"]
    assert {"consume": 2} == count_by(every, "stage")
    assert {"unknown": 2} == count_by(every, "device")
