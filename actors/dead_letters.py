"""Dead letters: raw bytes that cannot become readings, with an id that stays the same when sent again.

The id of an MQTT message is its topic and the hash of its payload; of a Kafka
record, its topic, partition and offset. A record that was made from a dead
letter (a replay) and fails again keeps that letter's id, so that one message is
one id however often it is tried. At least once: a message redelivered after a
kill is dead-lettered again under the same id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MAX_TOPIC_BYTES = 255
"""MQTT allows 64 KiB, a foreign client may use them; cut here, so that a dead letter always fits its topic's limit."""


@dataclass(frozen=True)
class DeadLetter:
    """One record of the dead-letter topic.

    Attributes:
        id: same for the same message, whatever is sent again.
        reason: countable word, e.g. `bad_value:temperature`.
        stage: ingest, consume or write.
        value: the raw bytes as received.
        time_us: when it was judged.
        topic: MQTT or Kafka topic it came from, the first MAX_TOPIC_BYTES of it.
        partition: of a Kafka record, where its bytes lie; None for an MQTT message.
        offset: likewise.
    """

    id: str
    reason: str
    stage: str
    value: bytes
    time_us: int
    topic: str = ""
    partition: int | None = None
    offset: int | None = None

    def headers(self) -> dict[str, bytes]:
        """Return the record's Kafka headers: id, reason, stage, time, topic, and a Kafka record's partition and offset."""
        texts = {
            "id": self.id,
            "reason": self.reason,
            "stage": self.stage,
            "time": str(self.time_us),
            "topic": self.topic,
            "partition": None if self.partition is None else str(self.partition),
            "offset": None if self.offset is None else str(self.offset),
        }
        return {name: text.encode() for name, text in texts.items() if text is not None}


def of_message(topic: str, payload: bytes, reason: str, time_us: int) -> DeadLetter:
    """Return the dead letter of an MQTT message."""
    digest = hashlib.sha256(topic.encode() + b"\0" + payload).hexdigest()[:32]
    topic = topic.encode()[:MAX_TOPIC_BYTES].decode(errors="ignore")
    return DeadLetter(f"{topic}/{digest}", reason, "ingest", payload, time_us, topic)


def of_record(
    topic: str, partition: int, offset: int, value: bytes | None, reason: str, stage: str, time_us: int, *, letter_id: str | None = None
) -> DeadLetter:
    """Return the dead letter of a Kafka record.

    Args:
        letter_id: of the dead letter that the record was made from.
    """
    return DeadLetter(letter_id or f"{topic}/{partition}/{offset}", reason, stage, value or b"", time_us, topic, partition, offset)
