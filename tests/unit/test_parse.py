"""parse(): one payload in, a valid message or a reason out, whatever the bytes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from builders import MAC, NEWEST_US, NOW_US, OLDEST_US, message
from hypothesis import given
from hypothesis import strategies as st

from actors.ingest.parse import Parsed, Rejected, parse, parse_time_us

NUMBERS = (
    "temperature", "humidity", "pressure", "acceleration_x", "acceleration_y", "acceleration_z", "battery_voltage", "tx_power",
    "movement_counter", "rssi",
)  # fmt: skip


def parsed(payload: bytes) -> Parsed | Rejected:
    return parse(payload, NOW_US, oldest_us=OLDEST_US, newest_us=NEWEST_US)


def reason(payload: bytes) -> str:
    outcome = parsed(payload)
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason


def is_sound(outcome: Parsed | Rejected) -> bool:
    """True for the two outcomes there may be, with nothing in them that the table or Kafka could not hold."""
    if isinstance(outcome, Rejected):
        return bool(outcome.reason) and outcome.reason.isascii() and len(outcome.reason) < 80
    numbers = [outcome.fields.get(name) for name in NUMBERS]
    return (
        OLDEST_US <= outcome.time_us <= NEWEST_US
        and outcome.fields["device_id"] == outcome.fields["device_id"].lower()
        and len(outcome.fields["device_id"]) == 17
        and all(number is None or (isinstance(number, float | int) and math.isfinite(number)) for number in numbers)
        and all(not isinstance(number, bool) for number in numbers)
    )


def test_message_of_the_document_is_parsed() -> None:
    """A complete message comes out with its numbers, its MAC in lower case and its own time."""
    outcome = parsed(message())

    assert isinstance(outcome, Parsed)
    assert (outcome.fields["device_id"], outcome.fields["temperature"], outcome.own_time) == (MAC, 21.5, True)
    assert outcome.time_us == 1_790_000_000_000_000


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_rejected(payload: bytes) -> None:
    """Arbitrary bytes never raise."""
    assert is_sound(parsed(payload))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from(["device_id", "timestamp", "gateway_id", "measurement_sequence", *NUMBERS]), json_values), st.booleans()
)
def test_any_json_in_known_fields_is_parsed_or_rejected(changes: dict[str, Any], keep_mac: bool) -> None:
    """Known fields with values of any JSON type never raise and never pass a number that is none."""
    if keep_mac:
        changes["device_id"] = MAC
    assert is_sound(parsed(message(**changes)))


@given(st.data())
def test_mutated_payloads_are_parsed_or_rejected(data: st.DataObject) -> None:
    """A good payload with bytes replaced, removed or inserted never raises."""
    payload = bytearray(message())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    assert is_sound(parsed(bytes(payload)))


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"", "not_json"),
        (b"null", "not_json"),
        (b"[]", "not_json"),
        (b'"text"', "not_json"),
        (message()[:-1], "not_json"),
        (message() + message(), "not_json"),
        (message() + b",", "not_json"),
        (b"\xff\xfe" + message(), "not_json"),
        (message(note="x").replace(b"x", b"\xff"), "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"a":' * 100_000, "not_json"),
        (message(device_id=...), "missing:device_id"),
        (message(device_id=None), "bad_value:device_id"),
        (message(device_id=17), "bad_value:device_id"),
        (message(device_id=""), "bad_mac:device_id"),
        (message(device_id=MAC + "\n"), "bad_mac:device_id"),
        (message(device_id=MAC + "_temperature"), "bad_mac:device_id"),
        (message(device_id="c68dc62639a6"), "bad_mac:device_id"),
        (message(device_id="c6:8d:c6:26:39:g6"), "bad_mac:device_id"),
        (message(device_id="c6:8d:c6:26:39:a6\x00"), "bad_mac:device_id"),
        (message(temperature="22.5"), "bad_value:temperature"),
        (message(temperature=True), "bad_value:temperature"),
        (message(temperature=[1]), "bad_value:temperature"),
        (message(temperature=math.nan), "not_finite:temperature"),
        (message(temperature=math.inf), "not_finite:temperature"),
        (message(temperature=-math.inf), "not_finite:temperature"),
        (message(humidity=1234).replace(b"1234", b"1e999"), "not_finite:humidity"),
        (message(humidity=1234).replace(b"1234", b"-1e999"), "not_finite:humidity"),
        (message(humidity=1234).replace(b"1234", b"9" * 400), "not_finite:humidity"),
        (message(measurement_sequence=-1), "bad_value:measurement_sequence"),
        (message(measurement_sequence=2**53 + 1), "bad_value:measurement_sequence"),
        (message(measurement_sequence=1.5), "bad_value:measurement_sequence"),
        (message(gateway_id="g" * 256), "bad_value:gateway_id"),
        (message(gateway_id="g\x00"), "bad_value:gateway_id"),
        (message(gateway_id=5), "bad_value:gateway_id"),
        (message(timestamp=True), "bad_value:timestamp"),
        (message(timestamp={}), "bad_value:timestamp"),
        (message(timestamp=math.nan), "bad_value:timestamp"),
        (message(timestamp="1" * 65), "bad_value:timestamp"),
    ],
)
def test_bad_payload_is_rejected_with_a_countable_reason(payload: bytes, expected: str) -> None:
    """What is wrong with a payload is one stable word and the field."""
    assert expected == reason(payload)


@pytest.mark.parametrize("text", ["g" * 255, "gw \U0001f321", "'; DROP TABLE sensor_readings; --", ""])
def test_gateway_names_are_taken_as_they_are(text: str) -> None:
    """A gateway's name may hold any characters but NUL."""
    outcome = parsed(message(gateway_id=text))

    assert isinstance(outcome, Parsed)
    assert text == outcome.fields["gateway_id"]


