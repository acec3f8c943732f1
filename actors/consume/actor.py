"""The consume actor: pinned partitions, batches to detect and write, credit until the commit.

One thread turns the loop: fetch, cut and decode what is due, move each
partition's batches on as answers come. Where to start is read from the ledger,
never from the consumer group. Whatever goes wrong with a batch (database away,
detector out of step) is mended the same way: forget what is not committed,
read the ledger, restore the detector, go back there. A lost actor or a stale
claim ends run(): only the driver may claim again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import cast

from actors import dead_letters
from actors.adapters.kafka import PartitionReader, RecordProducer
from actors.adapters.postgres import connect
from actors.adapters.registry import Registry
from actors.avro import Codec
from actors.base import Actor, ActorState, Report, now_us
from actors.batch import DETECT_COLUMNS, Batch, Flags, Outcome, PartitionClaim, WriteAnswer
from actors.consume.decode import Decoder
from actors.consume.flow import PartitionFlow, Stage, UnderWay
from actors.consume.port import Answer, Downstream
from actors.consume.rows import drop_offsets, raise_flags
from actors.dead_letters import DeadLetter
from actors.detect.actor import OutOfStep
from actors.ingest.flush import DAY_US
from actors.write.ledger import Ledger
from rayapp.config import Settings
from rayapp.errors import DataLoss, DeliveryFailed, DependencyUnavailable
from rayapp.log import Events

MIRROR_EVERY_S = 5.0
RETRY_S = 0.5

_events = Events(__name__)


class Consume(Actor):
    """One consume slot."""

    role = "consume"

    def __init__(self, name: str, settings: Settings, schema: str, schema_id: int) -> None:
        super().__init__(name)
        self._settings = settings
        self._registry = Registry(settings.registry)
        self._decoder = Decoder(Codec(schema), schema_id, self._registry.schema_text)
        self._flows: dict[int, PartitionFlow] = {}
        self._waiting: dict[int, tuple[PartitionFlow, Callable[[PartitionFlow, Answer], None]]] = {}
        self._dead: deque[tuple[UnderWay, DeadLetter]] = deque()
        self._dead_failed: str | None = None
        self._committed: dict[int, int] = {}
        self._mirrored_s = 0.0
        self._retry_at_s = 0.0

    def run(self, claims: list[PartitionClaim], downstream: Downstream) -> Report:
        """Move the claimed partitions until drain().

        Raises:
            StaleClaim: a partition was claimed away.
            DownstreamLost: a detect or write actor is gone.
            DataLoss: the ledger points outside the log.
        """
        self._downstream = downstream
        self._reader = PartitionReader(self._settings.kafka, self.name)
        self._producer = RecordProducer(self._settings.kafka)
        self._flows = {c.partition: PartitionFlow(c, 0, 0, self._settings.batch.credit_bytes) for c in claims}
        self.set_state(ActorState.RUNNING)
        try:
            while not (self.draining and all(flow.idle or flow.recovering for flow in self._flows.values())):
                self.tick()
                self._turn()
            self._mirror(force=True)
        finally:
            self._reader.close()
            self._registry.close()
        return self.report("drained")

    def _turn(self) -> None:
        """Recover, fetch, cut, hand over, collect: one turn of the loop."""
        now = time.monotonic()
        if now >= self._retry_at_s:
            for flow in self._flows.values():
                if flow.recovering and flow.outstanding == 0 and not self.draining:
                    self._recover(flow)
        busy = bool(self._waiting)
        if not self.draining:
            for fetched in self._reader.poll(self._settings.batch.max_rows, 0.02 if busy else 0.05):
                self._flows[fetched.partition].add(fetched, now)
        for flow in self._flows.values():
            self._cut(flow, now)
        self._send_dead_letters()
        for flow in self._flows.values():
            self._hand_over(flow)
        for answer in self._downstream.poll(0.02 if self.draining else 0.0):
            flow, handle = self._waiting.pop(answer.token)
            flow.outstanding -= 1
            if not flow.recovering:
                handle(flow, answer)
        self._mirror()
        self.gauges["held_bytes"] = sum(flow.held_bytes for flow in self._flows.values())

    def _cut(self, flow: PartitionFlow, now_s: float) -> None:
        """Cut and decode a batch that is due; stop or go on fetching by credit."""
        batch = self._settings.batch
        if flow.due(now_s, interval_s=batch.interval_s, max_rows=batch.max_rows, draining=self.draining):
            under_way = flow.cut(now_s, batch.max_rows)
            try:
                self._decode(under_way)
            except DependencyUnavailable as error:
                self._fail(flow, "schema registry", error)
        if flow.over_credit != flow.paused:
            flow.paused = not flow.paused
            (self._reader.pause if flow.paused else self._reader.resume)(flow.claim.partition)

    def _decode(self, under_way: UnderWay) -> None:
        """Decode a batch and queue the dead letters it contains."""
        ingest, now = self._settings.ingest, now_us()
        decoded = self._decoder.decode(
            list(under_way.raw),
            list(under_way.raw.values()),
            oldest_us=now - ingest.max_age_days * DAY_US,
            newest_us=now + ingest.max_future_s * 1_000_000,
        )
        under_way.table = decoded.table
        self.counters["kafka_consumer_messages_consumed_total"] += len(under_way.raw)
        self._queue_dead(under_way, decoded.dead, "consume")

    def _queue_dead(self, under_way: UnderWay, reasons: dict[int, str], stage: str) -> None:
        """Queue records as dead letters; the batch waits until every one is delivered."""
        claim = under_way.claim
        for offset, reason in sorted(reasons.items()):
            letter = dead_letters.of_record(claim.topic, claim.partition, offset, under_way.raw[offset], reason, stage, now_us())
            self._dead.append((under_way, letter))
            self.reasons[reason] += 1
        under_way.dead_reasons.update(reasons.values())
        under_way.dead_outstanding += len(reasons)
        self.counters["iot_messages_failed_total"] += len(reasons)

    def _send_dead_letters(self) -> None:
        """Hand dead letters to the producer and count their deliveries."""
        while self._dead:
            under_way, letter = self._dead[0]

            def report(error: object | None, _record: object, under_way: UnderWay = under_way) -> None:
                if error is None:
                    under_way.dead_outstanding -= 1
                else:
                    self._dead_failed = str(error)

            if not self._producer.produce_one(self._settings.kafka.dead_letter_topic, letter.value, letter.headers(), report):
                break
            self._dead.popleft()
        self._producer.poll(0.0)
        if self._dead_failed is not None:
            raise DeliveryFailed(f"{self.name}: dead letter refused: {self._dead_failed}; nothing was committed past it")

    def _hand_over(self, flow: PartitionFlow) -> None:
        """Move a partition's batches to the next stage that is free."""
        first = flow.first
        if first is not None and first.stage is Stage.DEAD_LETTERS and first.dead_outstanding == 0:
            first.stage = Stage.DETECT
            batch = Batch(first.claim, first.table.select(DETECT_COLUMNS), first.before, first.after, len(first.raw))
            self._call(flow, self._downstream.detect(batch, drain=self.draining), self._detected)
        writing = flow.writing
        if writing is not None and writing.stage is Stage.DEAD_LETTERS and writing.dead_outstanding == 0:
            writing.stage = Stage.WRITE
            self._call(flow, self._downstream.write(writing.batch()), self._written)
        ready = flow.advance_to_write()
        if ready is not None:
            self._call(flow, self._downstream.write(ready.batch()), self._written)

    def _call(self, flow: PartitionFlow, token: int, handle: Callable[[PartitionFlow, Answer], None]) -> None:
        flow.outstanding += 1
        self._waiting[token] = (flow, handle)

    def _restored(self, flow: PartitionFlow, answer: Answer) -> None:
        """The detector stands where the partition goes on; only its errors matter."""
        self._mended(flow, answer)

    def _detected(self, flow: PartitionFlow, answer: Answer) -> None:
        """Detection answered: raise flags; the batch may be written."""
        if self._mended(flow, answer) or flow.first is None:
            return
        flags = cast("Flags", answer.result)
        flow.first.table = raise_flags(flow.first.table, flags.anomalies)
        flow.first.snapshot = flags.snapshot
        flow.first.stage = Stage.READY

    def _written(self, flow: PartitionFlow, answer: Answer) -> None:
        """Write answered: stored returns credit, rejected rows become dead letters, the rest is read again."""
        if self._mended(flow, answer) or flow.writing is None:
            return
        written, under_way = cast("WriteAnswer", answer.result), flow.writing
        if written.outcome is Outcome.REJECTED:
            rejected = written.rejected or {}
            if not rejected:
                # Refused as a whole, yet no row fails alone: read again rather than guess.
                self._fail(flow, "database", DependencyUnavailable("a batch was refused but none of its rows"))
                return
            under_way.table = drop_offsets(under_way.table, rejected)
            under_way.stage = Stage.DEAD_LETTERS
            self._queue_dead(under_way, rejected, "write")
        elif written.outcome is Outcome.REWIND:
            _events.warning("rewind", partition=flow.claim.partition, before=under_way.before, ledger=written.next_offset)
            flow.fail()
        else:
            self._committed[flow.claim.partition] = under_way.after
            self.counters["iot_messages_processed_total"] += len(under_way.raw)
            self.counters["duplicates_absorbed_total"] += written.duplicate
            flow.committed()
            self.set_state(ActorState.RUNNING)

    def _mended(self, flow: PartitionFlow, answer: Answer) -> bool:
        """Deal with an error answer: wait for a dependency, restore a detector, or end."""
        if answer.error is None:
            return False
        if isinstance(answer.error, DependencyUnavailable):
            self._fail(flow, "database", answer.error)
        elif isinstance(answer.error, OutOfStep):
            self._fail(flow, "detector", answer.error)
        else:
            raise answer.error
        return True

    def _fail(self, flow: PartitionFlow, dependency: str, error: Exception) -> None:
        """Forget what is not committed and try again from the ledger in a while."""
        _events.warning("partition_waits", partition=flow.claim.partition, dependency=dependency, error=str(error))
        self._dead = deque(item for item in self._dead if item[0] not in (flow.first, flow.writing))
        flow.fail()
        self.set_state(ActorState.BLOCKED, dependency)
        self._retry_at_s = time.monotonic() + RETRY_S

    def _recover(self, flow: PartitionFlow) -> None:
        """Read the ledger, restore the detector there, and fetch from there."""
        claim = flow.claim
        try:
            connection = connect(self._settings.database, "writer", application=self.name)
            try:
                ledger = Ledger(connection, self._settings.pipeline)
                next_offset, snapshot = ledger.next_offset(claim), ledger.load_snapshot(claim)
            finally:
                connection.close()
            low, high = self._reader.log_bounds(claim.partition)
        except DependencyUnavailable as error:
            self._fail(flow, "database or kafka", error)
            return
        if not low <= next_offset <= high:
            raise DataLoss(
                f"{claim.topic}[{claim.partition}]: the ledger is at {next_offset}, the log holds {low}..{high}; "
                "records are missing or the topic was made anew. Nothing was skipped; an operator must decide."
            )
        self._reader.start_at(claim.partition, next_offset)
        if flow.paused:
            self._reader.resume(claim.partition)
        flow.restart(next_offset)
        self._call(flow, self._downstream.restore(claim, next_offset, snapshot), self._restored)
        _events.info("partition_started", partition=claim.partition, epoch=claim.epoch, next_offset=next_offset)

    def _mirror(self, force: bool = False) -> None:
        """Copy committed positions into the consumer group now and then, for lag dashboards."""
        if self._committed and (force or time.monotonic() - self._mirrored_s >= MIRROR_EVERY_S):
            self._mirrored_s = time.monotonic()
            self._reader.mirror(self._committed)
            self._committed = {}
