"""The broker breaks, on a Kafka of the module's own: what is produced is reported once, what is read has no gap.

One broker, so nothing can go on while it is away; what three do when one dies is
for the chaos suite.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from builders import eventually

from actors.adapters import kafka as adapter
from actors.adapters.kafka import PartitionReader, RecordProducer, Topics
from rayapp.config import KafkaSettings
from rayapp.errors import DataLoss, KafkaUnavailable
from rayapp.stack import StackOptions, StackState, kill_component, start_component, start_stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

STOPPED_S = 6.0
SOCKET_TIMEOUT_S = 3
"""Shorter than the broker is stopped, so that requests time out and are sent again while they are also answered."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the broker's stack lies."""
    return tmp_path_factory.mktemp("kafka") / "stack"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[StackState]:
    """A broker that may be broken."""
    with start_stack(StackOptions(folder=folder, components=("kafka",), leash=True)) as running:
        yield running.state


@pytest.fixture
def kafka(server: StackState) -> KafkaSettings:
    """Settings of a topic of the test's own, made."""
    there, name = server.kafka, f"test-{secrets.token_hex(4)}"
    account = {"username": there.username, "password_file": there.password_file} if there.username else {}
    made = KafkaSettings(
        bootstrap_servers=there.bootstrap_servers, topic=name, dead_letter_topic=f"{name}-dlq", group=name, partitions=2,
        socket_timeout_s=SOCKET_TIMEOUT_S, **account,
    )  # fmt: skip
    assert eventually(lambda: bool(Topics(made).ensure()))
    return made


def runs(pid: int) -> bool:
    """Say whether a process is alive; its parent may not have noticed its end yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Sender:
    """Produces numbered records and keeps what the producer did not take; counts every record's reports."""

    def __init__(self, kafka: KafkaSettings, partition: int = 0) -> None:
        self.kafka, self.partition = kafka, partition
        self.producer = RecordProducer(kafka)
        self.offered = self.taken = 0
        self.reports: Counter[int] = Counter()
        self.errors: list[str] = []
        self.short = 0
        self.last_report_s = time.monotonic()

    def send(self, count: int) -> None:
        """Offer so many more, and what was not taken before."""
        self.offered += count
        numbers = range(self.taken, self.offered)
        values = [b"%d" % number for number in numbers]
        taken = self.producer.produce(self.kafka.topic, self.partition, ["k"] * len(values), values, self._report)
        self.short += taken < len(values)
        self.taken += taken
        self.producer.poll(0.01)

    def _report(self, error: object | None, record: Any) -> None:
        self.last_report_s = time.monotonic()
        if error is None:
            self.reports[int(record.value())] += 1
        else:
            self.errors.append(str(error))

    def drained(self) -> bool:
        """Offer the rest and wait for the reports; True when every record has one."""
        return eventually(lambda: self.send(0) or (self.taken == self.offered and len(self.reports) == self.offered), 60.0)


class Follower:
    """Reads a partition from its start and keeps offsets and values."""

    def __init__(self, kafka: KafkaSettings, partition: int = 0, at: int = 0) -> None:
        self.reader = PartitionReader(kafka, "tests")
        self.reader.start_at(partition, at)
        self.records: list[tuple[int, bytes | None]] = []

    def read(self, timeout_s: float = 0.02) -> int:
        for fetched in self.reader.poll(5_000, timeout_s):
            self.records += zip(fetched.offsets, fetched.values, strict=True)
        return len(self.records)


@pytest.fixture
def follow(kafka: KafkaSettings) -> Iterator[Callable[..., Follower]]:
    """A function that makes a follower, closed with the test."""
    made: list[Follower] = []

    def follower(**place: int) -> Follower:
        made.append(Follower(kafka, **place))
        return made[-1]

    yield follower
    for each in made:
        each.reader.close()


def stop_and_go_on(server: StackState, meanwhile: Callable[[], None]) -> None:
    """Freeze the broker for a while."""
    kill_component(server, "kafka", signal.SIGSTOP)
    try:
        end_s = time.monotonic() + STOPPED_S
        while time.monotonic() < end_s:
            meanwhile()
    finally:
        kill_component(server, "kafka", signal.SIGCONT)


