"""Copies of a dead letter under one id become one letter: small facts about it, never its bytes.

Dead letters are at least once, so the topic may hold several copies of one
message; and a replayed letter that is refused again comes back under its old
id. The first copy is the message as it was received. Later ones may be what
was made of it: one of the records of an MQTT message, say. So place, stage and
bytes are the first copy's; the reason is the last one's.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INGEST = "ingest"
MAX_KEY_BYTES = 512
_MAC = re.compile(rb"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")
_KAFKA_ID = re.compile(r"(?s)(.+)/(\d+)/(\d+)")
_MQTT_ID = re.compile(r"(?s)(.*)/[0-9a-f]{32}")

Place = tuple[int, int]
"""Partition and offset in the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One record of the dead-letter topic, without its bytes.

    Attributes:
        place: where it lies in the dead-letter topic.
        topic: MQTT or Kafka topic that the message came from.
        partition: of a Kafka record, else None; offset likewise.
        device: MAC of the first tag that is named in the bytes, in lower case, None when none is.
    """

    place: Place
    id: str
    reason: str
    stage: str
    time_us: int
    topic: str
    partition: int | None
    offset: int | None
    device: str | None
    size_bytes: int


@dataclass(slots=True)
class Letter:
    """All copies under one id.

    Attributes:
        reason: of the last copy; everything else about the message is the first copy's.
        first: the first copy.
        copies: how many.
        last_us: when the last one was judged.
        state: new, replayed, dropped, or refused = replayed, and copies came after that.
        decided_at: when a person decided, None while nobody did; by, why likewise.
    """

    first: Copy
    reason: str
    copies: int
    last_us: int
    state: str = "new"
    decided_at: str | None = None
    by: str | None = None
    why: str | None = None

    @property
    def id(self) -> str:
        """The id that all copies share."""
        return self.first.id


@dataclass(frozen=True)
class Decision:
    """What a person did with a letter.

    Attributes:
        state: replayed or dropped.
        copies: of the letter in the topic at that time.
    """

    state: str
    at: str
    by: str
    reason: str
    copies: int


def copy_of(place: Place, value: bytes, headers: Mapping[str, str]) -> Copy:
    """Return one record of the dead-letter topic as a copy.

    Records of earlier versions carry no topic, partition and offset: these are
    in the id then. A record without an id (somebody else's) is its own place.
    """
    letter_id = headers.get("id") or f"?/{place[0]}/{place[1]}"
    stage = headers.get("stage", "unknown")
    topic, partition, offset = headers.get("topic"), _number(headers.get("partition")), _number(headers.get("offset"))
    if topic is None:
        topic, partition, offset = coordinates(letter_id, stage)
    return Copy(
        place, letter_id, sys.intern(headers.get("reason", "unknown")), sys.intern(stage), _number(headers.get("time")) or 0,
        sys.intern(topic), partition, offset, device_in(value), len(value),
    )  # fmt: skip


def coordinates(letter_id: str, stage: str) -> tuple[str, int | None, int | None]:
    """Return topic, partition and offset as an id tells them: `topic/partition/offset`, or `topic/<32 hex>` of an MQTT message."""
    if stage == INGEST:  # an MQTT topic has slashes of its own and may end in numbers
        found = _MQTT_ID.fullmatch(letter_id)
        return (found[1] if found else letter_id), None, None
    found = _KAFKA_ID.fullmatch(letter_id)
    return (found[1], int(found[2]), int(found[3])) if found else (letter_id, None, None)


def device_in(value: bytes) -> str | None:
    """Return the first MAC address in the bytes, which in JSON and in Avro is the tag's; bytes need not be either."""
    found = _MAC.search(value)
    return sys.intern(found[0].decode().lower().replace("-", ":")) if found else None


def add_copy(letters: dict[str, Letter], copy: Copy) -> None:
    """Count a copy, in the topic's order, to its letter."""
    letter = letters.get(copy.id)
    if letter is None:
        letters[copy.id] = Letter(copy, copy.reason, 1, copy.time_us)
    else:
        letter.copies += 1
        letter.reason, letter.last_us = copy.reason, max(letter.last_us, copy.time_us)


def apply_decisions(letters: Iterable[Letter], decisions: Mapping[str, Decision]) -> None:
    """Give letters the state that people gave them; a replayed letter of which more copies came since is `refused`.

    Args:
        decisions: by state_key() of the id.
    """
    for letter in letters:
        decision = decisions.get(state_key(letter.id))
        if decision is not None:
            again = decision.state == "replayed" and letter.copies > decision.copies
            letter.state = "refused" if again else decision.state
            letter.decided_at, letter.by, letter.why = decision.at, decision.by, decision.reason


def state_key(letter_id: str) -> str:
    """Return how a letter is called in the database: its id, or of a very long one (an index holds 2,700 bytes) its start and digest."""
    raw = letter_id.replace("\0", "\ufffd").encode()
    if len(raw) <= MAX_KEY_BYTES:
        return raw.decode()
    return raw[:255].decode(errors="ignore") + "#" + hashlib.sha256(raw).hexdigest()


def _number(text: str | None) -> int | None:
    """Return a header's number, None when it is not there or is none."""
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
