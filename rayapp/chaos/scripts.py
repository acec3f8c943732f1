"""For each planted bug the fault that exposes it, in a few seconds of traffic.

The same script must pass without the bug: that is what tells a judge that finds
bugs from one that always complains.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.adapters.kafka import RecordProducer, read_all
from actors.adapters.postgres import connect
from actors.batch import READING_SCHEMA, Batch, Outcome, PartitionClaim
from actors.write.actor import Write
from rayapp.bench.deployment import SessionFailed
from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation
from rayapp.errors import DependencyUnavailable, RayappError, StaleClaim
from rayapp.stack import kill_component

STEADY_S = 2.0
BROKEN_RECORDS = 60
ZOMBIE_RECORDS = 90
ZOMBIE_TRIES = 5
"""The partition moves between the zombie's look and its batch."""
KEY_INDEX = "sensor_readings_natural_key"


@dataclass(frozen=True)
class Script:
    """One bug's script.

    Attributes:
        expect: a word that the problems must contain when the bug is there.
        run: makes the trouble while the simulation runs, and returns problems that the judge cannot see.
        after: asked once everything is quiet, for problems that the judge cannot see.
        prepare: what else the bug needs besides its flag.
    """

    bug: str
    expect: str
    run: Callable[[PipelineSession, Simulation], object]
    after: Callable[[PipelineSession, object], list[str]] = lambda _session, _made: []
    prepare: Callable[[PipelineSession], None] = lambda _session: None


def _kafka_away_and_ingest_killed(session: PipelineSession, _run: Simulation) -> None:
    """Messages arrive while no broker takes records; then ingest is killed."""
    ingest = session.look().pids()["ingest/0"]  # before: while Kafka is away the pipeline cannot be looked at
    kill_component(session.state, "kafka", signal.SIGSTOP)
    try:
        time.sleep(STEADY_S)
        os.kill(ingest, signal.SIGKILL)
    finally:
        kill_component(session.state, "kafka", signal.SIGCONT)


def _writer_killed(session: PipelineSession, _run: Simulation) -> None:
    """A writer is killed in the middle of its work, twice."""
    for _ in range(2):
        killed = session.kill_actor("write/0")
        session.wait_replaced("write/0", killed)
        time.sleep(STEADY_S)


def _zombie_writer(session: PipelineSession, _run: Simulation) -> None:
    """A partition is claimed away, and a writer of the old claim comes back with a batch that calls the next records dead.

    The zombie is this process with the writer's own code and account: what keeps
    it out can only be the epoch. Let in, it moves the ledger past records that
    nobody stored.
    """
    settings = session.settings
    old = _claims_of(session)[0]
    killed = session.kill_actor("consume/0")
    session.wait_replaced("consume/0", killed)
    _until(lambda: _claims_of(session)[0].epoch > old.epoch, lambda: "a higher epoch")
    zombie = Write("zombie", settings.model_copy(update={"latency_dir": None}))
    for claim in _claims_of(session):
        stale = replace(claim, epoch=claim.epoch - 1, owner=old.owner)
        with contextlib.suppress(StaleClaim):
            for _ in range(ZOMBIE_TRIES):
                before = session.look().next_offsets[claim.partition]
                reasons = {"zombie": ZOMBIE_RECORDS}
                batch = Batch(stale, READING_SCHEMA.empty_table(), before, before + ZOMBIE_RECORDS, ZOMBIE_RECORDS, reasons)
                if zombie.write(batch).outcome is Outcome.STORED:
                    break
    zombie.drain()
    zombie.run()


def _claims_of(session: PipelineSession) -> list[PartitionClaim]:
    """Return who holds which partition now."""
    settings = session.settings
    connection = connect(settings.database, "driver", application="rayapp chaos prove", autocommit=True)
    try:
        rows = connection.execute(
            "SELECT partition, epoch, owner FROM ingest_ledger WHERE pipeline = %s AND topic = %s ORDER BY partition",
            (settings.pipeline, settings.kafka.topic),
        )
    finally:
        connection.close()
    return [PartitionClaim(settings.kafka.topic, partition, epoch, owner, 0, 0) for partition, epoch, owner in rows]


def _broken_records_and_consume_killed(session: PipelineSession, _run: Simulation) -> object:
    """A foreign producer's broken records are passed by the ledger; right then consume is killed."""
    kafka = session.settings.kafka
    producer = RecordProducer(kafka)
    payloads = [secrets.token_bytes(24) for _ in range(BROKEN_RECORDS)]
    before = session.look().records
    producer.produce(kafka.topic, 0, ["foreign"] * len(payloads), payloads, lambda *_: None)
    while len(producer):
        producer.poll(0.05)
    ends = session.look().ends
    _until(
        lambda: session.look().next_offsets.get(0, 0) >= ends[0] and session.look().records > before,
        lambda: "the ledger past the broken records",
    )
    session.kill_actor("consume/0")
    return payloads


def _letters_missing(session: PipelineSession, payloads: object) -> list[str]:
    """Say which broken records are not among the dead letters."""
    kafka = session.settings.kafka
    there = {payload for payload, _ in read_all(kafka, kafka.dead_letter_topic)}
    wanted = [each for each in payloads if each not in there] if isinstance(payloads, list) else []
    return [f"letters: {len(wanted)} of {BROKEN_RECORDS} broken records are not in the dead-letter topic"] if wanted else []


def _ingest_killed(session: PipelineSession, _run: Simulation) -> None:
    """Ingest is killed between Kafka's acknowledgement and PUBACK, three times, so that the broker sends again."""
    for _ in range(3):
        killed = session.kill_actor("ingest/0")
        session.wait_replaced("ingest/0", killed)
        time.sleep(STEADY_S / 2)


def _drop_key(session: PipelineSession) -> None:
    connection = connect(session.settings.database, "owner", application="rayapp chaos prove")
    try:
        connection.execute(f"DROP INDEX IF EXISTS {KEY_INDEX}")
        connection.commit()
    finally:
        connection.close()


def _until(question: Callable[[], bool], wish: Callable[[], str], timeout_s: float = 90.0) -> None:
    """Wait for something.

    Raises:
        SessionFailed: it did not come.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(DependencyUnavailable):
            if question():
                return
        if time.monotonic() > deadline:
            raise SessionFailed(f"{wish()}: not within {timeout_s:g} s")
        time.sleep(0.05)


SCRIPTS = (
    Script("ack_before_produce", "lost", _kafka_away_and_ingest_killed),
    Script("offset_before_rows", "lost", _writer_killed),
    Script("dead_letter_after_ledger", "letters", _broken_records_and_consume_killed, after=_letters_missing),
    # The last one spoils the table's key for everything after it.
    Script("no_epoch_test", "lost", _zombie_writer),
    Script("no_dedupe", "duplicates", _ingest_killed, prepare=_drop_key),
)


class NotProven(RayappError):
    """A script could not be carried out, so it proves nothing."""
