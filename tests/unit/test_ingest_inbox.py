"""What one connection leaves to the next: its messages, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

from actors.adapters.mqtt_inbox import DROPPED_TOPIC, Inbox


def publish(inbox: Inbox, payload: bytes, mid: int = 1, qos: int = 1, topic: str = "t") -> None:
    """Have the broker deliver a message."""
    inbox.on_message(None, None, SimpleNamespace(topic=topic, payload=payload, mid=mid, qos=qos))


def test_messages_outlive_their_connection() -> None:
    """What was read and not handed over is handed over later, under the generation it came with: a killed broker has forgotten it."""
    inbox = Inbox(["f"])
    inbox.begin()
    publish(inbox, b"old")
    inbox.begin()
    publish(inbox, b"new")

    assert [(b"old", 1), (b"new", 2)] == [(each.payload, each.generation) for each in inbox.take()]
    assert 1 == inbox.unacknowledged, "of this connection"
    assert [] == inbox.take()


def test_answers_do_not_outlive_their_connection() -> None:
    """Packet ids of requests are used again: an UNSUBACK of the last connection proves nothing on this one."""
    inbox = Inbox(["f"])
    inbox.begin()
    inbox.on_connect(None, None, SimpleNamespace(session_present=1), SimpleNamespace(is_failure=False), None)
    inbox.on_subscribe(None, None, 1, [SimpleNamespace(is_failure=False)], None)
    inbox.on_unsubscribe(None, None, 2, [], None)
    assert (True, True, True, {2}) == (inbox.connected, inbox.session_present, inbox.subscribed, inbox.answered)
    inbox.on_disconnect(None, None, None, SimpleNamespace(value=0x8E), None)
    assert (False, 0x8E) == (inbox.subscribed, inbox.closed)
    inbox.begin()

    assert (False, False, False, set(), None) == (inbox.connected, inbox.session_present, inbox.subscribed, inbox.answered, inbox.closed)


def test_room_is_what_was_not_handed_over() -> None:
    """Messages and bytes count from arrival to take()."""
    inbox = Inbox(["f"])
    inbox.begin()
    publish(inbox, b"four")
    assert (True, False, False) == (inbox.has_room(2, 5), inbox.has_room(1, 5), inbox.has_room(2, 4))
    inbox.take()
    assert inbox.has_room(1, 1)


def test_brokers_word_about_itself_takes_no_room() -> None:
    """It is a figure, kept until the broker says another."""
    inbox = Inbox(["f"])
    inbox.begin()
    publish(inbox, b"7", 0, 0, DROPPED_TOPIC)
    inbox.begin()

    assert (0, 7, 0) == (len(inbox), inbox.broker_dropped, inbox.unacknowledged)
