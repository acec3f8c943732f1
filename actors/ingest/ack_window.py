"""Which messages may be acknowledged: flushes in receive order, each once all its records are delivered.

A flush is what ingest produced in one go. Every record's delivery is counted;
when a flush is complete and so are all before it, its messages are due for
PUBACK, in receive order. Pure bookkeeping: no clock, no client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from actors.adapters.mqtt import Delivery


class Flush:
    """Messages whose records were handed to Kafka together."""

    def __init__(self, messages: Sequence[Delivery]) -> None:
        self.messages = messages
        self._outstanding = 0
        self._sealed = False

    def expect(self, records: int) -> None:
        """Count records that must be delivered before the flush is complete."""
        self._outstanding += records

    def seal(self) -> None:
        """Say that every record of the flush was expected; before that it cannot complete."""
        self._sealed = True

    def delivered(self) -> None:
        """Count one delivery."""
        self._outstanding -= 1

    @property
    def complete(self) -> bool:
        """True when every record is known to be delivered."""
        return self._sealed and self._outstanding == 0


class AckWindow:
    """Flushes under way, oldest first."""

    def __init__(self) -> None:
        self._flushes: deque[Flush] = deque()

    def open(self, messages: Sequence[Delivery]) -> Flush:
        """Add a flush behind all earlier ones."""
        flush = Flush(messages)
        self._flushes.append(flush)
        return flush

    def due(self) -> list[Delivery]:
        """Return and forget the messages that may be acknowledged now, in receive order."""
        messages: list[Delivery] = []
        while self._flushes and self._flushes[0].complete:
            messages.extend(self._flushes.popleft().messages)
        return messages

    @property
    def messages(self) -> int:
        """Messages received and not yet acknowledged."""
        return sum(len(flush.messages) for flush in self._flushes)

    def __bool__(self) -> bool:
        return bool(self._flushes)
