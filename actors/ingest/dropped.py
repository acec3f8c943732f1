"""The broker's count of dropped messages: what a full queue cost.

Mosquitto drops new messages once a session's queue is full and acknowledges
them to the gateway all the same; this count is the only trace. It starts at 0
with the broker, and it counts for every client of the broker, ours or not.
"""

from __future__ import annotations


class DroppedMessages:
    """The count as last seen. A first sight above 0 is news: messages were dropped while nobody listened."""

    def __init__(self) -> None:
        self._seen = 0

    def increase(self, count: int) -> int:
        """Return how many messages were dropped since the last call; a lower count is a broker that started anew."""
        new = count - self._seen if count >= self._seen else count
        self._seen = count
        return new
