"""The ingest actor: one slot of the shared subscription, from MQTT to Kafka.

One thread does everything in turn: read the socket, cut a flush, hand its
records to Kafka, collect delivery reports, send the PUBACKs that are due. A
message is acknowledged only when every one of its readings (or its dead
letter) is known to be in Kafka. While Kafka is away nothing is acknowledged,
the broker's window fills, and the broker queues. What the broker sends beyond
the window is read only as far as there is room (MqttSettings: held_max_messages,
held_max_bytes); the rest waits in its socket, and the connection is kept alive
all the same.

Before every connect the slot is confirmed in the database, so that two
processes never take the same session from each other. A delivery that fails
for good ends the actor; its socket closes and the broker sends everything
unacknowledged to the replacement.

An actor made to retire its slot serves it to the end instead: see
actors.ingest.retirement. run() then returns with reason "retired".
"""

from __future__ import annotations

import time

from actors.adapters.kafka import RecordProducer
from actors.adapters.mqtt import READS_PER_PUMP, Delivery, MqttSession
from actors.avro import Codec
from actors.base import Actor, ActorState, Report
from actors.ingest.dropped import DroppedMessages
from actors.ingest.flush import Flusher
from actors.ingest.outbox import Outbox
from actors.ingest.retirement import Retirement
from actors.ingest.slot import confirm_slot
from rayapp.config import Settings
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable
from rayapp.log import Events

DRAINED, RETIRED = "drained", "retired"
RECONNECT_S = 0.5
TURN_S = 0.005
"""How long one turn waits for the socket: bounds how late a flush is cut and a delivery report is seen."""

_events = Events(__name__)


class Ingest(Actor):
    """One ingest slot.

    Args:
        slot: number of the slot; the MQTT client id and the row in `slots` follow from it.
        schema, schema_id: of the Avro records.
        retire: end the slot's session instead of serving it.
    """

    role = "ingest"

    def __init__(self, name: str, settings: Settings, slot: int, schema: str, schema_id: int, retire: bool = False) -> None:
        super().__init__(name)
        self._settings = settings
        self._slot = slot
        self._retire = retire
        self._session = MqttSession(settings.mqtt, f"{settings.pipeline}-ingest-{slot}", settings.pipeline)
        self._outbox = Outbox(settings, Flusher(settings, Codec(schema), schema_id), name, self.counters, self.reasons)
        self._retirement: Retirement | None = None
        self._dropped = DroppedMessages()
        self._connections = 0
        self._connected = self._serving = False

    def run(self) -> Report:
        """Serve the slot until drain(), or to the end of its session.

        Raises:
            StaleClaim: the slot is another incarnation's.
            SessionTakenOver: the broker says the same of the session.
            DeliveryFailed: Kafka refused a record for good.
        """
        producer = RecordProducer(self._settings.kafka)
        try:
            while not (self.draining and not self._outbox):
                self.tick()
                try:
                    if self._turn(producer):
                        _events.info("mqtt_session_ended", actor=self.name, slot=self._slot)
                        return self.report(RETIRED)
                except BrokerUnavailable as error:
                    self._connected = self._serving = False
                    _events.warning("mqtt_connection_lost", actor=self.name, held=self._outbox.messages, error=str(error))
        finally:
            self._session.close()
        return self.report(DRAINED)

    def _turn(self, producer: RecordProducer) -> bool:
        """Read, flush, send, collect, acknowledge: one turn of the loop; True when the slot's session has ended.

        Raises:
            BrokerUnavailable: the connection is lost; the next turn makes a new one.
        """
        if not self._connected and not self.draining and not self._connect():
            self._draining.wait(RECONNECT_S)
        received = self._receive(producer)
        now_s = time.monotonic()
        self._outbox.receive(received, now_s)
        due = self._outbox.advance(producer, now_s, at_once=self.draining)
        if due:
            stale = self._session.ack(due)
            self.counters["stale_acks_dropped_total"] += stale
            self.counters["messages_acknowledged_total"] += len(due) - stale
        self._measure()
        if not self._serving and self._connected and (self._retire or self._session.subscribed):
            self._serve()
        if self._retirement is None or not self._connected or not self._retirement.empty(len(received), self._outbox.messages):
            return False
        self._session.end()
        return True

    def _receive(self, producer: RecordProducer) -> list[Delivery]:
        """Read what there is room for; without room, or while draining, only keep the connection."""
        outbox = self._outbox
        if self._connected and not self.draining and not outbox.full:
            return self._session.pump(TURN_S, outbox.room_messages, outbox.room_bytes)
        producer.poll(TURN_S)
        return self._session.pump(0.0, 0, 0) if self._connected else []

    def _connect(self) -> bool:
        """Prove that the slot is ours, then connect; False while a dependency is away."""
        outbox = self._outbox
        try:
            confirm_slot(self._settings, self._slot, self.name)
            self._session.connect(
                subscribe=not self._retire, max_messages=min(READS_PER_PUMP, outbox.room_messages), max_bytes=outbox.room_bytes
            )
            self._retirement = Retirement(self._session) if self._retire else None
        except DatabaseUnavailable as error:
            self._wait_for("database", error)
        except BrokerUnavailable as error:
            self._wait_for("mqtt", error)
        else:
            self._connected = True
            self.counters["mqtt_reconnects_total"] += self._connections > 0
            self._connections += 1
        return self._connected

    def _serve(self) -> None:
        """Say that messages flow: from here on the broker queues for this slot and sends to it."""
        self._serving = True
        self.set_state(ActorState.RUNNING)
        session = self._session
        _events.info(
            "mqtt_retiring" if self._retire else "mqtt_subscribed",
            actor=self.name, slot=self._slot, generation=session.generation, session_present=session.session_present,
        )  # fmt: skip

    def _wait_for(self, dependency: str, error: Exception) -> None:
        if self._blocked_on != dependency:  # said once, however often it is tried
            _events.warning("mqtt_connect_waits", actor=self.name, on=dependency, error=str(error))
        self.set_state(ActorState.BLOCKED, dependency)

    def _measure(self) -> None:
        """Set the gauges, and say once when the broker has dropped messages."""
        session, outbox = self._session, self._outbox
        self.gauges["iot_queue_size"] = outbox.messages
        self.gauges["ingest_held_bytes"] = outbox.size_bytes
        self.gauges["mqtt_inflight_messages"] = session.unacknowledged
        if session.broker_dropped is not None:
            self.gauges["mqtt_broker_messages_dropped"] = session.broker_dropped
            new = self._dropped.increase(session.broker_dropped)
            if new:
                _events.error("mqtt_broker_dropped_messages", actor=self.name, dropped=new, since_broker_start=session.broker_dropped)
