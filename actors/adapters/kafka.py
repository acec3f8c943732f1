"""The only module that speaks to Kafka: topics, the producer and the pinned reader.

Every produced record's delivery is reported by itself: a report for the last
record of a batch proves nothing for the others. produce_batch may take fewer
records than it was given without raising, so callers get that number and keep
the rest. A record waits for a broker for ever (message.timeout.ms=0: the MQTT
window bounds what waits), but no request does: after socket_timeout_s it is
sent again, to the same broker or to the new leader, and the idempotent
producer's sequence numbers keep it from counting twice.

What one client may hold is capped in records and in bytes (the constants
below); what does not fit waits in the caller, who was told how much was taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec  # type: ignore[attr-defined]  # exported, but not in its __all__
from confluent_kafka.cimpl import NewTopic

from rayapp.config import KafkaSettings, read_secret
from rayapp.errors import ConfigurationError, DataLoss, DeliveryFailed, KafkaUnavailable

QUEUE_RECORDS = 200_000
"""Records a producer holds: a full MQTT window of 20,000 messages of nine readings. Per process, all topics together."""
QUEUE_KIB = 128 * 1024
"""The same in bytes, keys and headers included; the smaller of the two counts. 128 MiB are 200,000 records of 670 bytes."""
BATCH_RECORDS = 20_000
"""One produce request's records; its bytes are librdkafka's batch.size, 1 MB, which every broker takes."""
FETCHED_KIB = 32 * 1024
"""Bytes a reader fetches ahead, all partitions together; what the caller then holds is batch.credit_bytes a partition."""
FETCHED_RECORDS = 20_000
"""Records a reader tries to have ahead, each partition: two batches or so. Fetching stops at the first of the two."""
FETCH_BYTES = 16 * 2**20
"""One answer of a broker: by so much the bytes fetched ahead may be exceeded, so a reader holds 48 MiB at most."""
PARTITION_FETCH_BYTES = 2 * 2**20
"""One partition's part of an answer; a single larger record comes all the same."""
SETTLE_S = 15.0
HEADROOM_BYTES = 65_536
"""Above the largest dead letter's value, for its headers and Kafka's own framing."""
PARTITION_UA = -1
"""librdkafka's word for: choose a partition."""
LETTER_ID_HEADER = "dead_letter_id"
"""On a record that was made from a dead letter: that letter's id."""

_LOSSES = {
    KafkaError._AUTO_OFFSET_RESET: "the ledger's offset is not in the log",
    KafkaError.OFFSET_OUT_OF_RANGE: "the ledger's offset is not in the log",
    KafkaError._LOG_TRUNCATION: "the log was cut off below the ledger's offset and has grown again: what was stored from there is not in it",
    KafkaError._BAD_MSG: "records cannot be read",
    KafkaError._BAD_COMPRESSION: "records cannot be decompressed",
    KafkaError._UNSUPPORTED_FEATURE: "records are in a format that the client does not know",
    KafkaError._NOT_IMPLEMENTED: "records are in a format that the client does not know",
    KafkaError.INVALID_MSG: "records cannot be read",
}
"""What librdkafka says once about a partition and then goes on behind, or stops; said as DataLoss, or records would be skipped."""

Report = Callable[[KafkaError | None, Any], None]


def client_configuration(settings: KafkaSettings) -> dict[str, Any]:
    """Return what every client needs: addresses, and SASL when an account is configured."""
    conf: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "log_level": 3,
        "socket.timeout.ms": settings.socket_timeout_s * 1000,
        "socket.keepalive.enable": True,
        # Ten seconds, the default, is longer than a broker takes to come back.
        "reconnect.backoff.max.ms": 1_000,
    }
    if settings.username is not None:
        conf |= {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": settings.username,
            "sasl.password": read_secret(settings.password_file, "kafka.password_file"),
        }
    return conf


@dataclass(frozen=True)
class TopicIdentity:
    """What tells a topic from a recreated one of the same name."""

    cluster_id: str
    topic_id: str
    partitions: int


