"""The only module that speaks MQTT: one slot's persistent session, pumped by its owner's thread.

No thread of paho's runs: the ingest loop calls pump(), which reads what is
there, and ack(), which queues PUBACKs; so receiving, acknowledging and
reconnecting never race. There is no automatic reconnect either: the owner
first proves that the slot is still its own, then calls connect() again.

Every connection has a generation. A message carries the generation it came
with, and an acknowledgement of an older generation is dropped: after a
reconnect the broker sends unacknowledged messages again under the same packet
ids, and a stale PUBACK could acknowledge a message nobody has stored.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Sequence
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
READS_PER_PUMP = 512
"""Packets read before the loop gets its turn again: bounds the time between two looks at Kafka's reports."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One QoS 1 message as the broker delivered it."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    generation: int


class MqttSession:
    """One client id's persistent session on the broker.

    Args:
        settings: broker, account, topics and window.
        client_id: fixed per slot: a replacement takes over the same session.
        share_group: name of the shared subscription, the pipeline's.
    """

    def __init__(self, settings: MqttSettings, client_id: str, share_group: str) -> None:
        self._settings = settings
        self._filters = [f"$share/{share_group}/{topic}" for topic in settings.topics]
        self._client_id = client_id
        self._client: paho.Client | None = None
        self._received: deque[Delivery] = deque()
        self._subscribed = False
        self._refused: str | None = None
        self._closed: int | None = None
        self.generation = 0

    @property
    def subscribed(self) -> bool:
        """True from SUBACK until the connection is lost."""
        return self._subscribed

    def connect(self, timeout_s: float = 10.0) -> None:
        """Open a connection and wait for SUBACK.

        Raises:
            BrokerUnavailable: no answer, refused, or the subscription was not granted.
            SessionTakenOver: another client took this client id.
            ConfigurationError: the password file cannot be read.
        """
        self.close()
        self.generation += 1
        self._received.clear()
        self._subscribed, self._refused, self._closed = False, None, None
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.username_pw_set(self._settings.username, read_secret(self._settings.password_file, "mqtt.password_file"))
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves its constructor untyped
        properties.SessionExpiryInterval = self._settings.session_expiry_s
        properties.ReceiveMaximum = self._settings.receive_maximum
        self._client = client
        try:
            client.connect(
                self._settings.host,
                self._settings.port,
                keepalive=self._settings.keepalive_s,
                clean_start=False,
                properties=properties,
            )
        except OSError as error:
            raise BrokerUnavailable(f"mqtt {self._settings.host}:{self._settings.port}: {error}; will try again") from error
        try:
            self._await_suback(time.monotonic() + timeout_s)
        except BaseException:
            self.close()
            raise

    def _await_suback(self, deadline_s: float) -> None:
        """Turn the socket until the subscription is granted."""
        while not self._subscribed:
            if self._refused is not None:
                raise BrokerUnavailable(f"mqtt slot {self._client_id}: {self._refused}; will try again")
            if time.monotonic() > deadline_s:
                raise BrokerUnavailable(f"mqtt slot {self._client_id}: no SUBACK in time; will try again")
            self._turn_socket(0.05)

    def pump(self, timeout_s: float) -> list[Delivery]:
        """Read and write what the socket allows, waiting at most `timeout_s` for the first byte.

        Returns the messages received, in receive order.

        Raises:
            BrokerUnavailable: the connection is lost.
            SessionTakenOver: another client took this client id.
        """
        self._turn_socket(timeout_s)
        received = list(self._received)
        self._received.clear()
        return received

    def _turn_socket(self, timeout_s: float) -> None:
        """Move bytes in both directions; what arrives waits in _received (a session delivers before SUBACK, too)."""
        client = self._client
        sock = client.socket() if client else None
        if client is None or sock is None:
            self._raise_closed()
        if client.want_write():
            client.loop_write()
        readable, _, _ = select.select([sock], [], [], timeout_s)
        reads = 0
        while readable and reads < READS_PER_PUMP and client.socket() is not None:
            client.loop_read()
            reads += 1
            readable, _, _ = select.select([sock], [], [], 0) if client.socket() is not None else ([], [], [])
        client.loop_misc()
        if client.socket() is None:
            self._raise_closed()

    def ack(self, deliveries: Sequence[Delivery]) -> int:
        """Queue PUBACKs in the given order; returns how many were of an older connection and dropped."""
        stale = 0
        for delivery in deliveries:
            if delivery.generation != self.generation or self._client is None:
                stale += 1
            elif delivery.qos > 0:
                self._client.ack(delivery.mid, delivery.qos)
        if self._client is not None and self._client.want_write() and self._client.socket() is not None:
            self._client.loop_write()
        return stale

    def close(self) -> None:
        """Disconnect; the broker keeps the session and goes on queueing for it."""
        if self._client is not None:
            self._client.on_disconnect = None
            self._client.disconnect()
            sock = self._client.socket()
            if sock is not None:
                self._client.loop_write()
                sock.close()  # paho leaves it open when the goodbye could not be written
            self._client = None
        self._subscribed = False

    def _raise_closed(self) -> NoReturn:
        self._subscribed = False
        if self._refused is not None:
            # A refusal closes the socket too; what a person needs to read is the broker's reason.
            raise BrokerUnavailable(f"mqtt slot {self._client_id}: {self._refused}; will try again")
        if self._closed == SESSION_TAKEN_OVER:
            raise SessionTakenOver(f"mqtt slot {self._client_id}: another client uses this client id; this actor ends")
        raise BrokerUnavailable(f"mqtt slot {self._client_id}: connection lost (reason {self._closed}); will try again")

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"broker refused the connection: {reason}"
            return
        # Always subscribe: Mosquitto may say session_present although it forgot the shared subscriptions.
        client.subscribe([(name, SubscribeOptions(qos=1)) for name in self._filters])

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        refused = [str(reason) for reason in reasons if reason.is_failure]
        if refused:
            self._refused = f"broker refused the subscription to {self._filters}: {refused}"
        else:
            self._subscribed = True

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        self._received.append(Delivery(message.topic, bytes(message.payload), message.mid, message.qos, self.generation))

    def _on_disconnect(self, _client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._subscribed = False
        self._closed = reason.value if reason is not None else None
