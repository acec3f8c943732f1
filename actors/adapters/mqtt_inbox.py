"""What the broker has said: messages not handed over yet, and how it answered what this connection asked.

Filled by the client library's callbacks, read by the session; no socket, no
clock. Messages outlive their connection: what was read is handed over, whatever
becomes of the connection, because a broker that was killed has forgotten it.
Everything else is about the current connection and begins anew with the next.
The broker also tells its count of dropped messages, which a full queue leads to
while gateways still get their PUBACK.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DROPPED_TOPIC = "$SYS/broker/publish/messages/dropped"


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


class Inbox:
    """What has arrived.

    Args:
        filters: of the subscription; the broker's answer to others does not matter.

    Attributes:
        generation: of the current connection, counted from 1.
        unacknowledged: QoS 1 messages of this connection without a PUBACK.
        connected: CONNACK came.
        session_present: what it said of the session.
        subscribed: SUBACK came and granted the filters.
        refused: why the broker refused the connection or the subscription.
        closed: reason code of the end, when there was one.
        answered: packet ids of the UNSUBACKs.
        broker_dropped: messages the broker dropped since it started, for whomever; None until it said so.
    """

    def __init__(self, filters: Sequence[str]) -> None:
        self._filters = filters
        self._received: deque[Delivery] = deque()
        self._received_bytes = 0
        self.generation = 0
        self.broker_dropped: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.unacknowledged = 0
        self.connected = self.session_present = self.subscribed = False
        self.refused: str | None = None
        self.closed: int | None = None
        self.answered: set[int] = set()

    def begin(self) -> None:
        """Count the next connection."""
        self.generation += 1
        self._forget()

    def __len__(self) -> int:
        return len(self._received)

    def has_room(self, max_messages: int, max_bytes: int) -> bool:
        """Say whether one more message may be read."""
        return len(self._received) < max_messages and self._received_bytes < max_bytes

    def take(self) -> list[Delivery]:
        """Hand the messages over, in receive order."""
        received = list(self._received)
        self._received.clear()
        self._received_bytes = 0
        return received

    def on_connect(self, _client: Any, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        """CONNACK."""
        if reason.is_failure:
            self.refused = f"broker refused the connection: {reason}"
        else:
            self.connected, self.session_present = True, bool(flags.session_present)

    def on_subscribe(self, _client: Any, _userdata: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        """SUBACK. Only the messages' own filters, asked for first, matter: a broker that keeps $SYS to itself serves as well."""
        refused = [str(reason) for reason in reasons[: len(self._filters)] if reason.is_failure]
        if refused:
            self.refused = f"broker refused the subscription to {list(self._filters)}: {refused}"
        else:
            self.subscribed = True

    def on_unsubscribe(self, _client: Any, _userdata: Any, mid: int, _reasons: Any, _properties: Any) -> None:
        """UNSUBACK."""
        self.answered.add(mid)

    def on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        """PUBLISH: a message, or what the broker says about itself."""
        if message.topic.startswith("$SYS/"):
            if message.topic == DROPPED_TOPIC and message.payload.isdigit():
                self.broker_dropped = int(message.payload)
            return
        payload = bytes(message.payload)
        self._received.append(Delivery(message.topic, payload, message.mid, message.qos, self.generation))
        self._received_bytes += len(payload)
        self.unacknowledged += message.qos > 0

    def on_disconnect(self, _client: Any, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        """DISCONNECT, or the connection's end."""
        self.subscribed = False
        self.closed = reason.value if reason is not None else None
