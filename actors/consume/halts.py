"""Halts: partitions that go no further until a person has decided what to do about them.

A halt is written into the ledger, over a connection of its own and again and
again while the database is away, and the driver then gives the partition to
nobody. The reason says what is missing or failing, with offsets and counts,
and names the command that goes on. What is merely away never halts anything.
"""

from __future__ import annotations

from collections import Counter

from actors.adapters.postgres import connect
from actors.batch import PartitionClaim
from actors.consume.dead_share import Exceeded
from actors.consume.flow import PartitionFlow, UnderWay
from actors.write.ledger import Ledger
from rayapp.config import Settings
from rayapp.errors import DataLoss, DependencyUnavailable
from rayapp.log import Events

_events = Events(__name__)


class Halts:
    """The halts of one consume actor that are to be written into the ledger.

    Args:
        name: of the actor, shown in pg_stat_activity.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._unwritten: dict[PartitionClaim, str] = {}

    def add(self, claim: PartitionClaim, why: str) -> str:
        """Remember a halt, say it once, and return the reason as an operator reads it."""
        reason = (
            f"{claim.topic}[{claim.partition}]: {why}. Nothing was skipped; the other partitions go on. Once you know what it means: "
            f"rayapp partition resume {claim.topic} {claim.partition} --at next|start|end|OFFSET --why '...'"
        )
        _events.error("partition_halted", topic=claim.topic, partition=claim.partition, reason=reason)
        self._unwritten[claim] = reason
        return reason

    def write(self) -> bool:
        """Write what is not written yet; False when the database is away and write() must be called again.

        Raises:
            StaleClaim: a partition is somebody else's by now.
        """
        for claim, reason in list(self._unwritten.items()):
            try:
                connection = connect(self._settings.database, "writer", application=self._name)
                try:
                    Ledger(connection, self._settings.pipeline).halt(claim, reason)
                finally:
                    connection.close()
            except DependencyUnavailable as error:
                _events.warning("halt_waits", partition=claim.partition, error=str(error))
                return False
            del self._unwritten[claim]
        return True


def too_many_dead(batch: UnderWay, found: Exceeded, reasons: Counter[str], share_max: float) -> str:
    """Return why a partition with too many dead letters halts.

    Args:
        batch: the one in which the limit was crossed.
        reasons: of the records at hand.
    """
    last = list(batch.raw)[found.record]
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(5))
    return (
        f"{found.dead} of the last {found.records} records up to offset {last} are dead letters, more than {share_max:.0%} "
        f"(batch.dead_share_max); here: {listed}; nothing from offset {batch.before} on was stored"
    )


def stubborn(flow: PartitionFlow, error: Exception, batch: UnderWay | None) -> str:
    """Return why a partition halts in which the same thing fails again and again.

    Args:
        batch: the one that failed last, if it was a batch.
    """
    if isinstance(error, DataLoss):
        return str(error)
    place = f"offsets {batch.before}..{batch.after - 1}" if batch is not None else f"offset {flow.position}"
    state = getattr(error, "sqlstate", None)
    name = type(error).__name__ + (f" (SQLSTATE {state})" if state and state not in str(error) else "")
    return f"{place} failed {flow.stumbles} times with every server up, nothing of them was stored; last: {name}: {error}"
