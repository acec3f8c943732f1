"""The MQTT adapter against a real Mosquitto: nothing acknowledged by itself, nothing lost between connections."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from builders import eventually
from paho.mqtt.enums import CallbackAPIVersion

from actors.adapters.mqtt import READS_PER_PUMP, Delivery, MqttSession
from rayapp.config import MqttSettings, Settings
from rayapp.errors import BrokerUnavailable, SessionTakenOver
from rayapp.stack import StackState, enable_gateways, read_password

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


class Gateway:
    """A publisher with the gateways' account; publish() returns when the broker acknowledged."""

    def __init__(self, stack: StackState) -> None:
        if not stack.mqtt.gateway_enabled:
            enable_gateways(stack)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"gateway-{secrets.token_hex(4)}", protocol=paho.MQTTv5)
        self.client.username_pw_set(stack.mqtt.gateway_username, read_password(Path(stack.mqtt.gateway_password_file)))
        self.client.connect(stack.mqtt.host, stack.mqtt.port)
        self.client.loop_start()
        assert eventually(self.client.is_connected)

    def publish(self, topic: str, payloads: list[bytes]) -> None:
        for info in [self.client.publish(topic, payload, qos=1) for payload in payloads]:
            info.wait_for_publish(20)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        left = self.client.socket()
        if left is not None:
            left.close()  # paho's thread may end before it has said goodbye


@pytest.fixture(scope="module")
def gateway(stack: StackState) -> Iterator[Gateway]:
    """A gateway, let in."""
    made = Gateway(stack)
    yield made
    made.close()


@pytest.fixture
def mqtt(settings: Settings, stack: StackState) -> MqttSettings:
    """Settings with a topic that only this test uses and the gateway may write."""
    return settings.mqtt.model_copy(update={"topics": (f"ruuvi/{stack.mqtt.gateway_username}/{secrets.token_hex(4)}",)})


@pytest.fixture
def sessions() -> Iterator[list[MqttSession]]:
    """Sessions that a test opened; they are closed and forgotten by the broker at its end."""
    opened: list[MqttSession] = []
    yield opened
    for session in opened:
        session.close()
        session._settings = session._settings.model_copy(update={"session_expiry_s": 0})
        session.connect()
        session.close()


@pytest.fixture
def session(mqtt: MqttSettings, sessions: list[MqttSession]) -> MqttSession:
    """A connected session with a share group of its own."""
    name = f"tests-{secrets.token_hex(4)}"
    made = MqttSession(mqtt, name, name)
    made.connect()
    sessions.append(made)
    return made


def receive(session: MqttSession, count: int) -> list[Delivery]:
    """Return the next messages."""
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(session.pump(0.05)) or len(found) >= count)), found
    return found


def is_quiet(session: MqttSession) -> bool:
    """True when nothing more comes within a fraction of a second."""
    return not [delivery for _ in range(5) for delivery in session.pump(0.05)]


def payloads(count: int, word: str = "") -> list[bytes]:
    return [f"{word}{n}".encode() for n in range(count)]


