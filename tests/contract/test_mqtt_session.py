"""The MQTT session against a scripted broker: what real ones say only sometimes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import eventually

from actors.adapters.mqtt import DROPPED_TOPIC, READS_PER_PUMP, Delivery, MqttSession
from rayapp.config import MqttSettings
from rayapp.errors import BrokerUnavailable, SessionTakenOver

CONNACK = bytes.fromhex("2003000000")
REFUSED = bytes.fromhex("2003008600")
EARLY = bytes.fromhex("320a000174000700") + b"text"
"""PUBLISH, QoS 1, topic t, packet id 7, no properties."""
PINGREQ, PUBACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT = 0xC0, 0x40, 0x82, 0xA2, 0xE0
TAKEN_OVER = bytes.fromhex("e0028e00")


class ScriptedBroker:
    """Answers a CONNECT and a SUBSCRIBE with given bytes, then says its last words and closes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.after_connect, self.after_subscribe = CONNACK, b""
        self.received = b""
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(self.after_connect)
            subscribe = connection.recv(4096)
            if subscribe:
                suback = bytes([0x90, 4, *subscribe[2:4], 0, 1])
                connection.sendall(suback + self.after_subscribe)
                while self.after_subscribe == b"" and (more := connection.recv(4096)):
                    self.received += more


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    """A scripted broker, started by the test when its script is set."""
    made = ScriptedBroker()
    yield made
    made.listener.close()
    made.thread.join(10)


@pytest.fixture
def session(broker: ScriptedBroker, tmp_path: Path) -> Iterator[MqttSession]:
    """A session with that broker."""
    password = tmp_path / "password"
    password.write_text("secret", encoding="utf-8")
    made = MqttSession(MqttSettings(port=broker.port, password_file=password), "slot", "group")
    yield made
    made.close()


def publish(topic: str, payload: bytes, mid: int | None) -> bytes:
    """Return a PUBLISH; without a packet id of QoS 0, as a retained message of $SYS is."""
    body = len(topic).to_bytes(2, "big") + topic.encode() + (b"" if mid is None else mid.to_bytes(2, "big")) + b"\0" + payload
    assert len(body) < 128
    return bytes([0x31 if mid is None else 0x32, len(body)]) + body


