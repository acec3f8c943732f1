"""The ingest actor: one slot of the shared subscription, from MQTT to Kafka.

One thread does everything in turn: read the socket, cut a flush, hand its
records to Kafka, collect delivery reports, send the PUBACKs that are due. A
message is acknowledged only when every one of its readings (or its dead
letter) is known to be in Kafka. The broker's Receive Maximum bounds what is
held here; while Kafka is away nothing is acknowledged, the window fills, and
the broker queues.

Before every connect the slot is confirmed in the database, so that two
processes never take the same session from each other. A delivery that fails
for good ends the actor; its socket closes and the broker sends everything
unacknowledged to the replacement.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from actors.adapters.kafka import RecordProducer
from actors.adapters.mqtt import Delivery, MqttSession
from actors.adapters.postgres import connect
from actors.avro import Codec
from actors.base import Actor, ActorState, Report, now_us
from actors.dead_letters import DeadLetter
from actors.ingest.ack_window import AckWindow, Flush
from actors.ingest.flush import Flusher, Outgoing
from rayapp.config import Settings
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable, DeliveryFailed, StaleClaim
from rayapp.log import Events

RECONNECT_S = 0.5
TURN_S = 0.005
"""How long one turn waits for the socket: bounds how late a flush is cut and a delivery report is seen."""

_events = Events(__name__)


class Ingest(Actor):
    """One ingest slot."""

    role = "ingest"

    def __init__(self, name: str, settings: Settings, slot: int, schema: str, schema_id: int, retire: bool = False) -> None:
        super().__init__(name)
        self._settings = settings
        self._slot = slot
        self._retire = retire
        self._session = MqttSession(settings.mqtt, f"{settings.pipeline}-ingest-{slot}", settings.pipeline)
        self._flusher = Flusher(settings, Codec(schema), schema_id)
        self._window = AckWindow()
        self._pending: list[Delivery] = []
        self._pending_since_s = 0.0
        self._backlog: deque[tuple[Flush, Outgoing | DeadLetter]] = deque()
        self._failed: str | None = None

    def run(self) -> Report:
        """Serve the slot until drain().

        Raises:
            StaleClaim: the slot is another incarnation's.
            SessionTakenOver: the broker says the same of the session.
            DeliveryFailed: Kafka refused a record for good.
        """
        producer = RecordProducer(self._settings.kafka)
        try:
            self._reconnect()
            while not (self.draining and not self._pending and not self._window):
                self.tick()
                self._turn(producer)
        finally:
            self._session.close()
        return self.report("drained")

    def _turn(self, producer: RecordProducer) -> None:
        """Read, flush, send, collect, acknowledge: one turn of the loop."""
        try:
            received = [] if self.draining else self._session.pump(TURN_S)
            if self.draining:
                producer.poll(TURN_S)
        except BrokerUnavailable as error:
            _events.warning("mqtt_connection_lost", actor=self.name, error=str(error))
            self._pending.clear()  # the broker sends them again; nothing of them was produced
            self._reconnect()
            return
        now = time.monotonic()
        if received:
            if not self._pending:
                self._pending_since_s = now
            self._pending.extend(received)
            self.counters["mqtt_adapter_messages_received_total"] += len(received)
        if self._pending and not self._backlog and self._flush_is_due(now):
            self._flush()
        self._send(producer)
        producer.poll(0.0)
        if self._failed is not None:
            raise DeliveryFailed(f"{self.name}: {self._failed}; the actor ends and the broker resends")
        due = self._window.due()
        if due:
            self.counters["stale_acks_dropped_total"] += self._session.ack(due)
            self.counters["messages_acknowledged_total"] += len(due)
        self.gauges["iot_queue_size"] = self._window.messages + len(self._pending)

    def _flush_is_due(self, now_s: float) -> bool:
        """Small flushes while idle, large ones under load: wait longer only while earlier flushes are under way."""
        settings = self._settings.ingest
        if self.draining or len(self._pending) >= settings.flush_messages:
            return True
        return now_s - self._pending_since_s >= (settings.flush_max_s if self._window else settings.flush_idle_s)

    def _flush(self) -> None:
        """Turn pending messages into records and queue them for the producer."""
        messages, self._pending = self._pending, []
        flushed = self._flusher.flush(messages, now_us(), self.reasons)
        flush = self._window.open(messages)
        flush.expect(flushed.readings + len(flushed.dead))
        flush.seal()
        self._backlog.extend((flush, part) for part in flushed.outgoing)
        self._backlog.extend((flush, letter) for letter in flushed.dead)
        self.counters["readings_total"] += flushed.readings
        self.counters["iot_anomaly_detected_total"] += flushed.anomalies
        self.counters["arrival_time_used_total"] += flushed.arrival_time_used
        self.counters["mqtt_adapter_send_failures_total"] += len(flushed.dead)

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

    def _reporter(self, flush: Flush) -> Any:
        """Return the delivery report of a flush's records."""
        delivered = flush.delivered

        def report(error: object | None, _record: object) -> None:
            if error is None:
                delivered()
            else:
                self._failed = f"kafka refused a record: {error}"

        return report

    def _reconnect(self) -> None:
        """Prove that the slot is ours, then connect; wait as long as a dependency is away."""
        while not self.draining:
            self.tick()
            try:
                self._confirm_slot()
                self._session.connect()
                self.set_state(ActorState.RUNNING)
                _events.info("mqtt_subscribed", actor=self.name, slot=self._slot, generation=self._session.generation)
                return
            except DatabaseUnavailable as error:
                self.set_state(ActorState.BLOCKED, "database")
                _events.warning("mqtt_connect_waits", actor=self.name, error=str(error))
            except BrokerUnavailable as error:
                self.set_state(ActorState.BLOCKED, "mqtt")
                _events.warning("mqtt_connect_waits", actor=self.name, error=str(error))
            self._draining.wait(RECONNECT_S)

    def _confirm_slot(self) -> None:
        """Ask the database whether this incarnation owns the slot.

        Raises:
            StaleClaim: another incarnation owns it.
            DatabaseUnavailable: nobody can say.
        """
        connection = connect(self._settings.database, "writer", application=self.name)
        try:
            rows = connection.execute(
                "SELECT owner FROM slots WHERE pipeline = %s AND role = 'ingest' AND slot = %s", (self._settings.pipeline, self._slot)
            )
        finally:
            connection.close()
        if not rows or rows[0][0] != self.name:
            raise StaleClaim(f"{self.name}: slot {self._slot} belongs to {rows[0][0] if rows else 'nobody'}; this actor ends")