def kill_and_start(server: StackState, meanwhile: Callable[[], None]) -> None:
    """Kill the broker, stay without it for a while, and start it."""
    pids = kill_component(server, "kafka", signal.SIGKILL)
    assert eventually(lambda: not any(map(runs, pids)))
    end_s = time.monotonic() + STOPPED_S / 2
    while time.monotonic() < end_s:
        meanwhile()
    start_component(server, "kafka")


@pytest.mark.parametrize("fault", [stop_and_go_on, kill_and_start])
def test_every_record_across_an_outage_is_reported_once_and_read_once(
    server: StackState, kafka: KafkaSettings, follow: Callable[..., Follower], fault: Callable[..., None]
) -> None:
    """A broker that freezes beyond the requests' time-out, or dies: no record is failed, skipped, doubled or out of order; readers go on."""
    sender, follower = Sender(kafka), follow()

    def turn() -> None:
        sender.send(20)
        follower.read()

    assert eventually(lambda: turn() or follower.read() > 500)
    fault(server, turn)
    started_s = time.monotonic()
    before = len(sender.reports)
    assert eventually(lambda: turn() or len(sender.reports) > before)
    assert 5.0 > time.monotonic() - started_s  # a broker that is back is found soon
    assert sender.drained()
    assert eventually(lambda: follower.read(0.1) >= sender.offered)

    assert [] == sender.errors
    assert {1} == set(sender.reports.values())
    assert [(n, b"%d" % n) for n in range(sender.offered)] == follower.records
    assert [] == [each for each in follower.reader.poll(100, 0.3) if each.offsets]


