"""The MQTT session against a scripted broker: what real ones say only sometimes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import eventually

from actors.adapters.mqtt import MqttSession
from rayapp.config import MqttSettings
from rayapp.errors import BrokerUnavailable, SessionTakenOver

CONNACK = bytes.fromhex("2003000000")
REFUSED = bytes.fromhex("2003008600")
EARLY = bytes.fromhex("320a000174000700") + b"text"
"""PUBLISH, QoS 1, topic t, packet id 7, no properties."""
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
