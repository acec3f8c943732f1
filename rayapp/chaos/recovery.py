"""How long readings came late after a fault: seconds until p99 is below a second again.

Readings are put into buckets by the second in which they were due to be sent
(open loop: a sender that waits does not hide the delay). A fault's trouble ends
with the last bucket whose p99 is a second or more, before the next fault began;
its recovery time counts from the end of its cause: the kill itself, or the
moment when the stopped process went on, the server served again, the link was
whole again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LIMIT_MS = 1_000.0


@dataclass(frozen=True)
class Done:
    """A fault as it happened, in epoch seconds.

    Attributes:
        hit: what proves that it met work, in words; empty when it met none.
    """

    kind: str
    target: str
    group: str
    began_s: float
    ended_s: float
    hit: str = ""
    error: str = ""


@dataclass(frozen=True)
class Recovery:
    """What a fault cost.

    Attributes:
        since_end_s: from the end of its cause until p99 was below the limit again; 0 = it never was above.
        since_begin_s: the same from its beginning.
        worst_ms: highest p99 of a bucket.
        recovered: False when the next fault came before.
    """

    since_end_s: float
    since_begin_s: float
    worst_ms: float
    recovered: bool


def p99_by_second(timestamp_us: npt.NDArray[np.int64], latency_ms: npt.NDArray[np.float64]) -> dict[int, float]:
    """Return epoch second -> p99 in milliseconds of the readings due in it; rows without a known commit time are left out."""
    known = ~np.isnan(latency_ms)
    seconds, latency = timestamp_us[known] // 1_000_000, latency_ms[known]
    order = np.argsort(seconds, kind="stable")
    seconds, latency = seconds[order], latency[order]
    starts = np.flatnonzero(np.concatenate(([True], seconds[1:] != seconds[:-1]))) if len(seconds) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(seconds))
    return {int(seconds[a]): float(np.percentile(latency[a:b], 99)) for a, b in zip(starts, ends, strict=True)}


def recoveries(p99_ms: dict[int, float], faults: Sequence[Done], end_s: float) -> list[Recovery]:
    """Return what each fault cost.

    Args:
        p99_ms: epoch second -> p99.
        faults: in time order.
        end_s: when the traffic ended.
    """
    found = []
    for at, fault in enumerate(faults):
        until_s = faults[at + 1].began_s if at + 1 < len(faults) else end_s
        # A reading due a little before the fault may be caught by it as well: latency is up to a second on a good day.
        mine = {second: p99 for second, p99 in p99_ms.items() if fault.began_s - 1 <= second <= until_s - 2}
        late = [second for second, p99 in mine.items() if p99 >= LIMIT_MS]
        last_s = max(late) + 1 if late else None
        # What was due before the cause ended can only be late; it is over as soon as later ones are in time.
        found.append(
            Recovery(
                since_end_s=round(max(0.0, last_s - fault.ended_s), 1) if last_s is not None else 0.0,
                since_begin_s=round(max(0.0, last_s - fault.began_s), 1) if last_s is not None else 0.0,
                worst_ms=round(max(mine.values(), default=0.0)),
                recovered=last_s is None or last_s + 3 <= until_s,
            )
        )
    return found


def worst_by_group(faults: Sequence[Done], found: Sequence[Recovery]) -> dict[str, float]:
    """Return group -> the longest recovery after its cause had ended."""
    worst: dict[str, float] = {}
    for fault, recovery in zip(faults, found, strict=True):
        worst[fault.group] = max(worst.get(fault.group, 0.0), recovery.since_end_s)
    return dict(sorted(worst.items()))


def sparkline(p99_ms: dict[int, float]) -> str:
    """Return p99 second by second as one line of blocks; a full block is four seconds or more."""
    if not p99_ms:
        return ""
    blocks = "▁▂▃▄▅▆▇█"
    first, last = min(p99_ms), max(p99_ms)
    return "".join(
        blocks[min(len(blocks) - 1, int(p99_ms[second] / 500))] if second in p99_ms else " " for second in range(first, last + 1)
    )