def test_full_queue_during_an_outage_takes_short_and_goes_on(
    server: StackState, kafka: KafkaSettings, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the broker is away the queue fills, by records or by bytes; nothing that was not taken is lost, nothing taken is."""
    real = adapter.Producer
    monkeypatch.setattr(adapter, "Producer", lambda conf: real(conf | {"queue.buffering.max.messages": 300}))
    sender = Sender(kafka)
    sender.send(10)
    assert sender.drained()
    kill_component(server, "kafka", signal.SIGSTOP)
    try:
        assert eventually(lambda: sender.send(40) or sender.short >= 5)
        assert 310 >= sender.taken < sender.offered
    finally:
        kill_component(server, "kafka", signal.SIGCONT)
    assert sender.drained()
    follower = follow()
    assert eventually(lambda: follower.read(0.1) >= sender.offered)

    assert ([], {1}) == (sender.errors, set(sender.reports.values()))
    assert [b"%d" % n for n in range(sender.offered)] == [value for _, value in follower.records]


def test_bytes_are_capped_too(server: StackState, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few large records fill the queue as many small ones do."""
    monkeypatch.setattr(adapter, "QUEUE_KIB", 1024)
    producer, reports = RecordProducer(kafka), []
    kill_component(server, "kafka", signal.SIGSTOP)
    try:
        taken = producer.produce(kafka.topic, 0, ["k"] * 40, [bytes(100_000)] * 40, lambda error, _record: reports.append(error))
        assert 5 < taken < 15
    finally:
        kill_component(server, "kafka", signal.SIGCONT)
    assert eventually(lambda: producer.poll(0.05) or len(reports) == taken)
    assert {None} == set(reports)


def test_reader_holds_no_more_than_its_caps(kafka: KafkaSettings, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that nobody empties stops fetching at its bytes, not at the log's end; what is left comes when there is room."""
    monkeypatch.setattr(adapter, "FETCHED_KIB", 1024)
    monkeypatch.setattr(adapter, "FETCH_BYTES", 2 * 2**20)
    producer, reports = RecordProducer(kafka), []
    values = [secrets.token_bytes(50_000) for _ in range(400)]
    assert 400 == producer.produce(kafka.topic, 1, ["k"] * 400, values, lambda error, _record: reports.append(error))
    assert eventually(lambda: producer.poll(0.05) or len(reports) == 400)
    before = psutil.Process().memory_info().rss
    follower = follow(partition=1)
    assert eventually(lambda: bool(follower.reader.poll(1, 0.1)))

    assert not eventually(lambda: psutil.Process().memory_info().rss - before > 12 * 2**20, 2.0)
    follower.reader.start_at(1, 0)
    assert eventually(lambda: follower.read() >= 400)
    assert values == [value for _, value in follower.records]


def test_log_that_was_cut_off_and_has_grown_again_is_found_out(
    server: StackState, kafka: KafkaSettings, follow: Callable[..., Follower], folder: Path
) -> None:
    """A broker that lost its disk has other records at the same offsets; only the leader epoch tells, and it does."""
    sender = Sender(kafka)
    sender.send(100)
    assert sender.drained()
    known = follow()
    assert eventually(lambda: known.read() == 100)
    epoch = known_epoch(kafka)
    (pid,) = kill_component(server, "kafka", signal.SIGKILL)
    assert eventually(lambda: not runs(pid))
    shutil.rmtree(folder / "data" / "kafka" / "1" / "log" / f"{kafka.topic}-0")
    start_component(server, "kafka")
    again = Sender(kafka)
    again.send(300)
    assert again.drained()
    unaware = follow(at=100)
    assert eventually(lambda: unaware.read() >= 1)  # this is how it would go on without knowing

    reader = PartitionReader(kafka, "tests")
    reader.start_at(0, 100, leader_epoch=epoch)
    try:
        with pytest.raises(DataLoss, match=r"\[0\]: .*truncation detected at offset 100.*nothing was skipped") as raised:
            eventually(lambda: bool([each for each in reader.poll(100, 0.1) if each.offsets]))
        assert 0 == raised.value.partition
        reader.start_at(0, 0)
        assert eventually(lambda: bool(reader.poll(100, 0.1)))
    finally:
        reader.close()


def test_right_leader_epoch_changes_nothing(server: StackState, kafka: KafkaSettings, follow: Callable[..., Follower]) -> None:
    """After a restart the epoch is higher; a position with the epoch of its own last record goes on without a gap."""
    sender = Sender(kafka)
    sender.send(50)
    assert sender.drained()
    epoch = known_epoch(kafka)
    kill_and_start(server, lambda: sender.send(1))
    assert sender.drained()
    assert epoch < known_epoch(kafka, last=True)
    reader = PartitionReader(kafka, "tests")
    found: list[int] = []
    reader.start_at(0, 50, leader_epoch=epoch)
    try:
        assert eventually(
            lambda: bool(found.extend(o for each in reader.poll(100, 0.1) for o in each.offsets)) or len(found) >= sender.offered - 50
        )
    finally:
        reader.close()
    assert list(range(50, sender.offered)) == found


def test_broker_away_is_said_in_time(server: StackState, kafka: KafkaSettings) -> None:
    """Questions to a frozen broker end as KafkaUnavailable, in bounded time."""
    reader = PartitionReader(kafka, "tests")
    assert (0, 0) == reader.log_bounds(0)
    kill_component(server, "kafka", signal.SIGSTOP)
    try:
        for ask in (lambda: reader.log_bounds(0), lambda: Topics(kafka).identity()):
            started_s = time.monotonic()
            with pytest.raises(KafkaUnavailable):
                ask()
            assert 25.0 > time.monotonic() - started_s
    finally:
        kill_component(server, "kafka", signal.SIGCONT)
        reader.close()
    assert eventually(lambda: answers(kafka), 60.0)  # a broker that was frozen for long must find its controller again


def answers(kafka: KafkaSettings) -> bool:
    """Say whether the broker knows its topics."""
    try:
        return bool(Topics(kafka).identity())
    except KafkaUnavailable:
        return False


def known_epoch(kafka: KafkaSettings, *, last: bool = False) -> int:
    """Return the leader epoch of the first or last record of partition 0."""
    reader = PartitionReader(kafka, "tests")
    (_, end) = reader.log_bounds(0)
    reader.start_at(0, end - 1 if last else 0)
    epochs: list[int | None] = []
    assert eventually(lambda: bool(epochs.extend(each.leader_epoch for each in reader.poll(1, 0.1) if each.offsets) or epochs))
    reader.close()
    assert epochs[0] is not None
    return epochs[0]