def test_unknown_keys_are_ignored() -> None:
    """Ten thousand keys that nobody knows, and strange values under them, change nothing."""
    extra: dict[str, Any] = {f"key{i}": i for i in range(10_000)}
    outcome = parsed(message(**extra, other=math.nan, nested={"a": [1, {"b": None}]}, text="\x00"))

    assert parsed(message()) == outcome


def test_absent_and_null_fields_are_no_reading() -> None:
    """A field that is null or not there is not zero."""
    outcome = parsed(message(temperature=None, humidity=...))

    assert isinstance(outcome, Parsed)
    assert (outcome.fields.get("temperature"), outcome.fields.get("humidity")) == (None, None)


def test_two_broken_payloads_never_heal_each_other() -> None:
    """Halves that only together are JSON are two dead letters."""
    whole = message()

    assert [reason(whole[:40]), reason(whole[40:])] == ["not_json", "not_json"]


@pytest.mark.parametrize("mac", [MAC.upper(), MAC.replace(":", "-"), MAC.upper().replace(":", "-")])
def test_spellings_of_a_mac_are_one_device(mac: str) -> None:
    """Case and separator of a MAC do not make another device."""
    outcome = parsed(message(device_id=mac))

    assert isinstance(outcome, Parsed)
    assert outcome.fields["device_id"] == MAC


BAD = Rejected("bad_time:timestamp")
S = 1_790_000_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None), (0, None), (9_999_999, None), (9_999_999.9, None), ("123", None), ("0", None), ("9999999.5", None), (-0.0, None),
        (10_000_000, 10_000_000_000_000), ("10000000", 10_000_000_000_000),
        (S, S * 10**6), (str(S), S * 10**6), (S + 0.5, S * 10**6 + 500_000), (f"{S}.25", S * 10**6 + 250_000), (f"{S}.", S * 10**6),
        (f"{S}.123456", S * 10**6 + 123_456), (99_999_999_999, 99_999_999_999_000_000),
        (100_000_000_000, 100_000_000_000_000), (S * 1000, S * 10**6), (S * 1000 + 1.5, S * 10**6 + 1_500), (f"{S}123", S * 10**6 + 123_000),
        ("2026-09-21T14:13:20Z", S * 10**6), ("2026-09-21T14:13:20", S * 10**6), ("2026-09-21T16:13:20+02:00", S * 10**6),
        ("2026-09-21T14:13:20.123456Z", S * 10**6 + 123_456), ("2026-09-21T14:13:20.1234569Z", S * 10**6 + 123_456),
        ("2026-09-21T14:13", S * 10**6 - 20_000_000), ("1969-12-31T23:59:59.999999Z", -1),
        ("2026-09-21 14:13:20", BAD), ("2026-09-21", BAD), ("T", BAD), ("2026-13-01T00:00:00Z", BAD), ("2026-02-30T00:00:00Z", BAD),
        ("2026-09-21T14:13:60Z", BAD), ("2026-09-21T14:13:20Zx", BAD), ("2026-09-21T14:13:20\x00", BAD),
        ("", BAD), (".", BAD), ("-5", BAD), ("+5", BAD), ("1e9", BAD), ("1.2.3", BAD), ("nan", BAD), ("inf", BAD), ("now", BAD), (" 5", BAD),
        ("١٢٣٤٥٦٧٨٩٠", BAD), ("²", BAD), (-1, BAD), (-0.5, BAD), (1e15, BAD), (1e300, BAD), ("9" * 60, BAD),
    ],
)  # fmt: skip
def test_time_rules(value: str | float | None, expected: int | Rejected | None) -> None:
    """Times follow the table: ISO with a T, epoch seconds or milliseconds, small numbers mean arrival, all else is refused."""
    assert expected == parse_time_us(value)


@given(st.text(max_size=64) | st.floats() | st.integers() | st.from_regex(r"\A[0-9T:Z+\-. ]{0,32}\Z"))
def test_any_time_is_a_time_or_a_reason(value: str | float) -> None:
    """No text and no number makes the time parser raise."""
    if not isinstance(value, float) or math.isfinite(value):
        found = parse_time_us(value)

        assert found is None or isinstance(found, int | Rejected)


@pytest.mark.parametrize(
    ("timestamp", "own_time"), [(..., False), (None, False), (12_345, False), ("12345", False), (S, True), ("2026-09-21T14:13:20Z", True)]
)
def test_arrival_time_is_used_and_said(timestamp: Any, own_time: bool) -> None:
    """A message without a time of its own gets the arrival time and says so."""
    outcome = parsed(message(timestamp=timestamp))

    assert isinstance(outcome, Parsed)
    assert (NOW_US, own_time) == (outcome.time_us, outcome.own_time)


@pytest.mark.parametrize(("distance", "accepted"), [(0, True), (1, False)])
def test_times_out_of_range_are_rejected(distance: int, accepted: bool) -> None:
    """The oldest and the newest moment are in, a microsecond beyond is out."""
    for edge, sign in ((OLDEST_US, -1), (NEWEST_US, 1)):
        moment = edge + sign * distance
        text = f"{moment // 10**6}.{moment % 10**6:06d}"

        assert accepted == isinstance(parsed(message(timestamp=text)), Parsed)
    assert reason(message(timestamp=json.loads("20000000"))) == "time_out_of_range:timestamp"
