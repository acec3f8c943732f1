"""AckWindow: PUBACKs only in receive order, each once, never before every delivery of a message is known."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from actors.adapters.mqtt import Delivery, acknowledgeable
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
        self.opened.append((self.window.open(deliveries, 10 * messages), self.received, messages))
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
        assert 10 * self.window.messages == self.window.size_bytes


TestWindows = Windows.TestCase


class Connections(RuleBasedStateMachine):
    """A broker that uses few packet ids again and again, connections that break, sessions that are forgotten.

    Each message is known by a number that the window never sees; a PUBACK is judged by the message that the broker
    has under that packet id at that moment, which is what a stale one would acknowledge wrongly.
    """

    IDS = 5

    def __init__(self) -> None:
        super().__init__()
        self.window = AckWindow()
        self.generation = 1
        self.published = self.next_id = 0
        self.inflight: dict[int, int] = {}
        self.pending: list[tuple[Delivery, int]] = []
        self.flushes: list[tuple[Flush, list[tuple[Delivery, int]], int]] = []
        self.stored: set[int] = set()
        self.number_of: dict[int, int] = {}
        self.acknowledged: list[int] = []
        self.order: list[int] = []

    def _receive(self, mid: int, qos: int, number: int) -> None:
        delivery = Delivery("t", b"", mid, qos, self.generation)
        self.number_of[id(delivery)] = number
        self.pending.append((delivery, number))
        if qos:
            self.order.append(number)

    @rule()
    def publish(self) -> None:
        """A message of QoS 1 under the next packet id that is free."""
        if len(self.inflight) == self.IDS:
            return
        while True:
            self.next_id = self.next_id % self.IDS + 1
            if self.next_id not in self.inflight:
                break
        self.published += 1
        self.inflight[self.next_id] = self.published
        self._receive(self.next_id, 1, self.published)

    @rule()
    def publish_qos_0(self) -> None:
        """A message without a packet id."""
        self.published += 1
        self._receive(0, 0, self.published)

    @rule(records=st.integers(0, 3))
    def flush(self, records: int) -> None:
        """Everything received becomes records."""
        flush = self.window.open([delivery for delivery, _ in self.pending])
        flush.expect(records)
        flush.seal()
        self.flushes.append((flush, self.pending, records))
        if not records:
            self.stored |= {number for _, number in self.pending}
        self.pending = []

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """One record of some flush is delivered, in any order."""
        waiting = [n for n, (_, _, records) in enumerate(self.flushes) if records]
        if not waiting:
            return
        n = data.draw(st.sampled_from(waiting))
        flush, messages, records = self.flushes[n]
        flush.delivered()
        self.flushes[n] = flush, messages, records - 1
        if records == 1:
            self.stored |= {number for _, number in messages}

    @rule()
    def reconnect(self) -> None:
        """What is not acknowledged comes again under the same packet ids and the next generation."""
        self.generation += 1
        self.order.clear()
        for mid, number in list(self.inflight.items()):
            self._receive(mid, 1, number)

    @rule()
    def forget(self) -> None:
        """The broker is killed: its packet ids start anew, and old ones now mean other messages."""
        self.generation += 1
        self.inflight.clear()
        self.order.clear()
        self.next_id = 0

    @rule()
    def acknowledge(self) -> None:
        """What is due is acknowledged, and the broker looks at each PUBACK."""
        for delivery in acknowledgeable(self.window.due(), self.generation):
            number = self.number_of[id(delivery)]
            assert delivery.qos == 1, "QoS 0 is never acknowledged"
            assert number in self.stored, "before all its records were delivered"
            assert number == self.inflight.pop(delivery.mid, None), "stale: the broker has another message, or none, under this id"
            assert number not in self.acknowledged, "twice"
            assert number == self.order.pop(0), "not in receive order"
            self.acknowledged.append(number)

    def teardown(self) -> None:
        """Once everything is delivered, everything of the last connection is acknowledged."""
        self.flush(0)
        for flush, messages, records in self.flushes:
            for _ in range(records):
                flush.delivered()
            self.stored |= {number for _, number in messages}
        self.acknowledge()
        assert not self.inflight
        assert not self.window


TestConnections = Connections.TestCase


def test_window_without_messages_is_done() -> None:
    """A flush whose messages held no reading is due at once; an unsealed one never is."""
    window = AckWindow()
    first = window.open([Delivery("t", b"", 1, 1, 1)])

    assert window.due() == []
    first.seal()
    assert [delivery.mid for delivery in window.due()] == [1]
    assert not window
