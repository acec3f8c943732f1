"""One MQTT payload becomes one validated message, or the reason why it cannot.

Each payload is parsed on its own: joined into one JSON array, two broken
payloads could pass as three valid ones. A bad field makes the whole message a
dead letter; an absent or null field is no reading. The reason is a short
stable word with the field, e.g. `bad_value:temperature`, because people count
dead letters by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

RELATIVE_BELOW = 10_000_000
"""A number below this is a tag's uptime, not a time: the arrival time is used (rule of the documented adapter)."""
MILLISECONDS_FROM = 100_000_000_000
"""A number from here on is epoch milliseconds; below, epoch seconds."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Number = Annotated[float, Field(allow_inf_nan=False)]


@with_config(ConfigDict(strict=True, extra="ignore"))
class Message(TypedDict):
    """The fields of a `ruuvitag/data` payload that we use; unknown keys are ignored."""

    device_id: Annotated[str, Field(pattern=r"^(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$")]
    timestamp: NotRequired[Annotated[str, Field(max_length=64)] | Number | None]
    temperature: NotRequired[Number | None]
    humidity: NotRequired[Number | None]
    pressure: NotRequired[Number | None]
    acceleration_x: NotRequired[Number | None]
    acceleration_y: NotRequired[Number | None]
    acceleration_z: NotRequired[Number | None]
    battery_voltage: NotRequired[Number | None]
    tx_power: NotRequired[Number | None]
    movement_counter: NotRequired[Number | None]
    rssi: NotRequired[Number | None]
    measurement_sequence: NotRequired[Annotated[int, Field(ge=0, le=2**53)] | None]
    gateway_id: NotRequired[Annotated[str, Field(max_length=255, pattern=r"^[^\x00]*$")] | None]


_ADAPTER: TypeAdapter[Message] = TypeAdapter(Message)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a payload is a dead letter."""

    reason: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A valid message with its time.

    Attributes:
        fields: the message's fields, device_id in canonical form.
        time_us: when the gateway took the reading, epoch microseconds.
        own_time: False when the message carried no usable time and got the arrival time.
    """

    fields: Message
    time_us: int
    own_time: bool


def parse(payload: bytes, arrived_us: int, *, oldest_us: int, newest_us: int) -> Parsed | Rejected:
    """Validate one payload.

    Args:
        payload: raw bytes from the broker.
        arrived_us: arrival time, used where the message has no time of its own.
        oldest_us: a reading before this is rejected (`time_out_of_range`).
        newest_us: a reading after this is rejected.
    """
    try:
        fields = _ADAPTER.validate_json(payload)
    except ValidationError as error:
        return Rejected(_reason(error))
    fields["device_id"] = fields["device_id"].lower().replace("-", ":")
    time_us = parse_time_us(fields.get("timestamp"))
    if isinstance(time_us, Rejected):
        return time_us
    if time_us is None:
        return Parsed(fields, arrived_us, own_time=False)
    if not oldest_us <= time_us <= newest_us:
        return Rejected("time_out_of_range:timestamp")
    return Parsed(fields, time_us, own_time=True)


def parse_time_us(value: str | float | None) -> int | Rejected | None:  # noqa: PLR0911 - a table of rules, one return a rule
    """Return epoch microseconds, None for "use the arrival time", or why the time is unusable.

    ISO-8601 (with a `T`; without a zone it is UTC; finer than a microsecond is
    cut), epoch seconds or milliseconds as number or digits. Missing or
    relative (below 10,000,000) means arrival time.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if "T" in value and "\0" not in value:  # fromisoformat takes a NUL at the end for the text's own
            try:
                moment = datetime.fromisoformat(value)
                if moment.tzinfo is None:
                    moment = moment.replace(tzinfo=UTC)
                return (moment - _EPOCH) // _MICROSECOND
            except (ValueError, OverflowError):
                return Rejected("bad_time:timestamp")
        if not value.isascii() or not value.replace(".", "", 1).isdigit():
            return Rejected("bad_time:timestamp")
        value = float(value)
    if value < RELATIVE_BELOW:
        return None if value >= 0 else Rejected("bad_time:timestamp")
    if value >= 1e15:
        return Rejected("bad_time:timestamp")
    return round(value * (1e3 if value >= MILLISECONDS_FROM else 1e6))


_REASONS: dict[str, Literal["not_json", "missing", "bad_mac", "not_finite"]] = {
    "json_invalid": "not_json",
    "typed_dict_type": "not_json",
    "missing": "missing",
    "string_pattern_mismatch": "bad_mac",
    "finite_number": "not_finite",
}


def _reason(error: ValidationError) -> str:
    """Return the first problem as a countable word; union branches point at the field, not at the branch."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind = _REASONS.get(problem["type"], "bad_value")
    if kind == "not_json" or not problem["loc"]:
        return "not_json"
    field = str(problem["loc"][0])
    if kind == "bad_mac" and field != "device_id":
        return f"bad_value:{field}"
    return f"{kind}:{field}"
