"""What the adapter makes of librdkafka's answers that no broker gives on demand."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from actors.adapters import kafka as adapter
from actors.adapters.kafka import PartitionReader, RecordProducer, TopicIdentity, Topics
from rayapp.config import KafkaSettings
from rayapp.errors import DataLoss, DeliveryFailed, KafkaUnavailable


class Record:
    """A record, or an error that came in a record's place."""

    def __init__(self, partition: int, offset: int, error: KafkaError | None = None) -> None:
        self._partition, self._offset, self._error = partition, offset, error

    def partition(self) -> int:
        return self._partition

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return self._error

    def value(self) -> bytes:
        return b"v"

    def headers(self) -> None:
        return None

    def leader_epoch(self) -> int:
        return 3


class Consumer:
    """A consumer whose consume() gives what a test put in."""

    def __init__(self) -> None:
        self.answers: deque[list[Record]] = deque()
        self.assigned: list[tuple[int, int, int | None]] = []

    def consume(self, _max_records: int, _timeout_s: float) -> list[Record]:
        return self.answers.popleft() if self.answers else []

    def incremental_assign(self, places: list[Any]) -> None:
        self.assigned += [(place.partition, place.offset, place.leader_epoch) for place in places]

    def incremental_unassign(self, places: list[Any]) -> None:
        self.assigned = [each for each in self.assigned if each[0] not in {place.partition for place in places}]


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    made = Consumer()
    monkeypatch.setattr(adapter, "Consumer", lambda _conf: made)
    return made


@pytest.fixture
def reader(consumer: Consumer) -> PartitionReader:
    made = PartitionReader(KafkaSettings(), "tests")
    for partition in range(4):
        made.start_at(partition, 0)
    return made


LOSSES = ["_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE", "_LOG_TRUNCATION", "_BAD_MSG", "_BAD_COMPRESSION", "_NOT_IMPLEMENTED"]


@pytest.mark.parametrize("name", LOSSES)
def test_records_that_came_with_a_loss_are_returned_before_it_is_raised(consumer: Consumer, reader: PartitionReader, name: str) -> None:
    """The consumer's position has moved past them: dropped here, they would be missing for good."""
    lost = Record(1, 0, KafkaError(getattr(KafkaError, name)))
    consumer.answers += [[Record(0, 0), lost, Record(0, 1), Record(2, 7)], [Record(0, 2)]]

    assert [(0, [0, 1]), (2, [7])] == [(each.partition, each.offsets) for each in reader.poll(10, 0)]
    with pytest.raises(DataLoss, match=r"iot-sensor-data\[1\]: .*nothing was skipped") as raised:
        reader.poll(10, 0)
    assert 1 == raised.value.partition
    assert [(0, [2])] == [(each.partition, each.offsets) for each in reader.poll(10, 0)]
    assert [] == reader.poll(10, 0)


def test_losses_of_several_partitions_are_raised_one_by_one(consumer: Consumer, reader: PartitionReader) -> None:
    """Each partition's loss is said once, under its own number."""
    consumer.answers += [[Record(p, 0, KafkaError(KafkaError._AUTO_OFFSET_RESET)) for p in (3, 1)]]
    found = []
    for _ in range(2):
        with pytest.raises(DataLoss) as raised:
            reader.poll(10, 0)
        found.append(raised.value.partition)

    assert [3, 1] == found
    assert [] == reader.poll(10, 0)


@pytest.mark.parametrize("again", [True, False])
def test_loss_of_a_partition_that_was_let_go_is_forgotten(consumer: Consumer, reader: PartitionReader, again: bool) -> None:
    """A loss that was not raised yet does not outlive the start it belongs to."""
    consumer.answers += [[Record(0, 0), Record(1, 0, KafkaError(KafkaError._AUTO_OFFSET_RESET))]]
    reader.poll(10, 0)
    if again:
        reader.start_at(1, 5)
    else:
        reader.stop(1)

    assert [] == reader.poll(10, 0)


def test_what_librdkafka_retries_is_no_loss(consumer: Consumer, reader: PartitionReader) -> None:
    """Brokers away or a leader that moves are not said to the caller."""
    codes = ("_ALL_BROKERS_DOWN", "_TRANSPORT", "NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE")
    consumer.answers += [[Record(0, 0, KafkaError(getattr(KafkaError, code))) for code in codes] + [Record(0, 0)]]

    assert [(0, [0])] == [(each.partition, each.offsets) for each in reader.poll(10, 0)]


