"""The only module that speaks MQTT: one slot's persistent session, pumped by its owner's thread.

No thread of paho's runs: the ingest loop calls pump(), which reads what is
there, and ack(), which queues PUBACKs; so receiving, acknowledging and
reconnecting never race. There is no automatic reconnect either: the owner
first proves that the slot is still its own, then calls connect() again.

Every connection has a generation. A message carries the generation it came
with, and an acknowledgement of an older generation is dropped: after a
reconnect the broker sends unacknowledged messages again under the same packet
ids, and a stale PUBACK could acknowledge a message nobody has stored.

pump() reads no more than its caller has room for. The broker's window alone
does not bound that: it counts messages, not bytes, and Mosquitto 2.0.11 lets a
whole window through for every PUBACK while it has a queue (measured: 1,000
received, 2,000 after one PUBACK, 5,000 after four; 2.0.12 and later keep to
it). What is not read stays in the socket and in the broker. An unread PINGRESP
is no disconnect: paho's judgement of the connection is asked for only when the
socket is empty; until then unread bytes are the sign of life, and packets of
our own keep the broker's patience.

The session also listens to the broker's count of dropped messages, which a
full queue leads to while gateways still get their PUBACK.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from rayapp.config import MqttSettings, read_secret
from rayapp.errors import BrokerUnavailable, SessionTakenOver

SESSION_TAKEN_OVER = 0x8E
GOODBYE_S = 1.0
ANSWER_S = 10.0
"""How long a broker may take for CONNACK and SUBACK while nothing of its is unread."""
DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"
READS_PER_PUMP = 512
"""Packets read before the loop gets its turn again: bounds the time between two looks at Kafka's reports."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message as the broker delivered it; QoS 0 has no packet id and is never acknowledged."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    generation: int


def acknowledgeable(deliveries: Sequence[Delivery], generation: int) -> list[Delivery]:
    """Return those that a connection may acknowledge: its own, and of QoS 1."""
    return [delivery for delivery in deliveries if delivery.generation == generation and delivery.qos > 0]


