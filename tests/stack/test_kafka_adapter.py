"""The Kafka adapter against a real broker: every record reported, rewinds that rewind, losses that are loud."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from builders import eventually

from actors.adapters import kafka as adapter
from actors.adapters.kafka import Fetched, PartitionReader, RecordProducer, Topics, read_all
from rayapp.config import Settings
from rayapp.errors import ConfigurationError, DataLoss, DeliveryFailed, KafkaUnavailable

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


class Reports:
    """Delivery reports as they come."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.errors: list[str] = []

    def __call__(self, error: object | None, record: Any) -> None:
        if error is None:
            self.values.append(record.value())
        else:
            self.errors.append(str(error))


@pytest.fixture
def reader(settings: Settings, topics: Topics) -> Iterator[PartitionReader]:
    """A pinned reader, closed with the test."""
    made = PartitionReader(settings.kafka, "tests")
    yield made
    made.close()


@pytest.fixture
def fill(settings: Settings, topics: Topics) -> Callable[[int, int], list[bytes]]:
    """A function that appends so many fresh records to a partition and returns their values."""
    producer = RecordProducer(settings.kafka)

    def filled(partition: int, count: int) -> list[bytes]:
        reports = Reports()
        values = [f"{secrets.token_hex(4)}-{n}".encode() for n in range(count)]
        assert count == producer.produce(settings.kafka.topic, partition, ["k"] * count, values, reports)
        assert eventually(lambda: producer.poll(0.05) or len(reports.values) == count)
        return values

    return filled


def read(reader: PartitionReader, partition: int, count: int) -> list[tuple[int, bytes | None]]:
    """Return the next `count` records of a partition."""
    found: list[tuple[int, bytes | None]] = []

    def enough() -> bool:
        for fetched in reader.poll(1000, 0.1):
            if fetched.partition == partition:
                found.extend(zip(fetched.offsets, fetched.values, strict=True))
        return len(found) >= count

    assert eventually(enough), found
    return found


def test_every_record_is_reported_once(settings: Settings, fill: Callable[[int, int], list[bytes]], topics: Topics) -> None:
    """Each record has a report of its own, and the log holds each once, in order."""
    before = topics.offsets(settings.kafka.topic, 3)[0][1]
    values = fill(0, 500)

    assert 500 == len(set(values))
    assert before + 500 == topics.offsets(settings.kafka.topic, 3)[0][1]


def test_full_queue_takes_a_part_and_goes_on(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch, reader: PartitionReader
) -> None:
    """A batch that does not fit is taken up to a number; the rest offered again is neither lost nor doubled nor out of order."""
    real = adapter.Producer
    monkeypatch.setattr(adapter, "Producer", lambda conf: real(conf | {"queue.buffering.max.messages": 50}))
    producer, reports = RecordProducer(settings.kafka), Reports()
    start = topics.offsets(settings.kafka.topic, 3)[1][1]
    values = [str(n).encode() for n in range(500)]
    given, taken = 0, []

    def all_given() -> bool:
        nonlocal given
        if given < len(values):
            taken.append(producer.produce(settings.kafka.topic, 1, ["k"] * (500 - given), values[given:], reports))
            given += taken[-1]
        producer.poll(0.01)
        return given == len(reports.values) == 500

    assert eventually(all_given)
    assert taken[0] < 500
    assert sorted(values) == sorted(reports.values)
    reader.start_at(1, start)
    assert values == [value for _, value in read(reader, 1, 500)]


@pytest.mark.parametrize("queue", [50, 200_000])
def test_record_too_large_is_named_and_its_neighbours_are_not_taken_for_it(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch, queue: int
) -> None:
    """One record refused for good among good ones is said with key, size and limit; a count of taken records never hides it."""
    real = adapter.Producer
    monkeypatch.setattr(adapter, "Producer", lambda conf: real(conf | {"queue.buffering.max.messages": queue}))
    producer, reports = RecordProducer(settings.kafka), Reports()
    values = [str(n).encode() for n in range(100)]
    values[10] = b"x" * 2_000_000

    with pytest.raises(DeliveryFailed, match=r"key 'k10' with 2000000 bytes is refused for good.*limit \d+"):
        producer.produce(settings.kafka.topic, 1, [f"k{n}" for n in range(100)], values, reports)
    assert eventually(lambda: producer.poll(0.05) or len(producer) == 0)
    assert [] == reports.errors
    assert set(values[:10]) <= set(reports.values)
    assert values[10] not in reports.values


