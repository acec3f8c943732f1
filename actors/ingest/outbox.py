"""Messages on their way to Kafka: received, flushed, handed to the producer, delivered, due for PUBACK.

The loop offers what it received and turns the outbox; the outbox cuts flushes,
keeps what the producer's full queue did not take, counts deliveries and says
which messages are due. It outlives connections: what was received is produced
also when its connection is gone, because a broker that died may not send it
again; only the PUBACK belongs to the connection.

It never skips a record. A record that Kafka refuses for good, at once or in its
report, ends the actor (DeliveryFailed) before anything of its flush is due.

What it holds is bounded by its caller, who reads no more than there is room for.
A flush makes records of some times its payloads' size, so bytes may pass the
limit by what one flush makes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from actors.adapters.kafka import RecordProducer
from actors.adapters.mqtt import Delivery
from actors.base import now_us
from actors.dead_letters import DeadLetter
from actors.ingest.ack_window import AckWindow, Flush
from actors.ingest.flush import Flusher, Outgoing
from rayapp.config import Settings
from rayapp.errors import DeliveryFailed


class Outbox:
    """What one slot holds.

    Args:
        owner: the actor's name, for messages.
        counters, reasons: the actor's; counted here.
    """

    def __init__(self, settings: Settings, flusher: Flusher, owner: str, counters: Counter[str], reasons: Counter[str]) -> None:
        self._settings = settings
        self._flusher = flusher
        self._owner = owner
        self._counters = counters
        self._reasons = reasons
        self._window = AckWindow()
        self._pending: list[Delivery] = []
        self._pending_bytes = 0
        self._pending_since_s = 0.0
        self._backlog: deque[tuple[Flush, Outgoing | DeadLetter]] = deque()
        self._failed: str | None = None

    @property
    def messages(self) -> int:
        """Messages received and not yet due for PUBACK."""
        return len(self._pending) + self._window.messages

    @property
    def size_bytes(self) -> int:
        """Bytes of their payloads, and of the records made of them."""
        return self._pending_bytes + self._window.size_bytes

    @property
    def room_messages(self) -> int:
        """How many messages more may be received; 0 or less: none."""
        return self._settings.mqtt.held_messages - self.messages

    @property
    def room_bytes(self) -> int:
        """How many bytes of payload more may be received; 0 or less: none."""
        return self._settings.mqtt.held_bytes - self.size_bytes

    @property
    def full(self) -> bool:
        """True when nothing more may be received."""
        return self.room_messages <= 0 or self.room_bytes <= 0

    def __bool__(self) -> bool:
        return bool(self._pending or self._window)

    def receive(self, messages: Sequence[Delivery], now_s: float) -> None:
        """Add messages in receive order."""
        if not messages:
            return
        if not self._pending:
            self._pending_since_s = now_s
        self._pending.extend(messages)
        self._pending_bytes += sum(len(message.payload) for message in messages)
        self._counters["mqtt_adapter_messages_received_total"] += len(messages)

    def advance(self, producer: RecordProducer, now_s: float, *, at_once: bool = False) -> list[Delivery]:
        """Cut a flush when one is due, hand records over, take reports; return the messages due for PUBACK, in receive order.

        Args:
            at_once: cut now what has been received.

        Raises:
            DeliveryFailed: Kafka refused a record for good; nothing of its flush was or will be due.
        """
        if self._pending and not self._backlog and (at_once or self._flush_is_due(now_s)):
            self._flush()
            self._pending_since_s = now_s
        self._send(producer)
        producer.poll(0.0)
        if self._failed is not None:
            raise DeliveryFailed(f"{self._owner}: {self._failed}; the actor ends and the broker resends")
        return self._window.due()

    def _flush_is_due(self, now_s: float) -> bool:
        """Small flushes while idle, large ones under load: wait longer only while earlier flushes are under way."""
        settings = self._settings.ingest
        if len(self._pending) >= settings.flush_messages:
            return True
        return now_s - self._pending_since_s >= (settings.flush_max_s if self._window else settings.flush_idle_s)

    def _flush(self) -> None:
        """Turn pending messages into records and queue them for the producer; no more than one flush's worth, so that the loop turns."""
        size = self._settings.ingest.flush_messages
        messages, self._pending = self._pending[:size], self._pending[size:]
        payload_bytes = sum(len(message.payload) for message in messages)
        self._pending_bytes -= payload_bytes
        flushed = self._flusher.flush(messages, now_us(), self._reasons)
        flush = self._window.open(messages, payload_bytes + flushed.size_bytes)
        flush.expect(flushed.readings + len(flushed.dead))
        flush.seal()
        self._backlog.extend((flush, part) for part in flushed.outgoing)
        self._backlog.extend((flush, letter) for letter in flushed.dead)
        self._counters["readings_total"] += flushed.readings
        self._counters["iot_anomaly_detected_total"] += flushed.anomalies
        self._counters["arrival_time_used_total"] += flushed.arrival_time_used
        self._counters["mqtt_adapter_send_failures_total"] += len(flushed.dead)

    def _send(self, producer: RecordProducer) -> None:
        """Hand the backlog to the producer until its queue is full; the rest waits for the next turn."""
        kafka = self._settings.kafka
        while self._backlog:
            flush, part = self._backlog[0]
            report = self._reporter(flush)
            if isinstance(part, DeadLetter):
                if not producer.produce_one(kafka.dead_letter_topic, part.value, part.headers(), report):
                    return
            else:
                taken = producer.produce(kafka.topic, part.partition, part.keys, part.values, report)
                if taken < len(part.keys):
                    self._backlog[0] = (flush, part.rest(taken))
                    return
            self._backlog.popleft()

    def _reporter(self, flush: Flush) -> Callable[[object | None, object], None]:
        """Return the delivery report of a flush's records."""
        delivered = flush.delivered

        def report(error: object | None, _record: object) -> None:
            if error is None:
                delivered()
            else:
                self._failed = f"kafka refused a record: {error}"

        return report
