"""How long from the intended send time to the committed row, by two witnesses who share nothing.

The writers append each row's latency to files in `latency_dir` right after
their COMMIT, by their own clock call; the database keeps the commit time of
each transaction and is asked afterwards. Percentiles are exact: every row
counts, none is estimated from buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Latency:
    """Exact percentiles in milliseconds over `count` readings; zeros when there are none."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, latency_ms: np.ndarray) -> Latency:
        """Return the percentiles of one value a reading; NaN (unknown) is left out of count and figures."""
        known = latency_ms[~np.isnan(latency_ms)]
        if not len(known):
            return cls(0, 0.0, 0.0, 0.0, 0.0)
        # The smallest value that at least this share does not exceed: a value that occurred.
        p50, p95, p99, top = np.percentile(known, [50, 95, 99, 100], method="inverted_cdf")
        return cls(len(known), round(float(p50), 1), round(float(p95), 1), round(float(p99), 1), round(float(top), 1))


class LatencyFiles:
    """The writers' own record, read from a mark on; actors that start later make files of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._marks: dict[Path, int] = {}

    def mark(self) -> None:
        """Forget everything recorded so far."""
        self._marks = {path: path.stat().st_size for path in self._files()}

    def read(self) -> np.ndarray:
        """Return what was appended since the mark, whole values only."""
        parts = [self._tail(path, self._marks.get(path, 0)) for path in self._files()]
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)

    def take(self) -> np.ndarray:
        """Return what was appended since the mark and move the mark: for a live display."""
        parts = []
        for path in self._files():
            values = self._tail(path, self._marks.get(path, 0))
            self._marks[path] = self._marks.get(path, 0) + len(values) * FLOAT_BYTES
            parts.append(values)
        return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.f32")) if self._folder.is_dir() else []

    @staticmethod
    def _tail(path: Path, start: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        return np.frombuffer(data[: len(data) // FLOAT_BYTES * FLOAT_BYTES], np.float32)
