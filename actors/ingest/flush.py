"""One flush: messages in, Kafka records out, everything counted.

Parse each message, dead-letter what does not parse, explode the rest into
readings, encode them in columns and group the records by partition. The result
is a list of outgoing groups; the shell hands them to the producer and keeps
what the producer's full queue did not take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from actors import dead_letters
from actors.adapters.mqtt import Delivery
from actors.avro import Codec
from actors.dead_letters import DeadLetter
from actors.detect.thresholds import Thresholds
from actors.ingest.explode import Exploder
from actors.ingest.parse import Parsed, parse
from actors.partitioner import partition_of
from actors.readings import MAC_BYTES
from rayapp.config import Settings

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Outgoing:
    """Records of one partition, in order."""

    partition: int
    keys: list[str]
    values: list[bytes]

    def rest(self, taken: int) -> Outgoing:
        """Return what is left after the producer took some."""
        return Outgoing(self.partition, self.keys[taken:], self.values[taken:])


@dataclass(frozen=True)
class Flushed:
    """What one flush sends: records by partition, and dead letters."""

    outgoing: list[Outgoing]
    dead: list[DeadLetter]
    readings: int
    anomalies: int
    arrival_time_used: int
    size_bytes: int
    """Of records and dead letters."""


class Flusher:
    """Turn received messages into Kafka records; keeps no state between flushes."""

    def __init__(self, settings: Settings, codec: Codec, schema_id: int) -> None:
        self._exploder = Exploder(settings.place, Thresholds(settings.thresholds))
        self._codec = codec
        self._schema_id = schema_id
        self._partitions = settings.kafka.partitions
        self._max_age_us = settings.ingest.max_age_days * DAY_US
        self._max_future_us = settings.ingest.max_future_s * 1_000_000

    def flush(self, messages: Sequence[Delivery], now_us: int, reasons: Counter[str]) -> Flushed:
        """Return the records of `messages`.

        Args:
            now_us: arrival time of the flush.
            reasons: counts dead letters by reason.
        """
        parsed: list[Parsed] = []
        dead: list[DeadLetter] = []
        oldest, newest = now_us - self._max_age_us, now_us + self._max_future_us
        for message in messages:
            result = parse(message.payload, now_us, oldest_us=oldest, newest_us=newest)
            if isinstance(result, Parsed):
                parsed.append(result)
            else:
                reasons[result.reason] += 1
                dead.append(dead_letters.of_message(message.topic, message.payload, result.reason, now_us))
        dead_bytes = sum(len(letter.value) for letter in dead)
        if not parsed:
            return Flushed([], dead, 0, 0, 0, dead_bytes)
        batch = self._exploder.explode(parsed, now_us)
        values = self._codec.encode(batch, self._schema_id)
        keys: list[str] = batch["device_id"].to_pylist()
        groups: dict[int, Outgoing] = {}
        for key, value in zip(keys, values, strict=True):
            partition = partition_of(key[:MAC_BYTES], self._partitions)
            group = groups.get(partition)
            if group is None:
                group = groups[partition] = Outgoing(partition, [], [])
            group.keys.append(key)
            group.values.append(value)
        return Flushed(
            outgoing=list(groups.values()),
            dead=dead,
            readings=len(keys),
            anomalies=pc.sum(batch["is_anomaly"]).as_py() or 0,
            arrival_time_used=sum(not message.own_time for message in parsed),
            size_bytes=dead_bytes + sum(map(len, values)),
        )
