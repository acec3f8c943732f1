"""The detect actor: flags anomalies in batches; a partition sticks to one detector.

The detector owns the state of its partitions, keyed (partition, epoch,
position, configuration version). A batch must continue exactly where the state
stands; the state's snapshot goes back with the flags and is stored by write in
the batch's own transaction. Today's rules are stateless thresholds, so the
state is the position alone; what comes later (rates of change, stuck sensors,
episodes) adds to PartitionState and to nothing else.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

from actors.base import Actor, Report
from actors.batch import Batch, DetectorSnapshot, Flags, PartitionClaim
from actors.detect.thresholds import Thresholds
from rayapp.config import Settings, ThresholdSettings
from rayapp.errors import RayappError, StaleClaim
from rayapp.log import Events

SNAPSHOT_EVERY_S = 10.0

_events = Events(__name__)


class OutOfStep(RayappError):
    """A batch does not continue where the partition's state stands; consume restores the state and goes on."""


@dataclass
class PartitionState:
    """What the detector remembers of one partition."""

    epoch: int
    position: int
    snapshot_due_s: float


def configuration_version(settings: ThresholdSettings) -> str:
    """Return a short name of the rules; state made under other rules is not restored."""
    return hashlib.sha256(json.dumps(settings.model_dump(), sort_keys=True).encode()).hexdigest()[:12]


class Detect(Actor):
    """One detector slot."""

    role = "detect"

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name)
        self._thresholds = Thresholds(settings.thresholds)
        self._version = configuration_version(settings.thresholds)
        self._states: dict[tuple[str, int], PartitionState] = {}

    def run(self) -> Report:
        """Watch over the slot until drain(); the work comes by calls."""
        return self.wait_for_drain()

    def restore(self, claim: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> None:
        """Set a partition's state to `position` under a claim; called by consume before its first batch and after a rewind.

        Raises:
            StaleClaim: a higher epoch is already here.
        """
        self._refuse_older(claim)
        usable = snapshot is not None and snapshot.configuration_version == self._version and snapshot.position == position
        self._states[claim.topic, claim.partition] = PartitionState(claim.epoch, position, time.monotonic() + SNAPSHOT_EVERY_S)
        _events.info("detector_restored", partition=claim.partition, epoch=claim.epoch, position=position, from_snapshot=usable)

    def detect(self, batch: Batch, drain: bool = False) -> Flags:
        """Return one flag a row and, when due or draining, the snapshot of exactly `batch.after`.

        Raises:
            StaleClaim: the batch is of a lower epoch.
            OutOfStep: the batch does not continue the state.
        """
        self.tick()
        claim = batch.claim
        self._refuse_older(claim)
        state = self._states.get((claim.topic, claim.partition))
        if state is None or state.epoch != claim.epoch or state.position != batch.before:
            raise OutOfStep(f"{claim.topic}[{claim.partition}]: batch begins at {batch.before}, state stands at {state}; restore and go on")
        anomalies = self._thresholds.anomalies(batch.table["device_type"], batch.table["value"])
        state.position = batch.after
        self.counters["rows_total"] += batch.table.num_rows
        self.gauges["partitions"] = len(self._states)
        snapshot = None
        now = time.monotonic()
        if drain or now >= state.snapshot_due_s:
            state.snapshot_due_s = now + SNAPSHOT_EVERY_S
            snapshot = DetectorSnapshot(claim.epoch, batch.after, self._version, b"{}")
        return Flags(anomalies.to_numpy(), snapshot)

    def _refuse_older(self, claim: PartitionClaim) -> None:
        state = self._states.get((claim.topic, claim.partition))
        if state is not None and claim.epoch < state.epoch:
            raise StaleClaim(f"{claim.topic}[{claim.partition}]: epoch {claim.epoch} is older than {state.epoch}; batch refused")
