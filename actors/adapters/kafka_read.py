"""Read a part of a topic from here to there, for people's tools: nothing is committed, nobody's group is joined.

The pipeline's own reader follows the log for ever; this one is given a range
of offsets for each partition and ends. What it cannot bring is an error, never
a shorter answer: a range that retention has taken is DataLoss, brokers that
stay silent are KafkaUnavailable.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, KafkaError, KafkaException, Message, TopicPartition

from actors.adapters.kafka import client_configuration
from rayapp.config import KafkaSettings
from rayapp.errors import DataLoss, KafkaUnavailable

SILENT_S = 20.0
"""No record and no end of a partition for this long: the brokers are away."""
FETCHED_KIB = 16 * 1024
LARGEST_RECORD_BYTES = 2 * 2**20
_LOST = {
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError.OFFSET_OUT_OF_RANGE,
    KafkaError._LOG_TRUNCATION,
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
}

Range = tuple[int, int]
"""First offset, and the offset behind the last."""


@dataclass(frozen=True)
class Record:
    """One record with where it lies."""

    partition: int
    offset: int
    value: bytes | None
    headers: dict[str, str] = field(default_factory=dict)
    time_us: int | None = None
    """When it was produced or appended, by the topic's own rule; None when the record does not say."""


@dataclass(frozen=True)
class Chunk:
    """What came at once: records in each partition's order, and how far each partition now is.

    Attributes:
        positions: partition -> next offset to come; equal to the range's end when the partition is through.
    """

    records: list[Record]
    positions: dict[int, int]


class RangeReader:
    """A read-only view of one topic."""

    def __init__(self, settings: KafkaSettings, topic: str, *, silent_s: float = SILENT_S) -> None:
        self._topic, self._silent_s = topic, silent_s
        self._servers = settings.bootstrap_servers
        self._consumer = Consumer(
            client_configuration(settings)
            | {
                "group.id": f"{settings.group}-read",  # demanded by the client; neither joined nor committed to
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": FETCHED_KIB,
                "fetch.message.max.bytes": LARGEST_RECORD_BYTES,
            }
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._consumer.close()

    def partitions(self) -> list[int]:
        """Return the topic's partitions, [] when there is no such topic.

        Raises:
            KafkaUnavailable: no broker answers.
        """
        try:
            found = self._consumer.list_topics(self._topic, timeout=10).topics[self._topic]
        except KafkaException as error:
            raise self._away(error) from error
        return sorted(found.partitions) if found.error is None else []

    def bounds(self, partitions: Sequence[int]) -> dict[int, Range]:
        """Return first and next offset of each partition's log.

        Raises:
            KafkaUnavailable: no broker answers.
        """
        try:
            asked = {p: self._consumer.get_watermark_offsets(TopicPartition(self._topic, p), timeout=10) for p in partitions}
        except KafkaException as error:
            raise self._away(error) from error
        return {p: (int(low), int(high)) for p, (low, high) in asked.items()}

    def offsets_for_times(self, times_us: Mapping[int, int]) -> dict[int, int | None]:
        """Return for each partition the first offset whose record's time is not before the given one; None = no such record.

        Args:
            times_us: partition -> epoch microseconds. Kafka's times are those of the records' producing, in milliseconds.

        Raises:
            KafkaUnavailable: no broker answers.
        """
        asked = [TopicPartition(self._topic, p, -(-time_us // 1000)) for p, time_us in times_us.items()]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=10)
        except KafkaException as error:
            raise self._away(error) from error
        for answer in found:
            if answer.error is not None:
                raise KafkaUnavailable(f"kafka {self._servers}: {self._topic}[{answer.partition}]: {answer.error}")
        return {answer.partition: answer.offset if answer.offset >= 0 else None for answer in found}

    def read(self, ranges: Mapping[int, Range], *, max_records: int = 2_000, turn_s: float = 0.2) -> Iterator[Chunk]:
        """Read ranges of some partitions; ends when all are through. Memory holds what is fetched ahead and one chunk.

        Args:
            turn_s: an empty chunk comes at least this often, so that the caller can stop or show progress.

        Raises:
            DataLoss: the log does not hold a range's first offset (any more).
            KafkaUnavailable: nothing comes.
        """
        wanted = {p: (low, high) for p, (low, high) in ranges.items() if low < high}
        for partition, (low, high) in self.bounds(list(wanted)).items():
            if not low <= wanted[partition][0] or wanted[partition][1] > high:
                raise DataLoss(
                    f"{self._topic}[{partition}]: offsets {wanted[partition][0]}..{wanted[partition][1] - 1} were asked for, "
                    f"the log holds {low}..{high - 1}",
                    partition,
                )
        self._consumer.assign([TopicPartition(self._topic, p, low) for p, (low, _) in wanted.items()])
        positions = {p: low for p, (low, _) in wanted.items()}
        heard_s = time.monotonic()
        while any(positions[p] < wanted[p][1] for p in wanted):
            try:
                messages = self._consumer.consume(max_records, turn_s)
            except KafkaException as error:
                raise self._away(error) from error
            records = self._sorted_in(messages, wanted, positions)
            if messages:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > self._silent_s:
                raise KafkaUnavailable(f"kafka {self._servers}: nothing of {self._topic} came for {self._silent_s:g} s")
            yield Chunk(records, dict(positions))

    def _sorted_in(self, messages: Sequence[Message], wanted: Mapping[int, Range], positions: dict[int, int]) -> list[Record]:
        """Return the records that lie in their ranges and move the positions; a partition that is through fetches no more."""
        records = []
        for message in messages:
            error, partition = message.error(), cast("int", message.partition())
            if partition not in wanted:
                continue
            end = wanted[partition][1]
            if error is None or error.code() == KafkaError._PARTITION_EOF:
                offset = cast("int", message.offset())
                if positions[partition] >= end:
                    continue
                if error is None and offset < end:
                    records.append(Record(partition, offset, message.value(), _headers(message), _time_us(message)))
                    positions[partition] = offset + 1
                else:  # behind the range, or the log's end: markers and compacted offsets may lie before it
                    positions[partition] = end
                if positions[partition] >= end:
                    self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])
            elif error.code() in _LOST:
                raise DataLoss(f"{self._topic}[{partition}]: from offset {positions[partition]} on: {error}", partition)
            # Everything else (brokers down, leader moving) librdkafka retries by itself.
        return records

    def _away(self, error: KafkaException) -> KafkaUnavailable:
        return KafkaUnavailable(f"kafka {self._servers}: {error.args[0]}")


def _time_us(message: Message) -> int | None:
    kind, time_ms = message.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else int(time_ms) * 1_000


def _headers(message: Message) -> dict[str, str]:
    """Return a record's headers as text; the last of a name counts."""
    headers: list[tuple[str, Any]] = cast("Any", message.headers()) or []
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


__all__ = ["Chunk", "Range", "RangeReader", "Record"]
