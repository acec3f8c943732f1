"""How long readings came late after a fault: seconds until p99 is below a second again.

Readings are put into buckets by the second in which they were due to be sent
(open loop: a sender that waits does not hide the delay). A second is late when
its p99 is a second or more, or when nothing of it was ever stored. A fault's
trouble ends with the last late second before the next fault began, and only
when two good seconds follow; otherwise its recovery time is a lower bound.

Times count from the end of the cause: the kill itself, or the moment when the
stopped process went on, the server served again, the link was whole again. A
killed driver's count from the kill, because its new job is part of the cure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayapp.chaos.plan import Unit, role_of

LIMIT_MS = 1_000.0
GOOD_SECONDS = 2
"""In a row, until trouble is called over."""
CAUGHT_S = LIMIT_MS / 1_000
"""A reading due earlier than this before a fault is in time or late by then, whatever the fault does."""


@dataclass(frozen=True)
class Done:
    """A fault as it happened, in epoch seconds.

    Attributes:
        began_s: the blow.
        ended_s: the end of its cause; of a killed driver the moment when its new job was submitted.
        hit: what proves that it met work, in words; empty when it met none.
        error: why it could not be done.
    """

    kind: str
    target: str
    group: str
    began_s: float
    ended_s: float
    hit: str = ""
    error: str = ""

    @property
    def unit(self) -> Unit:
        """What it covers."""
        return Unit(self.kind, role_of(self.target))

    @property
    def counts_from_s(self) -> float:
        """Where recovery begins to count."""
        return self.began_s if self.group == "driver" else self.ended_s


@dataclass(frozen=True)
class Recovery:
    """What a fault cost.

    Attributes:
        seconds: until p99 was below the limit again, from where the fault's recovery counts; 0 = it was not above it any more.
        since_end_s, since_begin_s: the same from the end of its cause, and from its beginning.
        worst_ms: highest p99 of a second; infinite when nothing of one was stored.
        recovered: False when the next fault, or the end, came before; the times are lower bounds then.
        late_before: the pipeline was late already when the fault began, so its times are not its own alone.
    """

    seconds: float
    since_end_s: float
    since_begin_s: float
    worst_ms: float
    recovered: bool
    late_before: bool = False


def p99_by_second(timestamp_us: npt.NDArray[np.int64], latency_ms: npt.NDArray[np.float64]) -> dict[int, float]:
    """Return epoch second -> p99 in milliseconds of the readings due in it; rows without a known commit time are left out."""
    known = ~np.isnan(latency_ms)
    if not known.any():
        return {}
    seconds, latency = timestamp_us[known] // 1_000_000, latency_ms[known]
    order = np.argsort(seconds, kind="stable")
    seconds, latency = seconds[order], latency[order]
    starts = np.flatnonzero(np.concatenate(([True], seconds[1:] != seconds[:-1])))
    ends = np.append(starts[1:], len(seconds))
    return {int(seconds[a]): float(np.percentile(latency[a:b], 99)) for a, b in zip(starts, ends, strict=True)}


def recoveries(p99_ms: Mapping[int, float], faults: Sequence[Done], traffic_s: tuple[float, float]) -> list[Recovery]:
    """Return what each fault cost.

    Args:
        p99_ms: epoch second -> p99; a second of the traffic that is not in it was never stored.
        faults: in time order.
        traffic_s: when the traffic began and ended.
    """
    first, last = _whole_seconds(*traffic_s)
    return [
        _recovery(
            {s: p99_ms.get(s, math.inf) for s in range(first, last + 1)},
            fault,
            faults[at + 1].began_s if at + 1 < len(faults) else last + 1 + CAUGHT_S,
        )
        for at, fault in enumerate(faults)
    ]


def _recovery(p99_ms: Mapping[int, float], fault: Done, until_s: float) -> Recovery:
    """Return what one fault cost, looking at whole seconds from shortly before it to shortly before the next."""
    begin, stop = math.floor(fault.began_s - 1), math.floor(until_s - CAUGHT_S)
    mine = {second: p99 for second, p99 in p99_ms.items() if begin <= second < stop}
    late = [second for second, p99 in mine.items() if p99 >= LIMIT_MS]
    good_s = stop - (max(late) + 1 if late else math.ceil(fault.began_s))
    recovered = good_s >= GOOD_SECONDS
    # Trouble that the window does not see the end of lasts at least as long as the window.
    over_s = (float(max(late) + 1) if recovered else max(float(stop), fault.ended_s)) if late or not recovered else fault.began_s
    before = [p99_ms[s] for s in (begin - 2, begin - 1) if s in p99_ms]
    return Recovery(
        seconds=_positive(over_s - fault.counts_from_s),
        since_end_s=_positive(over_s - fault.ended_s),
        since_begin_s=_positive(over_s - fault.began_s),
        worst_ms=round(max(mine.values(), default=math.inf), 0),
        recovered=recovered,
        late_before=any(p99 >= LIMIT_MS for p99 in before),
    )


def baseline_ms(p99_ms: Mapping[int, float], traffic_s: tuple[float, float], first_fault_s: float) -> float:
    """Return the median p99 of the seconds just before the first fault: how the pipeline does when nothing is wrong."""
    first, _ = _whole_seconds(*traffic_s)
    stop = math.floor(first_fault_s - 1)
    calm = [p99_ms.get(second, math.inf) for second in range(max(first, stop - 5), stop)]
    return round(float(np.median(calm)), 0) if calm else math.inf


def worst_by_group(faults: Sequence[Done], found: Sequence[Recovery]) -> dict[str, float]:
    """Return group -> the longest recovery; of drivers also since their job was submitted again."""
    worst: dict[str, float] = {}
    for fault, recovery in zip(faults, found, strict=True):
        worst[fault.group] = max(worst.get(fault.group, 0.0), recovery.seconds)
        if fault.group == "driver":
            worst["driver_since_submitted"] = max(worst.get("driver_since_submitted", 0.0), recovery.since_end_s)
    return dict(sorted(worst.items()))


def worst_since_begin(faults: Sequence[Done], found: Sequence[Recovery]) -> dict[str, float]:
    """Return group -> the longest time from a fault's beginning, its cause included."""
    worst: dict[str, float] = {}
    for fault, recovery in zip(faults, found, strict=True):
        worst[fault.group] = max(worst.get(fault.group, 0.0), recovery.since_begin_s)
    return dict(sorted(worst.items()))


def sparkline(p99_ms: Mapping[int, float], traffic_s: tuple[float, float]) -> str:
    """Return p99 second by second as one line of blocks; a full block is four seconds or more, `!` a second of which nothing was stored."""
    blocks = "▁▂▃▄▅▆▇█"
    first, last = _whole_seconds(*traffic_s)
    return "".join(blocks[min(len(blocks) - 1, int(p99_ms[s] / 500))] if s in p99_ms else "!" for s in range(first, last + 1))


def _whole_seconds(began_s: float, ended_s: float) -> tuple[int, int]:
    """Return the first and the last second that lie wholly in the traffic."""
    return math.ceil(began_s), math.floor(ended_s) - 1


def _positive(seconds: float) -> float:
    return round(max(0.0, seconds), 1)
