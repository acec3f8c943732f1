"""Committed positions are copied into the consumer group now and then, for lag dashboards; nothing reads them back."""

from __future__ import annotations

from actors.adapters.kafka import PartitionReader

MIRROR_EVERY_S = 5.0


class GroupMirror:
    """What was committed since the last copy."""

    def __init__(self, reader: PartitionReader) -> None:
        self._reader = reader
        self._committed: dict[int, int] = {}
        self._copied_s = 0.0

    def committed(self, partition: int, position: int) -> None:
        """Remember a partition's position."""
        self._committed[partition] = position

    def copy(self, now_s: float, *, force: bool = False) -> None:
        """Copy what is new, when it is time."""
        if self._committed and (force or now_s - self._copied_s >= MIRROR_EVERY_S):
            self._copied_s = now_s
            self._reader.mirror(self._committed)
            self._committed = {}