class WireBroker:
    """Reads packets, remembers their kinds, answers SUBSCRIBE and UNSUBSCRIBE, and PINGREQ only when told to."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.packets: list[tuple[int, bytes]] = []
        self.before_answers = self.before_suback = b""
        self.suback = bytes([0, 1, 0])
        self.answers_pings = True
        self.connection: socket.socket | None = None
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        self.connection, _ = self.listener.accept()
        with self.connection, self.connection.makefile("rb") as stream:
            while head := stream.read(2):
                assert head[1] < 128
                self.packets.append((head[0], body := stream.read(head[1])))
                if head[0] == 0x10:
                    self.connection.sendall(CONNACK)
                elif head[0] == SUBSCRIBE:
                    self.connection.sendall(self.before_suback + (bytes([0x90, 5, *body[:2]]) + self.suback if self.suback else b""))
                elif head[0] == UNSUBSCRIBE:
                    self.connection.sendall(self.before_answers + bytes([0xB0, 4, *body[:2], 0, 0x11]))
                elif head[0] == PINGREQ and self.answers_pings:
                    self.connection.sendall(b"\xd0\0")
                elif head[0] == DISCONNECT:
                    return

    def send(self, *packets: bytes) -> None:
        assert self.connection is not None
        self.connection.sendall(b"".join(packets))

    def kinds(self, kind: int) -> list[bytes]:
        """Return the bodies of the packets of a kind."""
        return [body for each, body in self.packets if each == kind]


@pytest.fixture
def wire() -> Iterator[WireBroker]:
    """A broker of the wire, ended with the test."""
    made = WireBroker()
    yield made
    made.listener.close()
    made.thread.join(10)


@pytest.fixture
def unwired(wire: WireBroker, tmp_path: Path) -> Iterator[MqttSession]:
    """A session that is to connect to it, whose keepalive is a second, shorter than settings allow."""
    password = tmp_path / "password"
    password.write_text("secret", encoding="utf-8")
    settings = MqttSettings(port=wire.port, password_file=password).model_copy(update={"keepalive_s": 1})
    made = MqttSession(settings, "slot", "group")
    yield made
    made.close()


@pytest.fixture
def wired(unwired: MqttSession) -> MqttSession:
    """The same session, connected."""
    unwired.connect()
    return unwired


def test_session_taken_over_is_told_apart_from_a_lost_connection(broker: ScriptedBroker, session: MqttSession) -> None:
    """DISCONNECT with 0x8E means that another client has the session: the actor must end, not reconnect."""
    broker.after_subscribe = TAKEN_OVER
    broker.thread.start()

    def serve() -> None:
        session.connect()
        eventually(lambda: bool(session.pump(0.05)))

    with pytest.raises(SessionTakenOver):
        serve()


def test_messages_before_suback_are_kept(broker: ScriptedBroker, session: MqttSession) -> None:
    """A persistent session delivers right after CONNACK; those messages come out of the first pump()."""
    broker.after_connect = CONNACK + EARLY
    broker.thread.start()
    session.connect()
    (delivery,) = session.pump(0.05)

    assert (b"text", 7, session.generation) == (delivery.payload, delivery.mid, delivery.generation)
    assert 0 == session.ack([delivery])
    assert eventually(lambda: bool(broker.received))
    assert bytes([0x40, 2, 0, 7]) == broker.received


def test_connection_that_closes_before_suback_is_the_broker_away(broker: ScriptedBroker, session: MqttSession) -> None:
    """A broker that refuses or breaks during connect() is waited for."""
    broker.after_connect = REFUSED
    broker.thread.start()
    with pytest.raises(BrokerUnavailable):
        session.connect()
    assert not session.subscribed


def test_pump_reads_no_more_than_there_is_room_for(wire: WireBroker, wired: MqttSession) -> None:
    """The rest stays in the socket, in order, until there is room."""
    wire.send(*[publish("t", b"%d" % n, n + 1) for n in range(10)])
    found: list[list[bytes]] = []
    assert eventually(lambda: bool(found.append([d.payload for d in wired.pump(0.05, 3)]) or found[-1]))
    assert [] == wired.pump(0.05, 0)
    found.append([d.payload for d in wired.pump(0.05, 100, 2)])  # two bytes: two messages
    found.append([d.payload for d in wired.pump(0.05)])

    assert [b"%d" % n for n in range(10)] == [payload for each in found for payload in each]
    assert [3, 2, 5] == [len(each) for each in found if each]


def test_unread_messages_do_not_cost_the_connection(wire: WireBroker, wired: MqttSession) -> None:
    """With no room for three times the keepalive, something is sent in time, and a PINGRESP behind unread messages is no death."""
    wire.send(*[publish("t", b"%d" % n, n + 1) for n in range(5)])
    start = time.monotonic()
    while time.monotonic() - start < 3.2:
        assert [] == wired.pump(0.0, 0)
        wire.thread.join(0.02)
    sent = len(wire.kinds(UNSUBSCRIBE))

    assert 3 <= sent <= 7
    assert 5 == len(wired.pump(0.05))
    assert eventually(lambda: not wired.pump(0.05) and wired.subscribed)


def test_steady_stream_of_messages_does_not_starve_the_keepalive(
    wire: WireBroker, wired: MqttSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is never empty, and flushes that take their time, leave no room for a missed keepalive."""
    monkeypatch.setattr("actors.adapters.mqtt.READS_PER_PUMP", 1)
    wire.send(*[publish("t", b"x", n + 1) for n in range(400)])
    received, start = 0, time.monotonic()
    while time.monotonic() - start < 2.5:
        received += len(wired.pump(0.05))
        wire.thread.join(0.02)  # a flush

    assert 20 < received < 400
    assert wire.kinds(UNSUBSCRIBE)


def test_broker_that_says_nothing_is_lost(wire: WireBroker, wired: MqttSession) -> None:
    """Nothing unread and no PINGRESP within the keepalive: the connection is given up."""
    wire.answers_pings = False
    with pytest.raises(BrokerUnavailable):
        eventually(lambda: bool(wired.pump(0.05)))
    assert wire.kinds(PINGREQ)


def test_count_of_dropped_messages_is_no_message(wire: WireBroker, wired: MqttSession) -> None:
    """What the broker says about itself reaches neither the pipeline nor an acknowledgement; nonsense is no count."""
    assert DROPPED_TOPIC.encode() in wire.kinds(SUBSCRIBE)[0]
    assert wired.broker_dropped is None
    wire.send(publish(DROPPED_TOPIC, b"42", None), publish("$SYS/broker/other", b"7", None), publish("t", b"m", 9))
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(wired.pump(0.05)) or found))

    assert ([b"m"], 42, 1) == ([delivery.payload for delivery in found], wired.broker_dropped, wired.unacknowledged)
    wire.send(publish(DROPPED_TOPIC, b"many", None), publish("t", b"n", 10))
    assert eventually(lambda: bool(found.extend(wired.pump(0.05)) or len(found) == 2))
    assert 42 == wired.broker_dropped


