"""Dead letters: raw bytes that cannot become readings, with an id that stays the same when sent again.

The id of an MQTT message is its topic and the hash of its payload; of a Kafka
record, its topic, partition and offset. At least once: a message redelivered
after a kill is dead-lettered again under the same id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class DeadLetter:
    """One record of the dead-letter topic.

    Attributes:
        id: same for the same message, whatever is sent again.
        reason: countable word, e.g. `bad_value:temperature`.
        stage: ingest, consume or write.
        value: the raw bytes as received.
        time_us: when it was judged.
    """

    id: str
    reason: str
    stage: str
    value: bytes
    time_us: int

    def headers(self) -> dict[str, bytes]:
        """Return the record's Kafka headers."""
        return {
            "id": self.id.encode(),
            "reason": self.reason.encode(),
            "stage": self.stage.encode(),
            "time": str(self.time_us).encode(),
        }


def of_message(topic: str, payload: bytes, reason: str, time_us: int) -> DeadLetter:
    """Return the dead letter of an MQTT message."""
    digest = hashlib.sha256(topic.encode() + b"\0" + payload).hexdigest()[:32]
    return DeadLetter(f"{topic}/{digest}", reason, "ingest", payload, time_us)


def of_record(topic: str, partition: int, offset: int, value: bytes | None, reason: str, stage: str, time_us: int) -> DeadLetter:
    """Return the dead letter of a Kafka record."""
    return DeadLetter(f"{topic}/{partition}/{offset}", reason, stage, value or b"", time_us)
