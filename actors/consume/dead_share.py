"""Too many dead letters: the share of a partition's last records that are no readings, judged record by record.

A producer gone wrong (another schema under our id, another topic's data) would
turn a whole partition into dead letters, quietly and at full speed. So before
dead letters are produced, consume asks whether more than a configured share of
the last `window` records are dead. Judged at every record's own position, so
the answer does not depend on where batches were cut. A window begins anew when
a partition is recovered; fewer than `minimum` records are not judged.

Immutable: what is not committed is judged by a copy that is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
NONE: Numbers = np.empty(0, np.int64)


@dataclass(frozen=True)
class Exceeded:
    """Where the limit was crossed.

    Attributes:
        record: number of the record within the judged ones, from 0.
        dead: dead records in the window that ends with it.
        records: records in that window.
    """

    record: int
    dead: int
    records: int


@dataclass(frozen=True)
class DeadShare:
    """The records of one partition so far, as far as the window reaches.

    Attributes:
        share_max: more than this share of the window dead is too many; 1 = never.
        window: records looked at.
        minimum: records that must have been seen before anything is judged.
        seen: records since the start.
        dead: numbers of the dead ones among them, rising, from 0; those that left the window are forgotten.
    """

    share_max: float
    window: int
    minimum: int
    seen: int = 0
    dead: Numbers = field(default_factory=lambda: NONE)

    def exceeded(self, records: int, dead: Numbers) -> Exceeded | None:
        """Return the first of the next records at which too many are dead, None when there is none.

        Args:
            records: how many come next.
            dead: which of them are dead, rising, from 0.
        """
        if len(dead) == 0 and len(self.dead) == 0:
            return None
        numbers = np.concatenate([self.dead, self.seen + dead])
        # Between two dead records the share only sinks, so it is enough to look where one comes and where judging begins.
        ends = numbers[numbers >= self.seen]
        first = self.minimum - 1
        if self.seen <= first < self.seen + records:
            ends = np.union1d(ends, [first])
        ends = ends[ends >= first]
        found = np.searchsorted(numbers, ends, side="right") - np.searchsorted(numbers, ends - self.window, side="right")
        sizes = np.minimum(ends + 1, self.window)
        over = np.flatnonzero(found > self.share_max * sizes)
        if len(over) == 0:
            return None
        at = over[0]
        return Exceeded(int(ends[at]) - self.seen, int(found[at]), int(sizes[at]))

    def after(self, records: int, dead: Numbers) -> DeadShare:
        """Return what is known behind the next records."""
        seen = self.seen + records
        if len(dead) == 0 and len(self.dead) == 0:
            return replace(self, seen=seen)
        numbers = np.concatenate([self.dead, self.seen + dead])
        return replace(self, seen=seen, dead=numbers[numbers >= seen - self.window + 1])
