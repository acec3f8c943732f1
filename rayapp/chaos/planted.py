"""Five bugs of the kind that lose or double data, planted into worker processes to prove that the judge finds them.

Loaded only where RUUVI_PLANTED_BUGS names a folder (rayapp.worker_setup); a bug
is active while a file of its name lies there, so one pipeline can run each
script with and without it. Production code knows nothing of this module: bugs
are patches of its classes. Each widens the moment in which it does harm, so
that a script needs seconds and not luck. The fifth, `no_dedupe`, is the table
without its unique key.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rayapp.log import Events

BUGS = ("ack_before_produce", "offset_before_rows", "no_epoch_test", "dead_letter_after_ledger", "no_dedupe")
ROWS_LATER_S = 0.4
ACKS_LATER_S = 0.6
LETTERS_LATER_S = 4.0

_events = Events(__name__)


def plant(folder: str) -> None:
    """Patch the classes of this process; harmless until a file in `folder` names a bug."""
    flags = Path(folder)
    _acknowledge_early(flags)
    _acknowledge_late(flags)
    _move_offset_first(flags)
    _forget_epochs(flags)
    _send_letters_late(flags)
    _events.warning("bugs_planted", folder=folder)


def _active(flags: Path, bug: str) -> bool:
    return (flags / bug).exists()


def _acknowledge_early(flags: Path) -> None:
    """PUBACK as soon as a message was read, whatever becomes of its records."""
    from actors.ingest.ack_window import Flush

    complete: Any = Flush.complete
    Flush.complete = property(lambda self: _active(flags, "ack_before_produce") or complete.fget(self))  # type: ignore[method-assign,assignment]


def _acknowledge_late(flags: Path) -> None:
    """Without the unique key: hold PUBACKs back a little, so that a killed ingest leaves messages that Kafka has already."""
    from actors.ingest.ack_window import AckWindow

    due = AckWindow.due
    released = [0.0]

    def due_late(self: Any) -> Any:
        if _active(flags, "no_dedupe") and time.monotonic() - released[0] < ACKS_LATER_S:
            return []
        released[0] = time.monotonic()
        return due(self)

    AckWindow.due = due_late  # type: ignore[method-assign]


def _move_offset_first(flags: Path) -> None:
    """Commit the ledger, then store the rows, in two transactions."""
    from actors.write import copy
    from actors.write.ledger import Counts
    from actors.write.store import TABLE, BatchStore

    honest = BatchStore._copy

    def copy_late(self: BatchStore, writer: Any, batch: Any, rows: Any) -> Any:
        if not _active(flags, "offset_before_rows"):
            return honest(self, writer, batch, rows)
        answer = self._finish(writer, batch, Counts(rows.table.num_rows, 0, 0))
        time.sleep(ROWS_LATER_S)
        if rows.table.num_rows:
            writer.connection.copy_binary(TABLE, copy.COLUMNS, copy.encode(rows.table))
            writer.connection.commit()
        return answer

    BatchStore._copy = copy_late  # type: ignore[method-assign]


def _forget_epochs(flags: Path) -> None:
    """Read and move the ledger without asking whose it is, or where it stands."""
    from actors.write.ledger import Ledger, Position

    register, positions, next_offset, advance = Ledger.register, Ledger.positions, Ledger.next_offset, Ledger.advance
    where = "WHERE pipeline = %s AND topic = %s AND partition = %s"

    def any_register(self: Any, claim: Any) -> None:
        if not _active(flags, "no_epoch_test"):
            register(self, claim)

    def any_next_offset(self: Any, claim: Any) -> int:
        if not _active(flags, "no_epoch_test"):
            return next_offset(self, claim)
        key = (self._pipeline, claim.topic, claim.partition)
        return int(self._connection.execute(f"SELECT next_offset FROM ingest_ledger {where}", key)[0][0])

    def any_positions(self: Any, claims: Any) -> Any:
        if not _active(flags, "no_epoch_test"):
            return positions(self, claims)
        return {claim: Position(any_next_offset(self, claim), None) for claim in claims}

    def any_advance(self: Any, batch: Any, counts: Any) -> None:
        if not _active(flags, "no_epoch_test"):
            advance(self, batch, counts)
            return
        key = (self._pipeline, batch.claim.topic, batch.claim.partition)
        self._connection.count(
            "UPDATE ingest_ledger SET next_offset = %s, records = records + %s, stored = stored + %s, duplicate = duplicate + %s,"
            f" dead = dead + %s {where}",
            (batch.after, batch.records, counts.stored, counts.duplicate, batch.dead, *key),
        )

    Ledger.register, Ledger.next_offset = any_register, any_next_offset  # type: ignore[method-assign]
    Ledger.positions, Ledger.advance = any_positions, any_advance  # type: ignore[method-assign]


def _send_letters_late(flags: Path) -> None:
    """Let the ledger pass a record whose dead letter nobody has sent."""
    from actors.consume.letters import OutgoingLetters

    queue, send = OutgoingLetters.queue, OutgoingLetters.send

    def queue_uncounted(self: Any, under_way: Any, reasons: Any, stage: str, now_us: int) -> None:
        queue(self, under_way, reasons, stage, now_us)
        if _active(flags, "dead_letter_after_ledger"):
            under_way.dead_outstanding = 0
            self.held_until_s = time.monotonic() + LETTERS_LATER_S

    def send_late(self: Any) -> None:
        if time.monotonic() >= getattr(self, "held_until_s", 0.0):
            send(self)

    OutgoingLetters.queue, OutgoingLetters.send = queue_uncounted, send_late  # type: ignore[method-assign]
