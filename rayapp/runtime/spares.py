"""Processes that wait with everything imported, so that a replacement starts in a tenth of a second.

Nearly all of an actor's start is a Python process that imports (3 s on a busy
small machine; 0.1 s with a spare, measured). Ray has no public way to keep
processes ready, but it keeps one that it started for a task which was cancelled
before it ran. Each spare is ordered under a runtime environment of its own (one
variable with its number), so an order never takes an earlier spare, and an actor
that is made under the same environment gets exactly that process.

Nothing depends on it: where the process is not there (Ray ended it, its node is
gone, it is still starting), Ray starts another one under the same environment,
and the replacement is only slower.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from typing import Any

import ray

from rayapp.worker_setup import SPARE_VARIABLE

CANCEL_AFTER_S = 0.4
"""Long enough for Ray to have started the process, short enough for it not to be up."""
CALM_S = 5.0
"""Between a start and an order, and between two orders: a process that imports takes the CPU from those that catch up."""


@ray.remote(num_cpus=0, max_retries=0)
def _never_runs() -> int:
    return os.getpid()


class Spares:
    """A few processes in waiting.

    Args:
        wanted: how many to keep; 0 switches this off.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._numbers = itertools.count(1)
        self._ordered: deque[tuple[Any, int, float]] = deque()
        self._waiting: deque[int] = deque()
        self._not_before_s = 0.0

    def environment(self, now_s: float) -> dict[str, Any] | None:
        """Return the runtime environment of the oldest spare, which is used up by that; None when there is none."""
        self._not_before_s = now_s + CALM_S
        return _named(self._waiting.popleft()) if self._waiting else None

    def tend(self, now_s: float) -> None:
        """Order one that is missing, and cancel the tasks of orders old enough; call about twice a second."""
        while self._ordered and now_s - self._ordered[0][2] >= CANCEL_AFTER_S:
            ref, number, _ = self._ordered.popleft()
            ray.cancel(ref)
            self._waiting.append(number)
        if now_s >= self._not_before_s and len(self._waiting) + len(self._ordered) < self._wanted:
            number = next(self._numbers)
            self._ordered.append((_never_runs.options(runtime_env=_named(number)).remote(), number, now_s))
            self._not_before_s = now_s + CALM_S


def _named(number: int) -> dict[str, Any]:
    return {"env_vars": {SPARE_VARIABLE: str(number)}}