def test_qos_0_is_not_acknowledged(wire: WireBroker, wired: MqttSession) -> None:
    """A message without a packet id gets no PUBACK; the one behind it gets its own."""
    wire.send(publish("t", b"zero", None), publish("t", b"one", 3))
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(wired.pump(0.05)) or len(found) == 2))

    assert [0, 1] == [delivery.qos for delivery in found]
    assert 0 == wired.ack(found)
    assert eventually(lambda: bool(wire.kinds(PUBACK)))
    assert [bytes([0, 3])] == wire.kinds(PUBACK)
    assert 0 == wired.unacknowledged


def test_answer_comes_behind_what_was_sent_before_it(wire: WireBroker, wired: MqttSession) -> None:
    """A request for nothing is answered, and a message before the answer is received with it or earlier."""
    wire.before_answers = publish("t", b"m", 1)
    request = wired.ask_nothing()
    received: list[Delivery] = []
    assert eventually(lambda: bool(received.extend(wired.pump(0.05)) or wired.answered(request)))

    assert [b"m"] == [delivery.payload for delivery in received]
    assert not wired.answered(request + 1)
    (body,) = wire.kinds(UNSUBSCRIBE)
    assert b"group/nothing" in body


def test_end_says_that_the_session_expires_now(wire: WireBroker, wired: MqttSession) -> None:
    """DISCONNECT with session expiry 0 over this connection, and the broker's closing is the confirmation."""
    wired.end()

    (body,) = wire.kinds(DISCONNECT)
    assert bytes([0, 5, 17, 0, 0, 0, 0]) == body
    with pytest.raises(BrokerUnavailable):
        wired.pump(0.0)


def test_end_without_the_brokers_confirmation_is_not_done(wire: WireBroker, wired: MqttSession) -> None:
    """A broker that resets, or does not close in time, may have the session still: the caller does it again."""
    wire.send(publish("t", b"unread", 1))
    assert wire.connection is not None
    wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))  # close() resets

    with pytest.raises(BrokerUnavailable):
        wired.end()
    with pytest.raises(BrokerUnavailable):
        wired.end()


def test_window_before_suback_does_not_keep_the_slot_from_its_subscription(wire: WireBroker, unwired: MqttSession) -> None:
    """More unacknowledged messages than one pump reads come before SUBACK: connect() returns, pump() finds it behind them."""
    count = 3 * READS_PER_PUMP
    wire.before_suback = b"".join(publish("t", b"%d" % n, n + 1) for n in range(count))
    unwired.connect(2.0)
    assert not unwired.subscribed
    found: list[bytes] = []
    assert eventually(lambda: bool(found.extend(d.payload for d in unwired.pump(0.05)) or unwired.subscribed))
    found.extend(d.payload for d in unwired.pump(0.05))

    assert [b"%d" % n for n in range(count)] == found


@pytest.mark.parametrize("room", [0, 2])
def test_connect_takes_no_more_than_there_is_room_for(wire: WireBroker, unwired: MqttSession, room: int) -> None:
    """A slot that is full when it connects again gets its connection, and its messages when there is room."""
    wire.before_suback = b"".join(publish("t", b"%d" % n, n + 1) for n in range(5))
    unwired.connect(2.0, max_messages=room)

    assert (False, room) == (unwired.subscribed, len(unwired.pump(0.0, 0)))
    assert [b"%d" % n for n in range(room, 5)] == [d.payload for d in unwired.pump(0.2)]
    assert unwired.subscribed


def test_suback_that_does_not_come_after_connect_is_the_broker_away(wire: WireBroker, unwired: MqttSession) -> None:
    """connect() that returned before SUBACK has not waived it: a broker that is silent for so long is given up."""
    wire.before_suback, wire.suback = publish("t", b"m", 1), b""
    unwired.connect(0.5, max_messages=1)
    assert 1 == len(unwired.pump(0.0))
    with pytest.raises(BrokerUnavailable, match="no SUBACK"):
        eventually(lambda: bool(unwired.pump(0.05)), 3.0)


def test_refusal_after_connect_is_said(wire: WireBroker, unwired: MqttSession) -> None:
    """A subscription that is refused behind a full window ends the connection with the broker's reason."""
    wire.before_suback, wire.suback = publish("t", b"m", 1), bytes([0, 0x87, 0])
    unwired.connect(max_messages=1)
    assert 1 == len(unwired.pump(0.0))
    with pytest.raises(BrokerUnavailable, match="refused the subscription"):
        eventually(lambda: bool(unwired.pump(0.05)), 3.0)


def test_messages_before_a_lost_connection_are_received(wire: WireBroker, wired: MqttSession) -> None:
    """What was read before the end is handed over, the next call says that the connection is lost: a killed broker sends it to nobody."""
    wire.send(publish("t", b"last", 1), TAKEN_OVER)
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(wired.pump(0.05)) or found))

    assert [b"last"] == [delivery.payload for delivery in found]
    with pytest.raises(SessionTakenOver):
        eventually(lambda: bool(wired.pump(0.05)), 3.0)
