"""AckWindow: PUBACKs only in receive order, each once, never before every delivery of a message is known."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from actors.adapters.mqtt import Delivery
from actors.ingest.ack_window import AckWindow, Flush


class Windows(RuleBasedStateMachine):
    """Flushes are opened, expected in parts, sealed and delivered in any order."""

    flushes = Bundle("flushes")
    parcels = Bundle("parcels")

    def __init__(self) -> None:
        super().__init__()
        self.window = AckWindow()
        self.received = 0
        self.acknowledged: list[int] = []
        self.outstanding: dict[int, int] = {}
        self.sealed: set[int] = set()
        self.opened: list[tuple[Flush, int, int]] = []

    @rule(target=flushes, messages=st.integers(0, 4))
    def open(self, messages: int) -> int:
        """Open a flush of some messages."""
        deliveries = [Delivery("t", b"", self.received + i, 1, 1) for i in range(messages)]
        number = len(self.opened)
        self.opened.append((self.window.open(deliveries), self.received, messages))
        self.received += messages
        self.outstanding[number] = 0
        return number

    @rule(target=parcels, flush=flushes, records=st.integers(0, 3))
    def expect(self, flush: int, records: int) -> tuple[int, int]:
        """Expect records of a flush that is not sealed yet."""
        if flush in self.sealed:
            return flush, 0
        self.opened[flush][0].expect(records)
        self.outstanding[flush] += records
        return flush, records

    @rule(flush=flushes)
    def seal(self, flush: int) -> None:
        """Say that nothing more is to be expected."""
        self.opened[flush][0].seal()
        self.sealed.add(flush)

    @rule(parcel=consumes(parcels))
    def deliver(self, parcel: tuple[int, int]) -> None:
        """Report the deliveries of some records."""
        flush, records = parcel
        for _ in range(records):
            self.opened[flush][0].delivered()
        self.outstanding[flush] -= records

    @rule()
    def acknowledge(self) -> None:
        """Take what is due and compare it with the longest finished run from the oldest on."""
        due = [delivery.mid for delivery in self.window.due()]
        expected: list[int] = []
        for number, (_flush, first, messages) in enumerate(self.opened):
            if number not in self.sealed or self.outstanding[number]:
                break
            expected.extend(range(first, first + messages))
        self.acknowledged.extend(due)

        assert expected == self.acknowledged

    @invariant()
    def counts_what_waits(self) -> None:
        """The window counts exactly the messages received and not acknowledged."""
        assert self.received - len(self.acknowledged) == self.window.messages


TestWindows = Windows.TestCase


def test_window_without_messages_is_done() -> None:
    """A flush whose messages held no reading is due at once; an unsealed one never is."""
    window = AckWindow()
    first = window.open([Delivery("t", b"", 1, 1, 1)])

    assert window.due() == []
    first.seal()
    assert [delivery.mid for delivery in window.due()] == [1]
    assert not window
