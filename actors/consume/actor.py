"""The consume actor: pinned partitions, batches to detect and write, credit until the commit.

One thread turns the loop: fetch, cut and decode what is due, move each
partition's batches on as answers come. Where to start is read from the ledger,
never from the consumer group. Whatever goes wrong with a batch (database away,
detector out of step) is mended the same way: forget what is not committed,
read the ledger, restore the detector, go back there. A lost actor or a stale
claim ends run(): only the driver may claim again.

A partition that can go no further (its records are gone from the log, too many
are dead letters, a batch fails again and again with every server up) halts
alone: the reason goes into the ledger, and the others go on.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import cast

from actors.adapters.kafka import PartitionReader, RecordProducer
from actors.adapters.registry import Registry
from actors.avro import Codec
from actors.base import Actor, ActorState, Report, now_us
from actors.batch import DETECT_COLUMNS, Batch, Flags, Outcome, PartitionClaim, WriteAnswer
from actors.consume import halts
from actors.consume.calls import Calls
from actors.consume.dead_share import DeadShare
from actors.consume.decode import Decoder, time_window
from actors.consume.flow import PartitionFlow, Stage, UnderWay
from actors.consume.halts import Halts
from actors.consume.letters import OutgoingLetters
from actors.consume.mirror import GroupMirror
from actors.consume.port import Answer, Downstream
from actors.consume.recovery import Recovery, Start
from actors.consume.rows import drop_offsets, raise_flags
from actors.detect.actor import OutOfStep
from actors.detect.steps import UnreadableSnapshot
from rayapp.config import Settings
from rayapp.errors import DataLoss, DependencyUnavailable, DownstreamLost, OwnershipLost, RayappError
from rayapp.log import Events

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
        self._recovery = Recovery(settings, name)
        self._halts = Halts(settings, name)
        self._flows: dict[int, PartitionFlow] = {}
        self._retry_at_s = 0.0

    def run(self, claims: list[PartitionClaim], downstream: Downstream) -> Report:
        """Move the claimed partitions until drain().

        Raises:
            StaleClaim: a partition was claimed away.
            DownstreamLost: a detect or write actor is gone.
            DeliveryFailed: Kafka refused a dead letter for good.
        """
        kafka, batch = self._settings.kafka, self._settings.batch
        self._downstream, self._calls = downstream, Calls(downstream)
        self._reader = PartitionReader(kafka, self.name)
        self._mirror = GroupMirror(self._reader)
        self._letters = OutgoingLetters(RecordProducer(kafka), kafka.dead_letter_topic)
        share = DeadShare(batch.dead_share_max, batch.dead_window_records, batch.dead_min_records)
        self._flows = {c.partition: PartitionFlow(c, batch.credit_bytes, share) for c in claims}
        self.set_state(ActorState.RUNNING)
        try:
            while not (self.draining and all(flow.idle or flow.recovering for flow in self._flows.values())):
                self.tick()
                self._turn()
            self._halts.write()
            self._mirror.copy(time.monotonic(), force=True)
        finally:
            self._reader.close()
            self._registry.close()
        return self.report("drained")

    def _turn(self) -> None:
        """Recover, fetch, cut, hand over, collect: one turn of the loop."""
        now = time.monotonic()
        if now >= self._retry_at_s:
            if not self._halts.write():
                self._retry_at_s = now + RETRY_S
            if not self.draining:
                self._recover([flow for flow in self._flows.values() if flow.recovering and not flow.halted and flow.outstanding == 0])
        if not self.draining:
            self._fetch(now)
        for flow in self._flows.values():
            self._cut(flow, now)
        self._letters.send()
        for flow in self._flows.values():
            self._hand_over(flow)
        self._calls.answer(0.02 if self.draining else 0.0)
        self._mirror.copy(now)
        self.gauges["held_bytes"] = sum(flow.held_bytes for flow in self._flows.values())
        waits_for = next((flow.waits_for for flow in self._flows.values() if flow.waits_for is not None), None)
        self.set_state(ActorState.RUNNING if waits_for is None else ActorState.BLOCKED, waits_for)

    def _fetch(self, now_s: float) -> None:
        """Buffer what has arrived; where the log lost records, ask for its bounds."""
        try:
            for fetched in self._reader.poll(self._settings.batch.max_rows, 0.02 if self._calls else 0.05):
                self._flows[fetched.partition].add(fetched, now_s)
        except DataLoss as error:
            for flow in self._flows.values():
                if error.partition == flow.claim.partition and not flow.recovering:
                    self._stumble(flow, error)
                elif error.partition is None and not flow.recovering:
                    self._fail(flow, "kafka", error)  # recovery asks for the bounds of all and finds out whose records are gone

    def _cut(self, flow: PartitionFlow, now_s: float) -> None:
        """Cut and decode a batch that is due; stop or go on fetching by credit."""
        batch = self._settings.batch
        if flow.due(now_s, interval_s=batch.interval_s, max_rows=batch.max_rows, draining=self.draining):
            under_way = flow.cut(now_s, batch.max_rows)
            try:
                self._decode(flow, under_way)
            except DependencyUnavailable as error:
                self._fail(flow, "schema registry", error)
            except Exception as error:  # no record alone did this, so none is dead-lettered for it
                self._stumble(flow, error, under_way)
        if flow.over_credit != flow.paused and not flow.halted:
            flow.paused = not flow.paused
            (self._reader.pause if flow.paused else self._reader.resume)(flow.claim.partition)

    def _decode(self, flow: PartitionFlow, under_way: UnderWay) -> None:
        """Decode a batch and queue the dead letters it contains; those of records stored already were sent then."""
        oldest_us, newest_us = time_window(self._settings.ingest, now_us())
        raw = under_way.raw
        decoded = self._decoder.decode(list(raw), list(raw.values()), oldest_us=oldest_us, newest_us=newest_us)
        under_way.table = decoded.table
        if under_way.warm:
            self.counters["detector_warm_up_records_total"] += len(under_way.raw)
            return
        self.counters["kafka_consumer_messages_consumed_total"] += len(under_way.raw)
        self._bury(flow, under_way, decoded.dead, "consume")

    def _bury(self, flow: PartitionFlow, under_way: UnderWay, dead: dict[int, str], stage: str) -> None:
        """Queue records as dead letters, unless they are too many; the batch waits until every one is delivered."""
        # A conflict is two good readings, and a replayed letter was counted when it first came: neither speaks against the partition.
        against = [offset for offset, reason in dead.items() if reason != "conflict" and offset not in under_way.letter_ids]
        if against:
            under_way.count_dead(against)
        found = flow.too_many_dead()
        if found is not None:
            reasons = sum((batch.dead_reasons for batch in (flow.writing, flow.first) if batch), Counter(dead.values()))
            self._halt(flow, halts.too_many_dead(*found, reasons, self._settings.batch.dead_share_max))
            return
        self._letters.queue(under_way, dead, stage, now_us())
        self.reasons.update(dead.values())
        self.counters["iot_messages_failed_total"] += len(dead)

    def _hand_over(self, flow: PartitionFlow) -> None:
        """Move a partition's batches to the next stage that is free."""
        first = flow.first
        if first is not None and first.stage is Stage.DEAD_LETTERS and first.dead_outstanding == 0:
            first.stage = Stage.DETECT
            batch = Batch(first.claim, first.table.select(DETECT_COLUMNS), first.before, first.after, len(first.raw))
            self._calls.expect(flow, self._downstream.detect(batch, drain=self.draining or first.snapshot_wanted), self._detected)
        writing = flow.writing
        if writing is not None and writing.stage is Stage.DEAD_LETTERS and writing.dead_outstanding == 0:
            writing.stage = Stage.WRITE
            self._calls.expect(flow, self._downstream.write(writing.batch()), self._written)
        ready = flow.advance_to_write()
        if ready is not None:
            self._calls.expect(flow, self._downstream.write(ready.batch()), self._written)

    def _restored(self, flow: PartitionFlow, answer: Answer) -> None:
        """The detector stands where the partition goes on, or could not read its snapshot."""
        if not self._mended(flow, answer, None):
            flow.waits_for = None

    def _detected(self, flow: PartitionFlow, answer: Answer) -> None:
        """Detection answered: raise flags; the batch may be written."""
        if self._mended(flow, answer, flow.first) or flow.first is None:
            return
        if flow.first.warm:
            if flow.warmed() and flow.leader_epoch is not None:
                # Pinned anew where storing begins: the brokers check against the epoch whether the log was cut off below there.
                flow.drop_buffer()
                self._reader.start_at(flow.claim.partition, flow.position, flow.leader_epoch)
                self._unpause(flow)
            return
        flags = cast("Flags", answer.result)
        flow.first.table = raise_flags(flow.first.table, flags.anomalies)
        flow.first.snapshot = flags.snapshot
        flow.first.stage = Stage.READY

    def _written(self, flow: PartitionFlow, answer: Answer) -> None:
        """Write answered: stored returns credit, rejected rows become dead letters, the rest is read again."""
        if self._mended(flow, answer, flow.writing) or flow.writing is None:
            return
        written, under_way = cast("WriteAnswer", answer.result), flow.writing
        if written.outcome is Outcome.REJECTED:
            rejected = written.rejected or {}
            if not rejected:
                self._stumble(flow, RayappError("the database refuses the batch, but none of its rows alone"), under_way)
                return
            under_way.table = drop_offsets(under_way.table, rejected)
            under_way.stage = Stage.DEAD_LETTERS
            self._bury(flow, under_way, rejected, "write")
        elif written.outcome is Outcome.REWIND:
            _events.warning("rewind", partition=flow.claim.partition, before=under_way.before, ledger=written.next_offset)
            self._letters.forget(flow.first)
            flow.fail()
        else:
            self._mirror.committed(flow.claim.partition, under_way.after)
            self.counters["iot_messages_processed_total"] += len(under_way.raw)
            self.counters["duplicates_absorbed_total"] += written.duplicate
            flow.committed()

    def _mended(self, flow: PartitionFlow, answer: Answer, under_way: UnderWay | None) -> bool:
        """Deal with an error answer: wait for a dependency, restore a detector, try again, or end."""
        error = answer.error
        if error is None:
            return False
        if isinstance(error, DependencyUnavailable):
            self._fail(flow, "database", error)
        elif isinstance(error, OutOfStep):
            self._fail(flow, "detector", error)
        elif isinstance(error, UnreadableSnapshot):
            flow.distrusted = flow.started_at
            self._fail(flow, "detector", error)
        elif isinstance(error, OwnershipLost | DownstreamLost):
            raise error
        else:
            self._stumble(flow, error, under_way)
        return True

    def _fail(self, flow: PartitionFlow, dependency: str, error: Exception) -> None:
        """Forget what is not committed and try again from the ledger in a while."""
        if flow.waits_for != dependency:
            _events.warning("partition_waits", partition=flow.claim.partition, dependency=dependency, error=str(error))
        self._letters.forget(flow.first, flow.writing)
        flow.fail(dependency)
        self._retry_at_s = time.monotonic() + RETRY_S

    def _stumble(self, flow: PartitionFlow, error: Exception, under_way: UnderWay | None = None) -> None:
        """A failure that is no dependency's: try again from the ledger; when it comes again and again, halt the partition."""
        if isinstance(error, MemoryError):
            raise error
        flow.stumbles += 1
        if flow.stumbles < self._settings.batch.stubborn_tries:
            self._fail(flow, "a failing batch", error)
        else:
            self._halt(flow, halts.stubborn(flow, error, under_way))

    def _halt(self, flow: PartitionFlow, why: str) -> None:
        """Go no further with one partition; the others go on."""
        self._letters.forget(flow.first, flow.writing)
        flow.halt()
        self._reader.stop(flow.claim.partition)
        self.halted[flow.claim.partition] = self._halts.add(flow.claim, why)

    def _recover(self, flows: list[PartitionFlow]) -> None:
        """Read the ledger, restore the detectors, and fetch from there, each partition that can."""
        if not flows:
            return
        found = self._recovery.starts({flow.claim: flow.distrusted for flow in flows}, self._reader)
        for flow in flows:
            start = found.get(flow.claim)
            if isinstance(start, Start):
                self._start(flow, start)
            elif isinstance(start, DataLoss):
                self._stumble(flow, start)
            elif start is not None:
                self._fail(flow, "database or kafka", start)

    def _start(self, flow: PartitionFlow, start: Start) -> None:
        """Fetch and detect from where the detector's state stands, store from where the ledger stands."""
        claim = flow.claim
        self._reader.start_at(claim.partition, start.position, start.leader_epoch)
        self._unpause(flow)
        flow.restart(start.position, start.next_offset, start.leader_epoch)
        self._calls.expect(flow, self._downstream.restore(claim, start.position, start.snapshot), self._restored)
        say = _events.info if start.expected else _events.error
        say(
            "partition_started",
            partition=claim.partition, epoch=claim.epoch, next_offset=start.next_offset, position=start.position, state=start.state,
        )  # fmt: skip

    def _unpause(self, flow: PartitionFlow) -> None:
        """Fetch again after a new start; a pause outlives it."""
        if flow.paused:
            self._reader.resume(flow.claim.partition)
            flow.paused = False