def test_known_leader_epoch_goes_with_the_position(consumer: Consumer, reader: PartitionReader) -> None:
    """It is what lets the brokers find out a log that was cut off; unknown is not zero."""
    reader.start_at(1, 5, 0)
    reader.start_at(2, 6, 9)

    assert [(0, 0, None), (3, 0, None), (1, 5, 0), (2, 6, 9)] == consumer.assigned


class Producer:
    """A producer whose produce_batch takes what a test says."""

    def __init__(self, conf: dict[str, Any]) -> None:
        self.conf = conf
        self.errors: dict[int, int] = {}

    def produce_batch(self, _topic: str, messages: list[dict[str, Any]], **_options: Any) -> int:
        for place, code in self.errors.items():
            messages[place]["_error"] = KafkaError(code)
        return len(messages) - len(self.errors)

    def poll(self, _timeout_s: float) -> int:
        return 0


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> RecordProducer:
    monkeypatch.setattr(adapter, "Producer", Producer)
    return RecordProducer(KafkaSettings())


@pytest.mark.parametrize(
    ("errors", "taken"),
    [
        ({}, 4),
        ({3: KafkaError._QUEUE_FULL}, 3),
        ({0: KafkaError._QUEUE_FULL, 1: KafkaError._QUEUE_FULL, 2: KafkaError._QUEUE_FULL, 3: KafkaError._QUEUE_FULL}, 0),
        ({1: KafkaError.MSG_SIZE_TOO_LARGE}, "key 'b' with 1 bytes"),
        ({0: KafkaError._UNKNOWN_PARTITION, 3: KafkaError._QUEUE_FULL}, "key 'a'"),
        ({2: KafkaError._QUEUE_FULL, 3: KafkaError.MSG_SIZE_TOO_LARGE}, "key 'd'"),
        ({place: KafkaError._FATAL for place in range(4)}, "key 'a'"),
        ({1: KafkaError._QUEUE_FULL}, "only the first 1 in order"),
    ],
)
def test_number_taken_is_a_prefix_or_an_error(producer: RecordProducer, errors: dict[int, int], taken: int | str) -> None:
    """What produce() returns can be cut off the front of the batch; whatever else happened is raised."""
    producer._producer.errors = errors
    if isinstance(taken, int):
        assert taken == producer.produce("t", 0, list("abcd"), [b"v"] * 4, lambda *_: None)
    else:
        with pytest.raises(DeliveryFailed, match=taken):
            producer.produce("t", 0, list("abcd"), [b"v"] * 4, lambda *_: None)


def test_fatal_error_of_the_client_ends_the_caller(producer: RecordProducer) -> None:
    """An idempotent producer that lost its sequence can deliver nothing more; the next poll says so, and every one after it."""
    tell = producer._producer.conf["error_cb"]
    tell(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    producer.poll()
    tell(KafkaError(KafkaError._FATAL, "out of sequence", True))

    for _ in range(2):
        with pytest.raises(DeliveryFailed, match="for good.*the actor ends"):
            producer.poll()


class Admin:
    """An admin client of a cluster with one topic."""

    def __init__(self, _conf: dict[str, Any]) -> None:
        self.known = True

    def list_topics(self, timeout: float) -> Any:
        if not self.known:
            raise KafkaException(KafkaError(KafkaError._PARTIAL))
        return SimpleNamespace(cluster_id="cluster", brokers={}, topics={})

    def describe_topics(self, topics: Any) -> dict[str, Future[Any]]:
        answer: Future[Any] = Future()
        answer.set_result(SimpleNamespace(topic_id="id", partitions=[None] * KafkaSettings().partitions))
        return {KafkaSettings().topic: answer}

    def describe_cluster(self) -> None:
        raise AssertionError("aborts the whole process when no broker is alive")


def test_cluster_without_a_living_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity is asked for in a way that survives the moment in which the only broker is fenced."""
    monkeypatch.setattr(adapter, "AdminClient", Admin)
    topics = Topics(KafkaSettings())
    assert TopicIdentity("cluster", "id", KafkaSettings().partitions) == topics.identity()

    topics._admin.known = False
    with pytest.raises(KafkaUnavailable):
        topics.identity()