class Topics:
    """Create and describe topics (driver, bench)."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = AdminClient(client_configuration(settings))

    def ensure(self) -> TopicIdentity:
        """Create the readings and dead-letter topics where missing, check them, and return the readings topic's identity.

        Raises:
            ConfigurationError: the topic exists with another number of partitions, or a dead letter might not fit.
            KafkaUnavailable: no broker answers.
        """
        settings = self._settings
        try:
            metadata = self._admin.list_topics(timeout=10)
            replication = settings.replication_factor or min(3, len(metadata.brokers))
            config = {"min.insync.replicas": "2" if replication >= 3 else "1"}
            wanted = [
                NewTopic(
                    settings.topic,
                    num_partitions=settings.partitions,
                    replication_factor=replication,
                    config={**config, "retention.ms": str(settings.retention_ms)},
                ),
                NewTopic(
                    settings.dead_letter_topic,
                    num_partitions=1,
                    replication_factor=replication,
                    config={**config, "retention.ms": "-1", "max.message.bytes": str(settings.max_dead_letter_bytes + HEADROOM_BYTES)},
                ),
            ]
            missing = [topic for topic in wanted if topic.topic not in metadata.topics]
            for future in self._admin.create_topics(missing).values() if missing else ():
                try:
                    future.result(timeout=15)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
            existing = {topic.topic for topic in wanted} - {topic.topic for topic in missing}
            if settings.dead_letter_topic in existing:
                self._require_room_for_letters()
        except (KafkaException, TimeoutError) as error:
            raise KafkaUnavailable(f"kafka {settings.bootstrap_servers}: {_words(error)}") from error
        return self._settled_identity(SETTLE_S if missing else 0.0)

    def _require_room_for_letters(self) -> None:
        """See that the largest dead letter fits into a topic that somebody else made; found out later, it would stop consume."""
        topic, wanted_bytes = self._settings.dead_letter_topic, self._settings.max_dead_letter_bytes + HEADROOM_BYTES
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = self._admin.describe_configs([resource])[resource].result(timeout=10)
        limit_bytes = int(found["max.message.bytes"].value)
        if limit_bytes < wanted_bytes:
            raise ConfigurationError(
                f"kafka.max_dead_letter_bytes = {self._settings.max_dead_letter_bytes}: topic {topic} takes at most {limit_bytes} bytes "
                f"a record, and a letter with its headers may need {wanted_bytes}; raise the topic's max.message.bytes or lower the key"
            )

    def _settled_identity(self, patience_s: float) -> TopicIdentity:
        """Return the identity of topics made just now: for a moment brokers may not know them, or their leaders, yet."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                identity = self.identity()
                self.offsets(self._settings.topic, identity.partitions)
                return identity
            except KafkaUnavailable:
                if time.monotonic() > deadline:
                    raise
                self._admin.poll(0.1)

    def identity(self) -> TopicIdentity:
        """Return the readings topic's identity.

        Raises:
            KafkaUnavailable: no broker answers.
            ConfigurationError: the number of partitions differs from the configured one.
        """
        settings = self._settings
        try:
            # Not describe_cluster: answered without a living broker (ours was fenced for a moment), librdkafka 2.16 aborts the process.
            cluster = self._admin.list_topics(timeout=10)
            found = self._admin.describe_topics(TopicCollection([settings.topic]))[settings.topic].result(timeout=10)
        except (KafkaException, TimeoutError) as error:
            raise KafkaUnavailable(f"kafka {settings.bootstrap_servers}: {_words(error)}") from error
        if len(found.partitions) != settings.partitions:
            raise ConfigurationError(
                f"kafka.partitions = {settings.partitions}: topic {settings.topic} has {len(found.partitions)}; "
                "a tag's partition is murmur2(MAC) mod n, so set the key to the topic's number"
            )
        return TopicIdentity(str(cluster.cluster_id), str(found.topic_id), len(found.partitions))

    def offsets(self, topic: str, partitions: int) -> dict[int, tuple[int, int]]:
        """Return (first offset, next offset) of each partition.

        Raises:
            KafkaUnavailable: no broker answers, or not for all partitions.
        """
        try:
            ends = [
                {p: f.result(timeout=10).offset for p, f in self._list_offsets(topic, partitions, spec).items()}
                for spec in (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
            ]
        except (KafkaException, TimeoutError) as error:
            # The client asks with the leader epoch it knows and does not learn another from the refusal
            # (FENCED_LEADER_EPOCH, for ever, after a broker was killed): the next call begins with fresh metadata.
            self._admin = AdminClient(client_configuration(self._settings))
            raise KafkaUnavailable(f"kafka {self._settings.bootstrap_servers}: {_words(error)}") from error
        return {p: (ends[0][p], ends[1][p]) for p in range(partitions)}

    def _list_offsets(self, topic: str, partitions: int, spec: OffsetSpec) -> dict[int, Any]:
        asked = {TopicPartition(topic, p): spec for p in range(partitions)}
        return {tp.partition: future for tp, future in self._admin.list_offsets(asked).items()}


class RecordProducer:
    """Produce with acks=all, idempotent, every delivery reported."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._fatal: str | None = None
        self._max_record_bytes = settings.max_dead_letter_bytes + HEADROOM_BYTES
        self._producer = Producer(
            client_configuration(settings)
            | {
                "acks": "all",
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "request.timeout.ms": settings.socket_timeout_s * 1000,
                "linger.ms": settings.linger_ms,
                "batch.num.messages": BATCH_RECORDS,
                "compression.type": settings.compression,
                "queue.buffering.max.messages": QUEUE_RECORDS,
                "queue.buffering.max.kbytes": QUEUE_KIB,
                "message.max.bytes": self._max_record_bytes,
                "error_cb": self._on_error,
            }
        )

    def produce(self, topic: str, partition: int, keys: Sequence[str], values: Sequence[bytes], report: Report) -> int:
        """Queue records for one partition in order.

        Returns:
            How many of the first records were taken; the rest did not fit into the queue and is to be offered again.

        Raises:
            DeliveryFailed: a record can never be delivered. Its neighbours may have been taken all the same and will
                be reported; sent again they are duplicates, which the natural key absorbs.
        """
        messages: list[dict[str, Any]] = [{"key": key, "value": value, "callback": report} for key, value in zip(keys, values, strict=True)]
        taken = int(self._producer.produce_batch(topic, messages, partition=partition))
        # A full queue refuses all that follow, a bad record only itself: a count alone does not say which ones went.
        return taken if taken == len(messages) else self._first_taken(topic, partition, messages, taken)

    def _first_taken(self, topic: str, partition: int, messages: Sequence[dict[str, Any]], taken: int) -> int:
        """Return how many records went before the queue was full, or raise for the record that was refused for good."""
        for message in messages:
            error = message.get("_error")
            if error is not None and error.code() != KafkaError._QUEUE_FULL:
                raise DeliveryFailed(self._refusal(topic, partition, message["key"], message["value"], error))
        first = next(place for place, message in enumerate(messages) if "_error" in message)
        if first != taken:
            raise DeliveryFailed(
                f"{topic}[{partition}]: {taken} of {len(messages)} records were taken, but only the first {first} in order"
            )
        return first

    def _refusal(self, topic: str, partition: int, key: bytes | str | None, value: bytes, error: KafkaError) -> str:
        """Return what was refused: key, size, limit; never the bytes themselves."""
        return (
            f"{topic}[{partition}]: a record of key {key!r} with {len(value)} bytes is refused for good: {error} "
            f"(limit {self._max_record_bytes} bytes); the actor ends, what it held is sent again"
        )

    def produce_one(
        self,
        topic: str,
        value: bytes,
        headers: dict[str, bytes],
        report: Report,
        *,
        key: bytes | str | None = None,
        partition: int = PARTITION_UA,
    ) -> bool:
        """Queue one record with headers; False when the queue is full.

        Raises:
            DeliveryFailed: the record can never be delivered.
        """
        try:
            self._producer.produce(topic, value=value, key=key, partition=partition, headers=list(headers.items()), on_delivery=report)
        except BufferError:
            return False
        except KafkaException as error:
            raise DeliveryFailed(self._refusal(topic, partition, key, value, error.args[0])) from error
        return True

    def poll(self, timeout_s: float = 0.0) -> None:
        """Run delivery reports on this thread.

        Raises:
            DeliveryFailed: the producer is broken for good; the caller must end.
        """
        self._producer.poll(timeout_s)
        if self._fatal is not None:
            raise DeliveryFailed(f"kafka producer failed for good: {self._fatal}; the actor ends and the broker resends")

    def __len__(self) -> int:
        return len(self._producer)

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fatal = str(error)


@dataclass(frozen=True)
class Fetched:
    """Records of one partition in offset order.

    Attributes:
        end: offset of the partition's end when it was reached, else None.
        letter_ids: offset -> id of the dead letter that a replayed record was; a new dead letter of it keeps that id.
        leader_epoch: of the last record, None when unknown.
    """

    partition: int
    offsets: list[int]
    values: list[bytes | None]
    end: int | None = None
    letter_ids: dict[int, str] = field(default_factory=dict)
    leader_epoch: int | None = None


class PartitionReader:
    """Read pinned partitions from given offsets; the consumer group never assigns anything."""

    def __init__(self, settings: KafkaSettings, client_id: str) -> None:
        self._topic = settings.topic
        self._pinned: set[int] = set()
        self._losses: dict[int, DataLoss] = {}
        self._consumer = Consumer(
            client_configuration(settings)
            | {
                "group.id": settings.group,
                "client.id": client_id,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                # A batch waits longer than this anyway; answering every small produce at once costs broker and client.
                "fetch.wait.max.ms": 100,
                "fetch.min.bytes": 128 * 1024,
                "queued.max.messages.kbytes": FETCHED_KIB,
                "queued.min.messages": FETCHED_RECORDS,
                "fetch.message.max.bytes": PARTITION_FETCH_BYTES,
                "fetch.max.bytes": FETCH_BYTES,
            }
        )

    def start_at(self, partition: int, offset: int, leader_epoch: int | None = None) -> None:
        """Pin a partition at an offset, whether it was pinned before or not.

        By taking the partition away and giving it back: seek() is refused while
        a partition is still looking for its leader, which is when rewinds happen.

        Args:
            leader_epoch: of the last record before `offset`, when known: the brokers are then asked where that
                epoch ended, and a log that was cut off below `offset` and has grown again is found out (DataLoss).
        """
        self.stop(partition)
        epoch = -1 if leader_epoch is None else leader_epoch
        self._consumer.incremental_assign([TopicPartition(self._topic, partition, offset, leader_epoch=epoch)])
        self._pinned.add(partition)

    def stop(self, partition: int) -> None:
        """Let a partition go; nothing of it is fetched or reported any more."""
        self._losses.pop(partition, None)
        if partition in self._pinned:
            self._pinned.discard(partition)
            self._consumer.incremental_unassign([TopicPartition(self._topic, partition)])

    def log_bounds(self, partition: int) -> tuple[int, int]:
        """Return (first, next) offset of a partition's log.

        Raises:
            KafkaUnavailable: no answer within 10 s.
        """
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=10)
        except KafkaException as error:
            raise KafkaUnavailable(f"kafka: {error.args[0]}") from error
        return int(low), int(high)

    def poll(self, max_records: int, timeout_s: float) -> list[Fetched]:
        """Return what has arrived, grouped by partition.

        One partition's loss takes nothing from the others: what came with it is returned first, the next call raises.

        Raises:
            DataLoss: records of `partition` are not in the log or cannot be read there. It brings nothing more until
                start_at; the others go on.
        """
        if self._losses:
            raise self._losses.pop(next(iter(self._losses)))
        records = self._consumer.consume(max_records, timeout_s)
        offsets: dict[int, list[int]] = {}
        values: dict[int, list[bytes | None]] = {}
        ends: dict[int, int] = {}
        letter_ids: dict[int, dict[int, str]] = {}
        leader_epochs: dict[int, int | None] = {}
        for record in records:
            error = record.error()
            partition = cast("int", record.partition())  # None only in a message that was never produced
            if error is None:
                offsets.setdefault(partition, []).append(cast("int", record.offset()))
                values.setdefault(partition, []).append(record.value())
                leader_epochs[partition] = record.leader_epoch()
                if record.headers():  # almost never: only what was made from a dead letter carries some
                    letter_id = _header(record, LETTER_ID_HEADER)
                    if letter_id is not None:
                        letter_ids.setdefault(partition, {})[cast("int", record.offset())] = letter_id
            elif error.code() == KafkaError._PARTITION_EOF:
                ends[partition] = cast("int", record.offset())
            elif error.code() in _LOSSES and partition in self._pinned:
                self._losses[partition] = DataLoss(
                    f"{self._topic}[{partition}]: {_LOSSES[error.code()]} ({error}); nothing was skipped", partition
                )
            # Everything else (brokers down, leader moving) librdkafka retries by itself.
        if self._losses and not (offsets or ends):
            raise self._losses.pop(next(iter(self._losses)))
        return [
            Fetched(p, offsets.get(p, []), values.get(p, []), ends.get(p), letter_ids.get(p, {}), leader_epochs.get(p))
            for p in sorted(offsets.keys() | ends.keys())
        ]

    def pause(self, partition: int) -> None:
        """Stop fetching one partition; its credit is spent."""
        self._consumer.pause([TopicPartition(self._topic, partition)])

    def resume(self, partition: int) -> None:
        """Fetch one partition again."""
        self._consumer.resume([TopicPartition(self._topic, partition)])

    def mirror(self, offsets: dict[int, int]) -> None:
        """Copy the ledger's offsets into the consumer group, for lag dashboards only; failures do not matter."""
        self._consumer.commit(offsets=[TopicPartition(self._topic, p, o) for p, o in offsets.items()], asynchronous=True)

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()


def _words(error: KafkaException | TimeoutError) -> str:
    """Return what went wrong; a broker that takes a question and never answers shows up as a time-out of ours."""
    return str(error.args[0]) if error.args else "no answer in time"


def _header(record: Message, name: str) -> str | None:
    """Return a header's text, None when the record does not carry it."""
    headers = cast("list[tuple[str, bytes | None]]", record.headers() or [])
    return next((value.decode(errors="replace") for key, value in headers if key == name and value is not None), None)


def read_all(settings: KafkaSettings, topic: str, timeout_s: float = 20.0) -> list[tuple[bytes, dict[str, str]]]:
    """Return value and headers of every record of a one-partition topic (bench, tests, operators).

    Raises:
        KafkaUnavailable: the end was not reached in time.
    """
    consumer = Consumer(
        client_configuration(settings) | {"group.id": f"{settings.group}-read", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    found: list[tuple[bytes, dict[str, str]]] = []
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=timeout_s)
        if end <= 0:
            return []
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for record in consumer.consume(10_000, 0.2):
                error = record.error()
                if error is None:
                    headers = cast("list[tuple[str, bytes | None]]", record.headers() or [])
                    texts = {name: (value or b"").decode(errors="replace") for name, value in headers}
                    found.append((record.value() or b"", texts))
                elif error.code() == KafkaError._PARTITION_EOF:
                    return found
        raise KafkaUnavailable(f"kafka: end of {topic} not reached within {timeout_s} s")
    except KafkaException as error:
        raise KafkaUnavailable(f"kafka: {error.args[0]}") from error
    finally:
        consumer.close()


__all__ = [
    "Fetched",
    "PartitionReader",
    "RecordProducer",
    "TopicIdentity",
    "Topics",
    "client_configuration",
    "read_all",
]
