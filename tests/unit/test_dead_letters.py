"""Dead letters: one message is one id, and the headers say where its bytes came from."""

from __future__ import annotations

from actors import dead_letters
from actors.dead_letters import MAX_TOPIC_BYTES


def texts(letter: dead_letters.DeadLetter) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers().items()}


def test_record_says_where_it_lies() -> None:
    """Topic, partition and offset are headers of their own, so that nobody must take an id apart."""
    letter = dead_letters.of_record("readings", 3, 17, b"raw", "undecodable", "consume", 5)

    assert {
        "id": "readings/3/17", "reason": "undecodable", "stage": "consume", "time": "5",
        "topic": "readings", "partition": "3", "offset": "17",
    } == texts(letter)  # fmt: skip


def test_replayed_record_keeps_its_first_id_and_says_where_it_lies_now() -> None:
    """A dead letter made of a dead letter's record is the same letter at another place."""
    first = dead_letters.of_message("ruuvitag/data", b"raw", "bad_json", 5)
    again = dead_letters.of_record("readings", 3, 18, b"raw", "undecodable", "consume", 6, letter_id=first.id)

    assert (first.id, "readings", "18") == (texts(again)["id"], texts(again)["topic"], texts(again)["offset"])


def test_message_has_a_topic_and_no_offset() -> None:
    """An MQTT message is known by its topic and payload: another payload is another id, the same is the same."""
    one, same, other = (dead_letters.of_message("ruuvitag/data", payload, "bad_json", 5) for payload in (b"a", b"a", b"b"))

    assert {"id", "reason", "stage", "time", "topic"} == set(texts(one))
    assert one.id == same.id != other.id


def test_endless_topic_fits_all_the_same() -> None:
    """A client may use a topic of 64 KiB: headers stay small, the text stays whole, and two such topics keep two ids."""
    long = "ruuvi/" + "ä" * 30_000
    one, other = (dead_letters.of_message(topic, b"raw", "bad_json", 5) for topic in (long, long + "x"))

    assert one.id != other.id
    assert sum(len(value) for value in one.headers().values()) < 3 * MAX_TOPIC_BYTES
    assert texts(one)["topic"] == long[: len(texts(one)["topic"])]


def test_record_without_a_value_is_a_letter_too() -> None:
    """A tombstone has no bytes; its letter has none either."""
    assert b"" == dead_letters.of_record("readings", 0, 0, None, "not_framed", "consume", 5).value
