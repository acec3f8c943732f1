"""What becomes of a letter if it came today: records for the readings topic, or today's reason against it.

An MQTT message is parsed and taken apart as ingest would have done when it
came: its arrival time is the letter's own, so that trying twice makes the same
readings. The window of times that are allowed is today's, because consume will
look at it today. A Kafka record goes back as the bytes it was, to its own
partition, if today's decoder takes it; what only the database can judge (stage
`write`) always goes. `conflict` letters would be refused again: the table
holds another value under their key, and the first one stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from actors.avro import Codec
from actors.base import now_us
from actors.consume.decode import Decoder, time_window
from actors.detect.thresholds import Thresholds
from actors.ingest.explode import Exploder
from actors.ingest.parse import Rejected, parse
from actors.partitioner import partition_of
from actors.readings import MAC_BYTES
from rayapp.config import Settings
from rayapp.letters.letter import INGEST, Letter


@dataclass(frozen=True)
class Outgoing:
    """One record for the readings topic."""

    partition: int
    key: str | None
    value: bytes


@dataclass(frozen=True)
class Verdict:
    """What today's rules say.

    Attributes:
        refused: today's reason, None when the letter may go.
        records: what goes; none of a message without any reading.
        view: the decoded content for people.
    """

    refused: str | None
    records: list[Outgoing]
    view: list[dict[str, Any]]


class Judge:
    """Today's parser and decoder.

    Args:
        schema_id: of our schema in the registry.
        schema_text: looks up foreign schemas; may raise DependencyUnavailable.
    """

    def __init__(self, settings: Settings, codec: Codec, schema_id: int, schema_text: Callable[[int], str | None]) -> None:
        self._settings, self._codec, self._schema_id = settings, codec, schema_id
        self._decoder = Decoder(codec, schema_id, schema_text)
        self._exploder = Exploder(settings.place, Thresholds(settings.thresholds))

    def judge(self, letter: Letter, value: bytes) -> Verdict:
        """Return what would become of a letter.

        Raises:
            DependencyUnavailable: a foreign schema is needed and the registry does not answer.
        """
        window = time_window(self._settings.ingest, now_us())
        return self._message(letter, value, window) if letter.first.stage == INGEST else self._record(letter, value, window)

    def _message(self, letter: Letter, value: bytes, window: tuple[int, int]) -> Verdict:
        arrived_us = letter.first.time_us
        parsed = parse(value, arrived_us, oldest_us=window[0], newest_us=window[1])
        if isinstance(parsed, Rejected):
            return Verdict(parsed.reason, [], [])
        if not window[0] <= parsed.time_us <= window[1]:  # without a time of its own: the letter itself is too old
            return Verdict("time_out_of_range:timestamp", [], [])
        batch = self._exploder.explode([parsed], arrived_us)
        keys: list[str] = batch["device_id"].to_pylist()
        values = self._codec.encode(batch, self._schema_id)
        partitions = self._settings.kafka.partitions
        records = [Outgoing(partition_of(key[:MAC_BYTES], partitions), key, body) for key, body in zip(keys, values, strict=True)]
        return Verdict(None, records, batch.to_pylist())

    def _record(self, letter: Letter, value: bytes, window: tuple[int, int]) -> Verdict:
        first, kafka = letter.first, self._settings.kafka
        decoded = self._decoder.decode([0], [value], oldest_us=window[0], newest_us=window[1])
        view = decoded.table.drop(["offset"]).to_pylist()
        if decoded.dead:
            return Verdict(decoded.dead[0], [], view)
        if first.topic != kafka.topic or first.partition is None or first.partition >= kafka.partitions:
            return Verdict(f"not_ours:{first.topic}[{first.partition}]", [], view)
        return Verdict(None, [Outgoing(first.partition, view[0]["device_id"], value)], view)
