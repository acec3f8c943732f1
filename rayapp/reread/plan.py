"""From what a person wrote to offsets: where each partition's replay begins and ends. Pure.

The end is never beyond the ledger's next_offset: what lies behind it is the
pipeline's to store. What the log no longer holds is an error that says so,
never a smaller range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from rayapp.errors import ConfigurationError
from rayapp.letters.select import parse_moment

START, NEXT = "start", "next"


@dataclass(frozen=True)
class Bound:
    """One end of a range as it was written: a word, an offset, or epoch microseconds; just one of them is set."""

    word: str | None = None
    offset: int | None = None
    time_us: int | None = None


@dataclass(frozen=True)
class Known:
    """What is known of a partition.

    Attributes:
        first: first offset in the log.
        end: next offset of the log.
        next_offset: the ledger's.
    """

    first: int
    end: int
    next_offset: int


def parse_bound(flag: str, text: str, now: datetime) -> Bound:
    """Return what `--from` or `--to` means: an offset, a time, and `start` or `next`.

    Raises:
        ConfigurationError: none of these.
    """
    word = {"--from": START, "--to": NEXT}[flag]
    if text == word:
        return Bound(word=word)
    if text.isascii() and text.isdigit():
        return Bound(offset=int(text))
    try:
        return Bound(time_us=parse_moment(text, now))
    except ConfigurationError:
        raise ConfigurationError(f"{flag} = {text}: must be {word}, an offset, an ISO time (UTC) or an age like 2h, 3d") from None


def resolve(
    topic: str, low: Bound, high: Bound, known: Mapping[int, Known], low_at: Mapping[int, int | None], high_at: Mapping[int, int | None]
) -> dict[int, tuple[int, int]]:
    """Return partition -> (first offset, offset behind the last) of what is to be read; partitions with nothing are left out.

    Args:
        known: the partitions that are meant.
        low_at: partition -> first offset at or after the time of `low`, None = no such record; where `low` is a time.
        high_at: likewise for `high`.

    Raises:
        ConfigurationError: an offset for several partitions, an end beyond the ledger, a range that the log does not hold.
    """
    for flag, bound in (("--from", low), ("--to", high)):
        if bound.offset is not None and len(known) > 1:
            raise ConfigurationError(
                f"{flag} = {bound.offset}: offsets are a partition's own, and {len(known)} are meant; add --partition N"
            )
    ranges = {}
    for partition, facts in sorted(known.items()):
        name = f"{topic}[{partition}]"
        stop = _stop(name, high, facts, high_at.get(partition))
        start = _start(name, low, facts, low_at.get(partition), stop)
        if start < stop:
            ranges[partition] = (start, stop)
    return ranges


def _stop(name: str, high: Bound, facts: Known, at: int | None) -> int:
    limit = facts.next_offset
    if high.offset is not None and high.offset > limit:
        raise ConfigurationError(
            f"--to = {high.offset}: {name} is stored up to offset {limit}, what follows is the pipeline's; use --to next or an offset up to {limit}"
        )
    if limit > facts.end:
        raise ConfigurationError(f"{name}: the ledger is at {limit}, the log ends at {facts.end}; see `rayapp partition list` first")
    if high.offset is not None:
        return high.offset
    return limit if high.time_us is None or at is None else min(at, limit)


def _start(name: str, low: Bound, facts: Known, at: int | None, stop: int) -> int:
    if low.word == START:
        return facts.first
    if low.offset is not None:
        if low.offset < facts.first:
            gone = f"offsets {low.offset}..{min(facts.first, stop) - 1} of {name} are gone, the log begins at {facts.first}"
            raise ConfigurationError(f"--from = {low.offset}: {gone}; use --from start for what is left")
        return low.offset
    if at is None:
        return stop
    if at == facts.first and facts.first > 0 and at < stop:
        raise ConfigurationError(
            f"--from: {name} begins at offset {facts.first}, all of it later than that time: what came before is gone; "
            "use --from start for what is left"
        )
    return at