def test_messages_come_in_order_with_their_generation(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """What a gateway published arrives whole, in order, as QoS 1 of this connection."""
    gateway.publish(mqtt.topics[0], payloads(50))
    found = receive(session, 50)

    assert payloads(50) == [delivery.payload for delivery in found]
    assert {(mqtt.topics[0], 1, session.generation)} == {(d.topic, d.qos, d.generation) for d in found}


def test_unacknowledged_messages_come_again_after_a_reconnect(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """Only what was acknowledged by hand is done; the rest is sent again under a new generation, and stale PUBACKs are dropped."""
    gateway.publish(mqtt.topics[0], payloads(10))
    found = receive(session, 10)
    assert 0 == session.ack(found[:4])
    assert is_quiet(session)
    session.connect()
    again = receive(session, 6)

    assert payloads(10)[4:] == [delivery.payload for delivery in again]
    assert {found[0].generation + 1} == {delivery.generation for delivery in again}
    assert 6 == session.ack(found[4:])
    session.connect()
    assert payloads(10)[4:] == [delivery.payload for delivery in receive(session, 6)]


def test_acknowledged_messages_do_not_come_again(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """After all PUBACKs a new connection is quiet."""
    gateway.publish(mqtt.topics[0], payloads(300))
    session.ack(receive(session, 300))
    assert is_quiet(session)  # the broker may drop PUBACKs that it has not read when the next connection takes over
    session.connect()

    assert is_quiet(session)


def test_close_with_unread_messages_does_not_take_back_the_last_pubacks(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """A socket closed on unread bytes is reset, and with it what the broker has not read of ours: those messages would come twice."""
    gateway.publish(mqtt.topics[0], payloads(2_000))
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(session.pump(0.05, 1_000 - len(found))) or len(found) == 1_000))
    session.ack(found)
    session.close()
    session.connect()

    assert payloads(2_000)[1_000:] == [delivery.payload for delivery in receive(session, 1_000)]


def test_broker_queues_while_the_slot_is_away(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """Messages published between close and connect are delivered, those that come before SUBACK included."""
    session.close()
    gateway.publish(mqtt.topics[0], payloads(200, "away-"))
    assert not session.subscribed
    session.connect()

    assert session.subscribed
    assert payloads(200, "away-") == [delivery.payload for delivery in receive(session, 200)]


def test_window_larger_than_one_pump_comes_before_suback(session: MqttSession, gateway: Gateway, mqtt: MqttSettings) -> None:
    """A slot that comes back to thousands of messages is subscribed, and gets them all in order: a broker sends them before SUBACK."""
    count = 3 * READS_PER_PUMP
    session.close()
    gateway.publish(mqtt.topics[0], payloads(count))
    session.connect(4.0)
    found = receive(session, count)

    assert payloads(count) == [delivery.payload for delivery in found]
    assert eventually(lambda: bool(session.pump(0.05) or session.subscribed))
    assert 0 == session.ack(found)
    assert is_quiet(session)


def test_receive_maximum_holds_the_broker_back(mqtt: MqttSettings, gateway: Gateway, sessions: list[MqttSession]) -> None:
    """While nothing is acknowledged, no more messages come than the window allows, after a reconnect, too."""
    name = f"tests-{secrets.token_hex(4)}"
    session = MqttSession(mqtt.model_copy(update={"receive_maximum": 5}), name, name)
    session.connect()
    sessions.append(session)
    gateway.publish(mqtt.topics[0], payloads(12))

    assert payloads(5) == [delivery.payload for delivery in receive(session, 5)]
    assert is_quiet(session)
    session.connect()
    assert payloads(5) == [delivery.payload for delivery in receive(session, 5)]
    assert is_quiet(session)


def test_no_more_is_read_than_there_is_room_for_while_acknowledging(
    mqtt: MqttSettings, gateway: Gateway, sessions: list[MqttSession]
) -> None:
    """Each PUBACK may let a whole window through (Mosquitto 2.0.11), never more; pump() takes as many as it is told to, in order."""
    name = f"tests-{secrets.token_hex(4)}"
    session = MqttSession(mqtt.model_copy(update={"receive_maximum": 5}), name, name)
    session.connect()
    sessions.append(session)
    gateway.publish(mqtt.topics[0], payloads(40))
    first = receive(session, 5)
    session.ack(first[:2])
    found: list[Delivery] = []
    assert eventually(lambda: bool(found.extend(session.pump(0.05, 1)) or found))
    assert 1 == len(found)
    found.extend(each for _ in range(4) for each in session.pump(0.05, 0))
    assert 1 == len(found)
    found.extend(each for _ in range(40) for each in session.pump(0.02, 3))

    assert is_quiet(session)
    assert 2 <= len(found) <= 2 * 5
    assert payloads(40)[5 : 5 + len(found)] == [delivery.payload for delivery in found]


def test_slots_share_the_messages(mqtt: MqttSettings, gateway: Gateway, sessions: list[MqttSession]) -> None:
    """Two slots of one pipeline get each message once between them."""
    name = f"tests-{secrets.token_hex(4)}"
    pair = [MqttSession(mqtt, f"{name}-{n}", name) for n in range(2)]
    for session in pair:
        session.connect()
        sessions.append(session)
    gateway.publish(mqtt.topics[0], payloads(100))
    found: list[list[Delivery]] = [[], []]

    def all_there() -> bool:
        for session, mine in zip(pair, found, strict=True):
            mine.extend(session.pump(0.02))
        return len(found[0]) + len(found[1]) >= 100

    assert eventually(all_there)
    assert sorted(payloads(100)) == sorted(delivery.payload for mine in found for delivery in mine)
    assert all(found)


def test_second_client_of_a_slot_takes_the_session_over(
    mqtt: MqttSettings, gateway: Gateway, session: MqttSession, sessions: list[MqttSession]
) -> None:
    """The first loses its connection, the second gets what was not acknowledged.

    Mosquitto 2.0.11 closes the socket without saying 0x8E (contract/test_mqtt_session.py
    has that case), so the first must ask the database before it connects again.
    """
    gateway.publish(mqtt.topics[0], payloads(3))
    receive(session, 3)
    other = MqttSession(mqtt, session._client_id, session._client_id)
    sessions.remove(session)
    sessions.append(other)
    other.connect()

    with pytest.raises((SessionTakenOver, BrokerUnavailable)):
        eventually(lambda: bool(session.pump(0.05)))
    assert not session.subscribed
    assert payloads(3) == [delivery.payload for delivery in receive(other, 3)]


def test_refused_account_does_not_wait_for_ever(mqtt: MqttSettings) -> None:
    """A wrong account is the broker away, at once."""
    with pytest.raises(BrokerUnavailable):
        MqttSession(mqtt.model_copy(update={"username": "nobody"}), "tests-nobody", "tests-nobody").connect()


def test_refused_account_is_said(mqtt: MqttSettings) -> None:
    """A person reads why the broker refused."""
    with pytest.raises(BrokerUnavailable, match="refused"):
        MqttSession(mqtt.model_copy(update={"username": "nobody"}), "tests-nobody", "tests-nobody").connect()


def test_broker_away_is_said(mqtt: MqttSettings) -> None:
    """Without a broker connect() fails at once and may be called again."""
    away = MqttSession(mqtt.model_copy(update={"port": 9}), "tests-away", "tests-away")
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            away.connect()