def test_record_too_large_behind_a_full_queue_is_found_when_its_turn_comes(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not fit is offered again, and the refusal comes with the record that deserves it."""
    real = adapter.Producer
    monkeypatch.setattr(adapter, "Producer", lambda conf: real(conf | {"queue.buffering.max.messages": 50}))
    producer, reports = RecordProducer(settings.kafka), Reports()
    values = [str(n).encode() for n in range(100)]
    values[80] = b"x" * 2_000_000
    keys = [f"k{n}" for n in range(100)]
    given = producer.produce(settings.kafka.topic, 1, keys, values, reports)

    assert 50 == given

    def produce_the_rest() -> None:
        nonlocal given
        while given < 100:
            given += producer.produce(settings.kafka.topic, 1, keys[given:], values[given:], reports)
            producer.poll(0.01)

    with pytest.raises(DeliveryFailed, match="k80"):
        produce_the_rest()
    assert eventually(lambda: producer.poll(0.05) or len(producer) == 0)
    assert set(values[:80]) <= set(reports.values)


def test_partition_that_does_not_exist_is_refused(settings: Settings, topics: Topics) -> None:
    """A record for a partition that the topic does not have is refused at once or by its report; it is never taken as delivered."""
    producer, reports = RecordProducer(settings.kafka), Reports()
    producer.produce(settings.kafka.topic, 0, ["k"], [b"known"], reports)
    assert eventually(lambda: producer.poll(0.05) or [b"known"] == reports.values)

    with pytest.raises(DeliveryFailed, match=r"\[77\].*refused for good"):
        producer.produce(settings.kafka.topic, 77, ["k"], [b"unknown"], reports)
    assert [b"known"] == reports.values


def test_letter_too_large_is_refused(settings: Settings, topics: Topics) -> None:
    """A single record beyond the limit is DeliveryFailed, not an error of the client library."""
    with pytest.raises(DeliveryFailed, match="2000000 bytes is refused for good"):
        RecordProducer(settings.kafka).produce_one(settings.kafka.dead_letter_topic, b"x" * 2_000_000, {}, Reports())


def test_full_queue_refuses_a_single_record(settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead letter that does not fit is refused, and taken later."""
    real = adapter.Producer
    monkeypatch.setattr(adapter, "Producer", lambda conf: real(conf | {"queue.buffering.max.messages": 1, "linger.ms": 500}))
    producer, reports = RecordProducer(settings.kafka), Reports()
    name = settings.kafka.dead_letter_topic

    assert producer.produce_one(name, b"first", {"id": b"1"}, reports)
    assert not producer.produce_one(name, b"second", {"id": b"2"}, reports)
    assert eventually(lambda: producer.poll(0.05) or producer.produce_one(name, b"second", {"id": b"2"}, reports))
    assert eventually(lambda: producer.poll(0.05) or len(reports.values) == 2)
    assert [(b"first", {"id": "1"}), (b"second", {"id": "2"})] == read_all(settings.kafka, name)


def test_largest_message_fits_as_a_dead_letter(settings: Settings, topics: Topics) -> None:
    """A dead letter of the configured maximum, headers included, is delivered."""
    producer, reports = RecordProducer(settings.kafka), Reports()
    producer.produce_one(settings.kafka.dead_letter_topic, b"\xff" * settings.kafka.max_dead_letter_bytes, {"reason": b"r" * 300}, reports)

    assert eventually(lambda: producer.poll(0.05) or bool(reports.values or reports.errors))
    assert [] == reports.errors


def test_rewind_really_rewinds(
    fill: Callable[[int, int], list[bytes]], reader: PartitionReader, topics: Topics, settings: Settings
) -> None:
    """After start_at at an earlier offset, also before anything was fetched, exactly the log from there comes."""
    start = topics.offsets(settings.kafka.topic, 3)[2][1]
    expected = list(enumerate(fill(2, 300), start))
    reader.start_at(2, start + 200)

    for at in (0, 250, 100, 100, 299):
        reader.start_at(2, start + at)
        assert expected[at:] == read(reader, 2, 300 - at)


def test_end_is_told(fill: Callable[[int, int], list[bytes]], reader: PartitionReader, topics: Topics, settings: Settings) -> None:
    """Reaching the end of the log is said with its offset."""
    fill(0, 3)
    low, high = topics.offsets(settings.kafka.topic, 3)[0]
    reader.start_at(0, high)
    ends: list[Fetched] = []

    assert eventually(lambda: bool(ends.extend(each for each in reader.poll(10, 0.1) if each.end is not None) or ends))
    assert high == ends[0].end
    assert (low, high) == reader.log_bounds(0)


def test_paused_partition_waits(
    fill: Callable[[int, int], list[bytes]], reader: PartitionReader, topics: Topics, settings: Settings
) -> None:
    """A paused partition brings nothing while another goes on, and everything after it is resumed."""
    starts = {p: topics.offsets(settings.kafka.topic, 3)[p][1] for p in (0, 1)}
    for partition, start in starts.items():
        reader.start_at(partition, start)
    reader.pause(0)
    paused, other = fill(0, 20), fill(1, 20)

    assert other == [value for _, value in read(reader, 1, 20)]
    assert [] == [each for each in reader.poll(100, 0.3) if each.partition == 0 and each.offsets]
    reader.resume(0)
    assert paused == [value for _, value in read(reader, 0, 20)]


@pytest.mark.parametrize("beyond", [5, 10**9])
def test_offset_outside_the_log_is_data_loss(reader: PartitionReader, topics: Topics, settings: Settings, beyond: int) -> None:
    """An offset that the log does not hold ends the reader loudly; it is never moved to one that exists."""
    reader.start_at(2, topics.offsets(settings.kafka.topic, 3)[2][1] + beyond)
    with pytest.raises(DataLoss, match="nothing was skipped"):
        eventually(lambda: bool(reader.poll(10, 0.1)))


def test_loss_of_one_partition_takes_nothing_from_the_others(
    fill: Callable[[int, int], list[bytes]], reader: PartitionReader, topics: Topics, settings: Settings
) -> None:
    """The loss names its partition, once; the others' records come without a gap, and the lost one goes on where it is started."""
    ends = {p: topics.offsets(settings.kafka.topic, 3)[p][1] for p in range(3)}
    lost_values, values = fill(2, 20), fill(0, 3_000)
    reader.start_at(2, ends[2] + 5_000)
    reader.start_at(0, ends[0])
    found: list[tuple[int, bytes | None]] = []
    losses: list[int | None] = []

    def all_read() -> bool:
        try:
            for fetched in reader.poll(100, 0.05):
                assert fetched.partition == 0
                found.extend(zip(fetched.offsets, fetched.values, strict=True))
        except DataLoss as error:
            losses.append(error.partition)
        return len(found) >= len(values) and bool(losses)

    assert eventually(all_read)
    assert list(enumerate(values, ends[0])) == found
    assert [2] == losses
    reader.start_at(2, ends[2])
    assert lost_values == [value for _, value in read(reader, 2, 20)]


def test_stopped_partition_brings_nothing(
    fill: Callable[[int, int], list[bytes]], reader: PartitionReader, topics: Topics, settings: Settings
) -> None:
    """A partition let go is silent, also about what was fetched already; started again it comes whole."""
    starts = {p: topics.offsets(settings.kafka.topic, 3)[p][1] for p in (0, 1)}
    stopped, other = fill(0, 2_000), fill(1, 10)
    reader.start_at(0, starts[0])
    assert eventually(lambda: any(each.partition == 0 and each.offsets for each in reader.poll(10, 0.1)))
    reader.stop(0)
    reader.stop(0)
    reader.start_at(1, starts[1])

    seen: list[Fetched] = []
    assert eventually(lambda: bool(seen.extend(reader.poll(100, 0.1)) or sum(len(each.offsets) for each in seen) >= 10))
    seen += reader.poll(100, 0.3)
    assert {1} == {each.partition for each in seen}
    assert other == [value for each in seen for value in each.values]
    reader.start_at(0, starts[0])
    assert stopped == [value for _, value in read(reader, 0, 2_000)]


def test_committed_positions_are_mirrored(reader: PartitionReader, settings: Settings) -> None:
    """The consumer group shows what the ledger committed, for dashboards."""
    reader.start_at(0, 0)
    reader.mirror({0: 7})

    def shown() -> bool:
        reader.poll(1, 0.05)
        (place,) = reader._consumer.committed([adapter.TopicPartition(settings.kafka.topic, 0)], timeout=10)
        return bool(place.offset == 7)

    assert eventually(shown)


def test_topics_are_made_once(settings: Settings, topics: Topics) -> None:
    """Making topics again changes nothing and returns the same identity."""
    first, again = topics.ensure(), Topics(settings.kafka).ensure()

    assert first == again
    assert (3, True) == (first.partitions, bool(first.topic_id and first.cluster_id))


def test_other_number_of_partitions_is_refused(settings: Settings, topics: Topics) -> None:
    """A topic with another number of partitions would spread tags differently; the message says what to set."""
    wrong = settings.kafka.model_copy(update={"partitions": 4})
    with pytest.raises(ConfigurationError, match=r"kafka\.partitions = 4.*has 3"):
        Topics(wrong).ensure()


def test_broker_away_is_kafka_unavailable(settings: Settings) -> None:
    """Without a broker the answer is KafkaUnavailable within the time-out."""
    away = settings.kafka.model_copy(update={"bootstrap_servers": "127.0.0.1:9", "username": None})
    with pytest.raises(KafkaUnavailable):
        Topics(away).ensure()


def test_letter_topic_that_is_too_small_is_refused_at_the_start(settings: Settings, topics: Topics) -> None:
    """A topic made by somebody else may be too small for the largest letter: said at the start, not when the letter comes."""
    larger = settings.kafka.model_copy(update={"max_dead_letter_bytes": 2 * settings.kafka.max_dead_letter_bytes})

    with pytest.raises(ConfigurationError, match=r"max_dead_letter_bytes = .*max\.message\.bytes"):
        Topics(larger).ensure()
    assert topics.ensure() == topics.identity()
