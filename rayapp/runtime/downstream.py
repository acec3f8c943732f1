"""Consume's port to detect and write, over Ray actors.

Made by the driver, travels to the consume actor as an argument of run(). A
call is submitted and its token returned at once; poll() returns what has come
back. An actor that is gone is answered as DownstreamLost, one that may be alive
as DependencyUnavailable: the call may have run, and the ledger knows.
"""

from __future__ import annotations

import itertools
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayTaskError

from actors.batch import Batch, DetectorSnapshot, PartitionClaim
from actors.consume.port import Answer
from rayapp.errors import DependencyUnavailable, DownstreamLost
from rayapp.runtime.gone import GONE


class RayDownstream:
    """Downstream port over Ray actors; travels to the consume actor as an argument of run()."""

    def __init__(self, detectors: dict[int, Any], writers: dict[int, Any]) -> None:
        self._detectors = detectors
        self._writers = writers
        self._tokens = itertools.count()
        self._refs: dict[Any, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return RayDownstream, (self._detectors, self._writers)

    def restore(self, claim: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> int:
        """Ask the partition's detector to stand at `position`."""
        method = self._detectors[claim.detect_slot].restore
        return self._sent(method.options(concurrency_group="work").remote(claim, position, snapshot))

    def detect(self, batch: Batch, *, drain: bool) -> int:
        """Ask the partition's detector for flags."""
        method = self._detectors[batch.claim.detect_slot].detect
        return self._sent(method.options(concurrency_group="work").remote(batch, drain))

    def write(self, batch: Batch) -> int:
        """Ask the partition's writer to store a batch."""
        method = self._writers[batch.claim.write_slot].write
        return self._sent(method.options(concurrency_group="work").remote(batch))

    def poll(self, timeout_s: float) -> list[Answer]:
        """Return the answers that have come, waiting at most `timeout_s` for the first."""
        if not self._refs:
            return []
        done, _ = ray.wait(list(self._refs), num_returns=1, timeout=timeout_s)
        if done:
            done, _ = ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        return [self._answer(ref, self._refs.pop(ref)) for ref in done]

    def _sent(self, ref: Any) -> int:
        token = next(self._tokens)
        self._refs[ref] = token
        return token

    def _answer(self, ref: Any, token: int) -> Answer:
        try:
            return Answer(token, ray.get(ref), None)
        except ActorUnavailableError as error:
            # Perhaps alive, and the call may have run: the ledger knows.
            return Answer(token, None, DependencyUnavailable(f"actor unavailable: {error}"))
        except GONE as error:
            return Answer(token, None, DownstreamLost(f"an actor downstream is gone ({type(error).__name__}); the driver claims again"))
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            return Answer(token, None, cause)