class MqttSession:
    """One client id's persistent session on the broker.

    Args:
        settings: broker, account, topics and window.
        client_id: fixed per slot: a replacement takes over the same session.
        share_group: name of the shared subscription, the pipeline's.

    Attributes:
        generation: of the current connection, counted from 1.
        session_present: the broker had the session when this connection was made.
        unacknowledged: QoS 1 messages of this connection without a PUBACK.
        broker_dropped: messages the broker dropped since it started, for whomever; None until it said so.
    """

    def __init__(self, settings: MqttSettings, client_id: str, share_group: str) -> None:
        self._settings = settings
        self._filters = [f"$share/{share_group}/{topic}" for topic in settings.topics]
        self._nothing = f"{share_group}/nothing"
        """Nobody subscribes to it: unsubscribing is an exchange of packets and changes nothing."""
        self._client_id = client_id
        self._client: paho.Client | None = None
        self._received: deque[Delivery] = deque()
        self._received_bytes = 0
        self._connected = self._subscribing = self._subscribed = False
        self._answered: set[int] = set()
        self._refused: str | None = None
        self._closed: int | None = None
        self._sent_s = self._answer_by_s = 0.0
        self.generation = 0
        self.session_present = False
        self.unacknowledged = 0
        self.broker_dropped: int | None = None

    @property
    def subscribed(self) -> bool:
        """True from SUBACK until the connection is lost."""
        return self._subscribed

    def connect(
        self, timeout_s: float = ANSWER_S, *, subscribe: bool = True, max_messages: int = READS_PER_PUMP, max_bytes: int = 2**31
    ) -> None:
        """Open a connection and wait for SUBACK, or for CONNACK when the slot is not to subscribe any more.

        A session delivers its unacknowledged messages, up to a whole window, before SUBACK. With no more room for them
        this returns after CONNACK; pump() brings the rest, and `subscribed` says when SUBACK was among it.

        Args:
            max_messages, max_bytes: room, as for pump().

        Raises:
            BrokerUnavailable: no answer, refused, or the subscription was not granted.
            SessionTakenOver: another client took this client id.
            ConfigurationError: the password file cannot be read.
        """
        self.close()
        self.generation += 1
        self.unacknowledged = 0
        self._connected = self._subscribing = False
        self._refused, self._closed = None, None
        self._answered.clear()
        client = self._client = self._new_client(subscribe)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves its constructor untyped
        properties.SessionExpiryInterval = self._settings.session_expiry_s
        properties.ReceiveMaximum = self._settings.window
        host, port, keepalive_s = self._settings.host, self._settings.port, self._settings.keepalive_s
        try:
            client.connect(host, port, keepalive=keepalive_s, clean_start=False, properties=properties)
        except OSError as error:
            raise BrokerUnavailable(f"mqtt {host}:{port}: {error}; will try again") from error
        sock = client.socket()
        if isinstance(sock, socket.socket):
            # Finds a dead host also while nothing is read: what we send must be confirmed by its kernel.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 2_000 * keepalive_s)
        self._sent_s = time.monotonic()
        self._answer_by_s = self._sent_s + timeout_s
        try:
            self._await_answer(subscribe, max_messages, max_bytes)
        except BaseException:
            self.close()
            raise

    def _new_client(self, subscribe: bool) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.username_pw_set(self._settings.username, read_secret(self._settings.password_file, "mqtt.password_file"))
        client.on_connect = self._on_connect_subscribe if subscribe else self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        return client

    def _await_answer(self, subscribe: bool, max_messages: int, max_bytes: int) -> None:
        """Turn the socket until the session, or its subscription, is granted, or there is no room for what comes before that."""
        while not (self._subscribed if subscribe else self._connected):
            if self._connected and (len(self._received) >= max_messages or self._received_bytes >= max_bytes):
                return
            # Nothing but CONNACK can be the first packet: to read it takes no room.
            self._turn_socket(0.05, *((max_messages, max_bytes) if self._connected else (len(self._received) + 1, 2**31)))
            if time.monotonic() > self._answer_by_s:
                raise BrokerUnavailable(f"mqtt slot {self._client_id}: no CONNACK and SUBACK in time; will try again")

    def pump(self, timeout_s: float, max_messages: int = READS_PER_PUMP, max_bytes: int = 2**31) -> list[Delivery]:
        """Read and write what the socket allows, waiting at most `timeout_s` for the first byte.

        Args:
            max_messages: room for so many; 0 reads nothing and keeps the connection.
            max_bytes: room for so many bytes of payload; the last message may pass it.

        Returns the messages received, in receive order; those of a connection that is lost meanwhile, too, the next call raises.

        Raises:
            BrokerUnavailable: the connection is lost.
            SessionTakenOver: another client took this client id.
        """
        try:
            self._turn_socket(timeout_s, max_messages, max_bytes)
        except (BrokerUnavailable, SessionTakenOver):
            if not self._received:
                raise
        received = list(self._received)
        self._received.clear()
        self._received_bytes = 0
        return received

    def _turn_socket(self, timeout_s: float, max_messages: int, max_bytes: int) -> None:
        """Move bytes in both directions; what arrives waits in _received (a session delivers before SUBACK, too)."""
        client = self._client
        sock = client.socket() if client else None
        if client is None or sock is None:
            self._raise_closed()
        if client.want_write():
            client.loop_write()
        reads, readable = 0, True
        while reads < READS_PER_PUMP and len(self._received) < max_messages and self._received_bytes < max_bytes:
            readable = client.socket() is not None and bool(select.select([sock], [], [], 0.0 if reads else timeout_s)[0])
            if not readable:
                break
            client.loop_read()
            reads += 1
        if not readable:
            client.loop_misc()  # nothing unread: a PINGRESP that is missing now is missing
            if self._subscribing and time.monotonic() > self._answer_by_s:
                self._refused = "no SUBACK in time"
        elif time.monotonic() - self._sent_s >= self._settings.keepalive_s / 2:
            self.ask_nothing()
        if self._refused is not None:
            self.close()
        if client.socket() is None:
            self._raise_closed()

    def ack(self, deliveries: Sequence[Delivery]) -> int:
        """Queue PUBACKs in the given order; returns how many were of an older connection and dropped."""
        client = self._client
        if client is None or client.socket() is None:
            return len(deliveries)
        mine = acknowledgeable(deliveries, self.generation)
        for delivery in mine:
            client.ack(delivery.mid, delivery.qos)
        if mine:
            self.unacknowledged -= len(mine)
            self._sent_s = time.monotonic()
        if client.want_write() and client.socket() is not None:
            client.loop_write()
        return sum(delivery.generation != self.generation for delivery in deliveries)

    def unsubscribe(self) -> int:
        """Ask the broker to end the subscription; answered() says when it has."""
        return self._ask_unsubscribe(self._filters)

    def ask_nothing(self) -> int:
        """Send a request that changes nothing; its answer follows everything the broker sent before it."""
        return self._ask_unsubscribe([self._nothing])

    def _ask_unsubscribe(self, filters: list[str]) -> int:
        client = self._client
        mid = client.unsubscribe(filters)[1] if client else None
        if mid is None:
            self._raise_closed()
        self._sent_s = time.monotonic()
        return mid

    def answered(self, request: int) -> bool:
        """True when the broker has answered that request of this connection."""
        return request in self._answered

    def end(self, timeout_s: float = 10.0) -> None:
        """Disconnect and have the broker forget the session, subscriptions and queue.

        Over the connection that holds the session, never over a new one: a slot
        that somebody else took meanwhile is out of its reach.

        Raises:
            BrokerUnavailable: the broker did not confirm by closing; the session may be there still.
        """
        if self._client is None or self._client.socket() is None:
            self._raise_closed()
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0
        self._say_goodbye(properties, timeout_s)

    def close(self) -> None:
        """Disconnect; the broker keeps the session and goes on queueing for it."""
        with suppress(BrokerUnavailable):  # it keeps the session of a connection that breaks as well
            self._say_goodbye(None, GOODBYE_S)

    def _say_goodbye(self, properties: Properties | None, timeout_s: float) -> None:
        """Send DISCONNECT and read until the broker closes: closing on unread messages would reset what it has not read, PUBACKs too."""
        client, self._client, self._subscribed = self._client, None, False
        sock = client.socket() if client else None
        if client is None or not isinstance(sock, socket.socket):
            return
        client.on_disconnect = None
        with sock.dup() as rest:
            rest.settimeout(timeout_s)
            client.disconnect(properties=properties)  # paho closes its socket when this is written
            written = client.socket() is None
            sock.close()
            if not written:
                raise BrokerUnavailable(f"mqtt slot {self._client_id}: the broker does not take our goodbye")
            try:
                rest.shutdown(socket.SHUT_WR)
                while rest.recv(65_536):
                    pass
            except OSError as error:
                raise BrokerUnavailable(f"mqtt slot {self._client_id}: the broker did not confirm the end: {error}") from error

    def _raise_closed(self) -> NoReturn:
        self._subscribed = False
        if self._refused is not None:
            # A refusal closes the socket too; what a person needs to read is the broker's reason.
            raise BrokerUnavailable(f"mqtt slot {self._client_id}: {self._refused}; will try again")
        if self._closed == SESSION_TAKEN_OVER:
            raise SessionTakenOver(f"mqtt slot {self._client_id}: another client uses this client id; this actor ends")
        raise BrokerUnavailable(f"mqtt slot {self._client_id}: connection lost (reason {self._closed}); will try again")

    def _on_connect(self, _client: paho.Client, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"broker refused the connection: {reason}"
            return
        self._connected, self.session_present = True, bool(flags.session_present)

    def _on_connect_subscribe(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._on_connect(client, userdata, flags, reason, properties)
        if self._connected:
            # Always subscribe: Mosquitto may say session_present although it forgot the shared subscriptions.
            wanted = [(name, SubscribeOptions(qos=1)) for name in self._filters]
            client.subscribe([*wanted, (DROPPED_TOPIC, SubscribeOptions(qos=0))])
            self._subscribing = True

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        # Only the messages' own filters matter: a broker without $SYS, or that keeps it to itself, serves as well.
        self._subscribing = False
        refused = [str(reason) for reason in reasons[: len(self._filters)] if reason.is_failure]
        if refused:
            self._refused = f"broker refused the subscription to {self._filters}: {refused}"
        else:
            self._subscribed = True

    def _on_unsubscribe(self, _client: paho.Client, _userdata: Any, mid: int, _reasons: Any, _properties: Any) -> None:
        self._answered.add(mid)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        if message.topic.startswith("$SYS/"):
            if message.topic == DROPPED_TOPIC and message.payload.isdigit():
                self.broker_dropped = int(message.payload)
            return
        payload = bytes(message.payload)
        self._received.append(Delivery(message.topic, payload, message.mid, message.qos, self.generation))
        self._received_bytes += len(payload)
        self.unacknowledged += message.qos > 0

    def _on_disconnect(self, _client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._subscribed = False
        self._closed = reason.value if reason is not None else None
