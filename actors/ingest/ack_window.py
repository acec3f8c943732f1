"""Which messages may be acknowledged: flushes in receive order, each once all its records are delivered.

A flush is what ingest produced in one go. Every record's delivery is counted;
when a flush is complete and so are all before it, its messages are due for
PUBACK, in receive order. The window also knows how much it holds, which is what
ingest bounds. Pure bookkeeping: no clock, no client.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from actors.adapters.mqtt import Delivery


class Flush:
    """Messages whose records were handed to Kafka together.

    Attributes:
        size_bytes: of payloads and records.
    """

    def __init__(self, messages: Sequence[Delivery], size_bytes: int = 0) -> None:
        self.messages = messages
        self.size_bytes = size_bytes
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
    """Flushes under way, oldest first.

    Attributes:
        messages: received and not yet due.
        size_bytes: of their payloads and records.
    """

    def __init__(self) -> None:
        self._flushes: deque[Flush] = deque()
        self.messages = 0
        self.size_bytes = 0

    def open(self, messages: Sequence[Delivery], size_bytes: int = 0) -> Flush:
        """Add a flush behind all earlier ones."""
        flush = Flush(messages, size_bytes)
        self._flushes.append(flush)
        self.messages += len(messages)
        self.size_bytes += size_bytes
        return flush

    def due(self) -> list[Delivery]:
        """Return and forget the messages that may be acknowledged now, in receive order."""
        messages: list[Delivery] = []
        while self._flushes and self._flushes[0].complete:
            flush = self._flushes.popleft()
            messages.extend(flush.messages)
            self.size_bytes -= flush.size_bytes
        self.messages -= len(messages)
        return messages

    def __bool__(self) -> bool:
        return bool(self._flushes)
