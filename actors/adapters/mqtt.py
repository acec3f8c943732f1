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
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from actors.adapters.mqtt_inbox import DROPPED_TOPIC, Delivery, Inbox, acknowledgeable
from rayapp.config import MqttSettings, read_secret
from rayapp.errors import BrokerUnavailable, SessionTakenOver

SESSION_TAKEN_OVER = 0x8E
GOODBYE_S = 1.0
ANSWER_S = 10.0
"""How long a broker may take for CONNACK and SUBACK while nothing of its is unread."""
READS_PER_PUMP = 512
"""Packets read before the loop gets its turn again: bounds the time between two looks at Kafka's reports."""


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
        self._nothing = f"{share_group}/nothing"
        """Nobody subscribes to it: unsubscribing is an exchange of packets and changes nothing."""
        self._client_id = client_id
        self._client: paho.Client | None = None
        self._inbox = Inbox(self._filters)
        self._subscribes = False
        self._sent_s = self._answer_by_s = 0.0

    @property
    def generation(self) -> int:
        """Number of the current connection, counted from 1."""
        return self._inbox.generation

    @property
    def session_present(self) -> bool:
        """True when the broker had the session as this connection was made."""
        return self._inbox.session_present

    @property
    def subscribed(self) -> bool:
        """True from SUBACK until the connection is lost."""
        return self._inbox.subscribed

    @property
    def unacknowledged(self) -> int:
        """QoS 1 messages of this connection without a PUBACK."""
        return self._inbox.unacknowledged

    @property
    def broker_dropped(self) -> int | None:
        """Messages the broker dropped since it started, for whomever; None until it said so."""
        return self._inbox.broker_dropped

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
        self._inbox.begin()
        self._subscribes = subscribe
        client = self._client = self._new_client()
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
            self._await_answer(max_messages, max_bytes)
        except BaseException:
            self.close()
            raise

    def _new_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=paho.MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.username_pw_set(self._settings.username, read_secret(self._settings.password_file, "mqtt.password_file"))
        inbox = self._inbox
        client.on_connect, client.on_disconnect = self._on_connect, inbox.on_disconnect
        client.on_subscribe, client.on_unsubscribe = inbox.on_subscribe, inbox.on_unsubscribe
        client.on_message = inbox.on_message
        return client

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._inbox.on_connect(client, userdata, flags, reason, properties)
        if self._subscribes and self._inbox.connected:
            # Always subscribe: Mosquitto may say session_present although it forgot the shared subscriptions.
            wanted = [(name, SubscribeOptions(qos=1)) for name in self._filters]
            client.subscribe([*wanted, (DROPPED_TOPIC, SubscribeOptions(qos=0))])

    def _await_answer(self, max_messages: int, max_bytes: int) -> None:
        """Turn the socket until the session, or its subscription, is granted, or there is no room for what comes before that."""
        inbox = self._inbox
        while not (inbox.subscribed if self._subscribes else inbox.connected):
            if inbox.connected and not inbox.has_room(max_messages, max_bytes):
                return
            # Nothing but CONNACK can be the first packet: to read it takes no room.
            self._turn_socket(0.05, *((max_messages, max_bytes) if inbox.connected else (len(inbox) + 1, 2**31)))
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
            if not self._inbox:
                raise
        return self._inbox.take()

    def _turn_socket(self, timeout_s: float, max_messages: int, max_bytes: int) -> None:
        """Move bytes in both directions; what arrives waits in the inbox (a session delivers before SUBACK, too)."""
        client = self._client
        sock = client.socket() if client else None
        if client is None or sock is None:
            self._raise_closed()
        if client.want_write():
            client.loop_write()
        inbox, reads, readable = self._inbox, 0, True
        while reads < READS_PER_PUMP and inbox.has_room(max_messages, max_bytes):
            readable = client.socket() is not None and bool(select.select([sock], [], [], 0.0 if reads else timeout_s)[0])
            if not readable:
                break
            client.loop_read()
            reads += 1
        if not readable:
            client.loop_misc()  # nothing unread: a PINGRESP that is missing now is missing
            if self._subscribes and not inbox.subscribed and inbox.refused is None and time.monotonic() > self._answer_by_s:
                inbox.refused = "no SUBACK in time"
        elif time.monotonic() - self._sent_s >= self._settings.keepalive_s / 2:
            self.ask_nothing()
        if inbox.refused is not None:
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
            self._inbox.unacknowledged -= len(mine)
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
        return request in self._inbox.answered

    def end(self, timeout_s: float = 10.0) -> None:
        """Disconnect and have the broker forget the session, subscriptions and queue.

        Over the connection that holds the session, never over a new one: a slot
        that somebody else took meanwhile is out of its reach.

        Raises:
            BrokerUnavailable: the broker did not confirm by closing; the session may be there still.
        """
        if self._client is None or self._client.socket() is None:
            self._raise_closed()
        properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]  # as for CONNECT
        properties.SessionExpiryInterval = 0
        self._say_goodbye(properties, timeout_s)

    def close(self) -> None:
        """Disconnect; the broker keeps the session and goes on queueing for it."""
        with suppress(BrokerUnavailable):  # it keeps the session of a connection that breaks as well
            self._say_goodbye(None, GOODBYE_S)

    def _say_goodbye(self, properties: Properties | None, timeout_s: float) -> None:
        """Send DISCONNECT and read until the broker closes: closing on unread messages would reset what it has not read, PUBACKs too."""
        client, self._client, self._inbox.subscribed = self._client, None, False
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
        inbox, who = self._inbox, f"mqtt slot {self._client_id}"
        inbox.subscribed = False
        if inbox.refused is not None:
            # A refusal closes the socket too; what a person needs to read is the broker's reason.
            raise BrokerUnavailable(f"{who}: {inbox.refused}; will try again")
        if inbox.closed == SESSION_TAKEN_OVER:
            raise SessionTakenOver(f"{who}: another client uses this client id; this actor ends")
        raise BrokerUnavailable(f"{who}: connection lost (reason {inbox.closed}); will try again")


__all__ = ["DROPPED_TOPIC", "READS_PER_PUMP", "Delivery", "MqttSession", "acknowledgeable"]
