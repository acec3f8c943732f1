"""The bill: CPU seconds and memory of every process that takes part, by component.

/proc is read once a second in one pass (a few milliseconds); psutil's walk over
each component's tree would cost as much as an actor. CPU is the difference over
the window; a process that ended in between counts with what was last seen, one
that began in between with all it used. RSS counts shared pages in every process
that maps them; PSS, read once at the end, counts each page once.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
EDGE_S = 10.0
"""Memory at the start and the end of the window is the median over this long."""


@dataclass(frozen=True)
class Roots:
    """Which processes are whose.

    Attributes:
        trees: pid -> component of it and of its descendants, as far as those are not named themselves.
        alone: pid -> component of this process only; its descendants go by `trees`.
    """

    trees: Mapping[int, str]
    alone: Mapping[int, str]


@dataclass(frozen=True)
class Seen:
    """One process at one moment; `started` tells it from a later one with the same pid."""

    pid: int
    parent: int
    started: int
    cpu_s: float
    rss_bytes: int


@dataclass(frozen=True)
class Cost:
    """What one component used over the window."""

    cpu_s: float
    rss_mb: float
    rss_growth_mb: float
    pss_mb: float


@dataclass(frozen=True)
class Bill:
    """All components' costs.

    Attributes:
        total_rss_mb: largest sum over all components at one moment.
        total_pss_mb: at the end of the window; processes whose PSS we may not read count with their RSS.
        pss_missing: how many those were.
        samples: how often we looked.
    """

    seconds: float
    components: dict[str, Cost]
    total_rss_mb: float
    total_pss_mb: float
    pss_missing: int
    samples: int


def read_processes(proc: Path = Path("/proc")) -> dict[int, Seen]:
    """Return every process of the machine."""
    found = {}
    for entry in os.listdir(proc):  # noqa: PTH208 - names are enough, and this runs every second
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold spaces and brackets: split behind the last one.
            fields = (proc / entry / "stat").read_text().rpartition(")")[2].split()
            pid = int(entry)
            cpu_s = (int(fields[11]) + int(fields[12])) * TICK_S
            found[pid] = Seen(pid, int(fields[1]), int(fields[19]), cpu_s, int(fields[21]) * PAGE_BYTES)
    return found


def assign(processes: Mapping[int, Seen], roots: Roots) -> dict[int, str]:
    """Return the component of each process that belongs to one: its own, or its nearest ancestor's."""
    known = {pid: name for pid, name in roots.trees.items() if pid in processes}
    for pid in processes:
        path: list[int] = []
        at = pid
        while at in processes and at not in known and len(path) < 100:
            path.append(at)
            at = processes[at].parent
        if at in known:
            known.update(dict.fromkeys(path, known[at]))
    return known | {pid: name for pid, name in roots.alone.items() if pid in processes}


@dataclass
class _Series:
    """One component over time."""

    times_s: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)


class Sampler:
    """Samples in a thread, from entering the block until `stop` gives the bill; leaving the block ends the thread in any case.

    Args:
        roots: asked at every sample, so that replaced actors are found.
    """

    def __init__(self, roots: Callable[[], Roots], interval_s: float = 1.0) -> None:
        self._roots = roots
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="process-sampler", daemon=True)
        self._first: dict[tuple[int, int], float] = {}
        self._last: dict[tuple[int, int], tuple[str, float]] = {}
        self._series: dict[str, _Series] = defaultdict(_Series)
        self._total_rss: list[int] = []
        self._started_s = 0.0
        self._living: dict[int, str] = {}

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._sample(first=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def stop(self) -> Bill:
        """End the window and return the bill."""
        self._stop.set()
        self._thread.join()
        self._sample()
        seconds = time.monotonic() - self._started_s
        cpu_s: dict[str, float] = defaultdict(float)
        for key, (name, last) in self._last.items():
            cpu_s[name] += last - self._first.get(key, 0.0)
        pss_mb, missing = self._pss_mb()
        return Bill(
            seconds=seconds,
            components={
                name: Cost(
                    cpu_s=round(cpu_s[name], 3),
                    rss_mb=round(max(series.rss_bytes) / 1e6, 1),
                    rss_growth_mb=growth_mb(series.times_s, series.rss_bytes),
                    pss_mb=round(pss_mb[name], 1),
                )
                for name, series in sorted(self._series.items())
            },
            total_rss_mb=round(max(self._total_rss) / 1e6, 1),
            total_pss_mb=round(sum(pss_mb.values()), 1),
            pss_missing=missing,
            samples=len(self._total_rss),
        )

    def _run(self) -> None:
        due = self._started_s + self._interval_s
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            self._sample()
            due += self._interval_s

    def _sample(self, *, first: bool = False) -> None:
        processes = read_processes()
        self._living = assign(processes, self._roots())
        rss: dict[str, int] = defaultdict(int)
        if first:
            # Of every process: one that is recognised only later did not do all its work in the window.
            self._first = {(one.pid, one.started): one.cpu_s for one in processes.values()}
        for pid, name in self._living.items():
            one = processes[pid]
            self._last[one.pid, one.started] = (name, one.cpu_s)
            rss[name] += one.rss_bytes
        now_s = time.monotonic() - self._started_s
        for name, total in rss.items():
            self._series[name].times_s.append(now_s)
            self._series[name].rss_bytes.append(total)
        self._total_rss.append(sum(rss.values()))

    def _pss_mb(self) -> tuple[dict[str, float], int]:
        """Return PSS by component at the last sample, and of how many processes we may not read it."""
        total_bytes: dict[str, int] = defaultdict(int)
        missing = 0
        processes = read_processes()
        for pid, name in self._living.items():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total_bytes[name] += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
            except (OSError, StopIteration, ValueError):
                if pid in processes:
                    total_bytes[name] += processes[pid].rss_bytes
                    missing += 1
        return defaultdict(float, {name: total / 1e6 for name, total in total_bytes.items()}), missing


def growth_mb(times_s: list[float], rss_bytes: list[int]) -> float:
    """Return by how much memory grew: median of the last 10 s minus median of the first (a third of a shorter window)."""
    times, rss = np.array(times_s), np.array(rss_bytes)
    edge_s = min(EDGE_S, (times[-1] - times[0]) / 3)
    first, last = rss[times <= times[0] + edge_s], rss[times >= times[-1] - edge_s]
    return round(float(np.median(last) - np.median(first)) / 1e6, 1)
