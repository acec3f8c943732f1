"""Where a partition goes on after a start, a loss or a rewind: a decision about positions, and the reads it needs.

The ledger says what is stored; the log must still hold what comes next. A
detector with state stands further back, at its last snapshot: from there up to
the ledger's position records are read again for the detector alone. Without a
usable snapshot the state is built anew from a fixed window of records before
the ledger's position, so that two recoveries at the same position give the
same state. Rules without state need none of this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from actors.adapters.kafka import PartitionReader
from actors.adapters.postgres import connect
from actors.batch import DetectorSnapshot, PartitionClaim
from actors.detect.actor import configuration_version
from actors.write.ledger import Ledger
from rayapp.config import Settings
from rayapp.errors import DataLoss, DependencyUnavailable

LOG_BOUNDS_S = 5.0
"""One pass asks Kafka for the bounds of logs no longer than about this; the other partitions wait for the next pass."""


@dataclass(frozen=True)
class Place:
    """What the database says about a partition.

    Attributes:
        leader_epoch: of the last stored record, None when unknown.
    """

    next_offset: int
    snapshot: DetectorSnapshot | None
    leader_epoch: int | None = None


@dataclass(frozen=True)
class Start:
    """Where a partition goes on.

    Attributes:
        position: the first record to fetch and detect.
        next_offset: the first record to store.
        snapshot: the detector's state of exactly `position`; None = nothing remembered.
        state: where the state comes from: `snapshot`, `stateless`, or why there is no usable snapshot.
        leader_epoch: of the last record before `next_offset`, None when unknown.
    """

    position: int
    next_offset: int
    snapshot: DetectorSnapshot | None
    state: str
    leader_epoch: int | None = None

    @property
    def expected(self) -> bool:
        """False when a person should ask why there is no usable snapshot."""
        return self.state in {"snapshot", "stateless", "no_snapshot", "snapshot_of_other_rules"}


class Recovery:
    """Finds where the partitions of one consume actor go on.

    Args:
        name: of the actor, shown in pg_stat_activity.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._version = configuration_version(settings) if settings.steps.limits else None
        self._passes = 0

    def starts(
        self, claims: Mapping[PartitionClaim, int | None], reader: PartitionReader
    ) -> dict[PartitionClaim, Start | DependencyUnavailable | DataLoss]:
        """Return where partitions go on, or why one cannot; those that were not reached in time are left out.

        Args:
            claims: the partitions, each with the position of a snapshot not to be used, or None.

        Raises:
            StaleClaim: a partition has another epoch or owner.
        """
        found: dict[PartitionClaim, Start | DependencyUnavailable | DataLoss] = {}
        try:
            places = self._places(claims)
        except DependencyUnavailable as error:
            return dict.fromkeys(claims, error)
        # Begin with another one each time: a partition whose leader does not answer must not keep the others from being asked.
        self._passes += 1
        turn = self._passes % len(places)
        asked_s = time.monotonic()
        for claim, place in [*places.items()][turn:] + [*places.items()][:turn]:
            if time.monotonic() - asked_s > LOG_BOUNDS_S:
                break
            try:
                bounds = reader.log_bounds(claim.partition)
                warm_up = self._settings.steps.warm_up_records
                found[claim] = plan_start(place, bounds, version=self._version, warm_up_records=warm_up, distrusted=claims[claim])
            except (DependencyUnavailable, DataLoss) as error:
                found[claim] = error
        return found

    def _places(self, claims: Mapping[PartitionClaim, object]) -> dict[PartitionClaim, Place]:
        """Read all partitions' rows over one connection."""
        connection = connect(self._settings.database, "writer", application=self._name)
        try:
            ledger = Ledger(connection, self._settings.pipeline)
            found = {}
            for claim, position in ledger.positions(claims.keys()).items():
                snapshot = ledger.load_snapshot(claim) if self._version is not None else None
                found[claim] = Place(position.next_offset, snapshot, position.leader_epoch)
            return found
        finally:
            connection.close()


def plan_start(place: Place, log: tuple[int, int], *, version: str | None, warm_up_records: int, distrusted: int | None = None) -> Start:
    """Decide where a partition goes on.

    Args:
        log: first and next offset of the partition's log.
        version: configuration version of the detector's rules; None when they keep no state.
        warm_up_records: window before the ledger's position when there is no usable snapshot, in offsets.
        distrusted: position of a snapshot that the detector could not read.

    Raises:
        DataLoss: the log does not hold the ledger's position.
    """
    (low, high), next_offset, snapshot = log, place.next_offset, place.snapshot
    if next_offset < low:
        raise DataLoss(
            f"the ledger is at {next_offset}, the log holds {low}..{high}: "
            f"offsets {next_offset}..{low - 1} ({low - next_offset}) are gone, passed by retention or deleted"
        )
    if next_offset > high:
        raise DataLoss(
            f"the ledger is at {next_offset}, the log holds {low}..{high}: "
            f"{next_offset - high} offsets that were stored are not in the log, so it was truncated or made anew"
        )
    if version is None:
        return Start(next_offset, next_offset, None, "stateless", place.leader_epoch)
    if snapshot is None:
        state = "no_snapshot"
    elif snapshot.configuration_version != version:
        state = "snapshot_of_other_rules"
    elif snapshot.position > next_offset:
        state = "snapshot_beyond_ledger"  # written in one transaction with the ledger: somebody moved one of them by hand
    elif snapshot.position < low:
        state = "snapshot_before_log"
    elif snapshot.position == distrusted:
        state = "snapshot_unreadable"
    else:
        return Start(snapshot.position, next_offset, snapshot, "snapshot", place.leader_epoch)
    return Start(max(low, next_offset - warm_up_records), next_offset, None, state, place.leader_epoch)
