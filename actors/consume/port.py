"""How consume reaches detect and write: hand over, then ask what has come back.

runtime injects the implementation over Ray; tests inject one that calls plain
objects. Nothing here blocks: submit returns a token at once, poll returns the
answers that are there. An actor that is gone is answered as DownstreamLost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from actors.batch import Batch, DetectorSnapshot, Flags, PartitionClaim, WriteAnswer


@dataclass(frozen=True)
class Answer:
    """What a call came back with: a result, or the error it raised."""

    token: int
    result: Flags | WriteAnswer | None
    error: Exception | None


class Downstream(Protocol):
    """The actors behind consume."""

    def restore(self, claim: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> int:
        """Ask the partition's detector to stand at `position`."""
        ...

    def detect(self, batch: Batch, *, drain: bool) -> int:
        """Ask the partition's detector for flags."""
        ...

    def write(self, batch: Batch) -> int:
        """Ask the partition's writer to store a batch."""
        ...

    def poll(self, timeout_s: float) -> list[Answer]:
        """Return the answers that have come, waiting at most `timeout_s` for the first."""
        ...
