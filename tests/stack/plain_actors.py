"""Consume, detect and write as plain objects in threads, on real servers, with the driver's part played by a test.

An actor is abandoned, not killed: its thread ends in the middle of what it
does, calls to it are lost, and what it has begun it may still finish. The
ledger's epochs must keep that out.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from builders import SCHEMA, SCHEMA_ID, eventually

from actors.adapters.kafka import RecordProducer, Topics
from actors.adapters.postgres import Connection
from actors.batch import Batch, DetectorSnapshot, PartitionClaim
from actors.consume.actor import Consume
from actors.consume.port import Answer
from actors.detect.actor import Detect
from actors.write.actor import Write
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, DownstreamLost, RayappError

PARTITIONS = 3


class Abandoned(BaseException):
    """The end of an actor's thread, in the middle of whatever it does."""


class Worker:
    """A detect or write actor with the one thread that batches run on; calls to an abandoned one are lost, what runs goes on."""

    def __init__(self, actor: Any) -> None:
        self.actor, self.lost = actor, False
        self.pool = ThreadPoolExecutor(1)


class Downstream:
    """The port over plain objects in threads."""

    def __init__(self, detect: Worker, write: Worker) -> None:
        self.detector, self.writer = detect, write
        self.tokens = itertools.count()
        self.calls: dict[int, tuple[Worker, Future[Any]]] = {}
        self.abandoned = False

    def _call(self, worker: Worker, method: str, *arguments: Any) -> int:
        token = next(self.tokens)
        self.calls[token] = worker, worker.pool.submit(getattr(worker.actor, method), *arguments)
        return token

    def restore(self, held: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> int:
        return self._call(self.detector, "restore", held, position, snapshot)

    def detect(self, batch: Batch, *, drain: bool) -> int:
        return self._call(self.detector, "detect", batch, drain)

    def write(self, batch: Batch) -> int:
        return self._call(self.writer, "write", batch)

    def poll(self, _timeout_s: float) -> list[Answer]:
        if self.abandoned:
            raise Abandoned
        answers = []
        for token, (worker, future) in list(self.calls.items()):
            if worker.lost:
                answers.append(Answer(token, None, DownstreamLost("an actor downstream is gone")))
            elif future.done():
                error = future.exception()
                assert error is None or isinstance(error, RayappError), error
                answers.append(Answer(token, None if error else future.result(), error))
            else:
                continue
            del self.calls[token]
        return answers


class Pipeline:
    """Actors of one pipeline, and the driver's part: claim, start, replace."""

    def __init__(self, settings: Settings, topics: Topics, owner: Connection, claims: Claims) -> None:
        self.settings, self.topics, self.owner, self.claims = settings, topics, owner, claims
        self.incarnation = itertools.count(1)
        self.workers: list[Worker] = []
        self.consumers: list[Consume] = []
        self.detect, self.write = self.worker(Detect), self.worker(Write)
        self.warm = 0

    def worker(self, kind: type[Any]) -> Worker:
        """Return a new detect or write actor."""
        made = Worker(kind(f"{kind.role}/0#{next(self.incarnation)}", self.settings))
        self.workers.append(made)
        return made

    def stored(self) -> int:
        """Return the sum of the ledger's positions."""
        return int(self.owner.execute(
            "SELECT coalesce(sum(next_offset), 0) FROM ingest_ledger WHERE pipeline = %s", (self.settings.pipeline,))[0][0])  # fmt: skip

    def claimed(self, name: str) -> list[PartitionClaim]:
        """Claim all partitions, again while the database cannot."""
        kafka, found = self.settings.kafka, []

        def claim() -> bool:
            try:
                first = {p: low for p, (low, _) in self.topics.offsets(kafka.topic, PARTITIONS).items()}
                found.extend(self.claims.claim_partitions(kafka.topic, self.topics.identity(), first, name).held)
            except DatabaseUnavailable:
                return False
            return True

        assert eventually(claim)
        return [PartitionClaim(kafka.topic, each.partition, each.epoch, name, 0, 0) for each in found]

    def go(self, until: int, kill: str | None) -> None:
        """Run a consume actor until so much is stored, then drain it, or abandon an actor."""
        self.go_while(lambda: self.stored() < until, kill)

    def go_while(self, busy: Callable[[], bool], kill: str | None = None) -> Consume:
        """Run a consume actor as long as it is busy, then drain it, or abandon an actor; return the consume actor."""
        name = f"consume/0#{next(self.incarnation)}"
        consume, downstream = Consume(name, self.settings, SCHEMA, SCHEMA_ID), Downstream(self.detect, self.write)
        self.consumers.append(consume)
        held, ended = self.claimed(name), []

        def run() -> None:
            try:
                ended.append(consume.run(held, downstream))
            except (Abandoned, DownstreamLost) as error:
                ended.append(error)

        thread = threading.Thread(target=run, name=name)
        thread.start()
        assert eventually(lambda: not (busy() and thread.is_alive()), 60.0)
        if kill == "consume":
            downstream.abandoned = True
        elif kill == "detect":
            self.detect.lost, self.detect = True, self.worker(Detect)
        elif kill == "write":
            self.write.lost, self.write = True, self.worker(Write)
        else:
            consume.drain()
        thread.join(30.0)
        assert not thread.is_alive()
        assert len(ended) == 1
        self.warm += consume.counters["detector_warm_up_records_total"]
        return consume

    def close(self) -> None:
        """End what is left."""
        for worker in self.workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)


def produce(settings: Settings, log: dict[int, list[bytes]]) -> int:
    """Append the log to the topic and return how many records it has."""
    producer, delivered = RecordProducer(settings.kafka), []
    for partition, values in log.items():
        assert len(values) == producer.produce(settings.kafka.topic, partition, ["k"] * len(values), values, lambda *r: delivered.append(r))
    total = sum(map(len, log.values()))
    assert eventually(lambda: producer.poll(0.05) or len(delivered) == total)
    assert all(error is None for error, _ in delivered)
    return total
