"""Which letters a person means: filters, times as people write them, counts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from rayapp.errors import ConfigurationError
from rayapp.letters.letter import Letter

STATES = ("new", "refused", "replayed", "dropped", "all")
COUNTED_BY = ("reason", "stage", "day", "device")
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


@dataclass(frozen=True)
class Filters:
    """What must be true of a letter; None = anything.

    Attributes:
        reason: pattern with * and ?, e.g. `bad_value:*`.
        since_us: the last copy was judged at or after this, epoch microseconds.
        until_us: the first copy was judged before this.
        ids: the id begins with one of these; empty = any.
        device: MAC of the tag, or the device_id of one of its sensors.
        state: one of STATES; `new` takes `refused` along, because both wait for a person.
    """

    reason: str | None = None
    stage: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    ids: tuple[str, ...] = ()
    device: str | None = None
    state: str = "new"


def matches(letter: Letter, wanted: Filters) -> bool:
    """Return whether a letter is meant."""
    device = wanted.device.lower().replace("-", ":").partition("_")[0] if wanted.device else None
    states = {"new": ("new", "refused"), "all": STATES}.get(wanted.state, (wanted.state,))
    return (
        letter.state in states
        and (wanted.reason is None or fnmatchcase(letter.reason, wanted.reason))
        and (wanted.stage is None or letter.first.stage == wanted.stage)
        and (wanted.since_us is None or letter.last_us >= wanted.since_us)
        and (wanted.until_us is None or letter.first.time_us < wanted.until_us)
        and (not wanted.ids or letter.id.startswith(wanted.ids))
        and (device is None or letter.first.device == device)
    )


def named(letters: Iterable[Letter], ids: tuple[str, ...]) -> list[Letter]:
    """Return the letters that ids name: whole ids, or beginnings that only one letter has.

    Raises:
        ConfigurationError: an id names no letter, or several.
    """
    every, found = list(letters), []
    for wanted in ids:
        exact = [letter for letter in every if letter.id == wanted]
        begun = exact or [letter for letter in every if letter.id.startswith(wanted)]
        if len(begun) != 1:
            some = ", ".join(letter.id for letter in begun[:3])
            raise ConfigurationError(
                f"ID = {wanted}: "
                + (
                    f"{len(begun)} letters begin so ({some} …); write more of it"
                    if begun
                    else "no such letter; `rayapp dlq list --state all`"
                )
            )
        found.append(begun[0])
    return list({letter.id: letter for letter in found}.values())


def parse_moment(text: str, now: datetime) -> int:
    """Return epoch microseconds of a time as people write it: ISO (without a zone: UTC), or `2h` = that long ago (s, m, h, d, w).

    Raises:
        ConfigurationError: it is neither.
    """
    number, unit = text[:-1], text[-1:]
    if unit in _UNITS_S and number.isascii() and number.isdigit() and len(number) < 9:
        moment = now - timedelta(seconds=int(number) * _UNITS_S[unit])
    else:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigurationError(f"time = {text}: must be ISO like 2026-03-01T12:00 (UTC) or an age like 90m, 2h, 3d") from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def iso(time_us: int) -> str:
    """Return epoch microseconds as ISO text in UTC, to the millisecond; a time out of reason as its number."""
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{time_us} us"


def count_by(letters: Iterable[Letter], what: str) -> Counter[str]:
    """Return how many letters have each reason, stage, day (of the first copy) or device."""
    return Counter(_name(letter, what) for letter in letters)


def _name(letter: Letter, what: str) -> str:
    """Return under which name a letter is counted."""
    match what:
        case "reason":
            return letter.reason
        case "stage":
            return letter.first.stage
        case "day":
            return iso(letter.first.time_us)[:10]
        case _:
            return letter.first.device or "unknown"
