"""The detect actor: flags anomalies in batches; a partition sticks to one detector.

The detector owns the state of its partitions, keyed (partition, epoch,
position, configuration version). A batch must continue exactly where the state
stands; the state's snapshot goes back with the flags and is stored by write in
the batch's own transaction. After a loss consume restores the last snapshot and
sends what came behind it again: the state is a function of the log, so the
flags are those that a detector without the loss would have given.

Thresholds look at a reading alone. Steps remember each device's last reading:
they are the state. What comes later (stuck sensors, episodes) adds to
PartitionState and to its bytes, and raises FORMAT.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass

from actors.base import Actor, Report
from actors.batch import Batch, DetectorSnapshot, Flags, PartitionClaim
from actors.detect.steps import EMPTY, FORMAT, StepRule, StepState, UnreadableSnapshot
from actors.detect.thresholds import Thresholds
from rayapp.config import Settings
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
    steps: StepState


def configuration_version(settings: Settings) -> str:
    """Return a short name of the rules and of the state's format; state made under others is not restored."""
    rules = {
        "format": FORMAT,
        "thresholds": settings.thresholds.model_dump(),
        "steps": settings.steps.model_dump(exclude={"warm_up_records"}),
    }
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]


class Detect(Actor):
    """One detector slot."""

    role = "detect"

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name)
        self._thresholds = Thresholds(settings.thresholds)
        self._steps = StepRule(settings.steps) if settings.steps.limits else None
        self._version = configuration_version(settings)
        self._states: dict[tuple[str, int], PartitionState] = {}

    def run(self) -> Report:
        """Watch over the slot until drain(); the work comes by calls."""
        return self.wait_for_drain()

    def restore(self, claim: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> None:
        """Set a partition's state to `position` under a claim; called by consume before its first batch and after a rewind.

        Args:
            snapshot: the state of exactly `position` under these rules; None begins with nothing remembered.

        Raises:
            StaleClaim: a higher epoch is already here.
            UnreadableSnapshot: of other rules, of another position, or no state at all; nothing was changed.
        """
        self._refuse_older(claim)
        steps = EMPTY
        if snapshot is not None:
            if (snapshot.configuration_version, snapshot.position) != (self._version, position):
                raise UnreadableSnapshot(
                    f"{claim.topic}[{claim.partition}]: snapshot of rules {snapshot.configuration_version} at {snapshot.position}, "
                    f"wanted {self._version} at {position}"
                )
            steps = StepState.from_bytes(snapshot.state) if self._steps is not None else EMPTY
        self._states[claim.topic, claim.partition] = PartitionState(claim.epoch, position, time.monotonic() + SNAPSHOT_EVERY_S, steps)
        _events.info(
            "detector_restored",
            partition=claim.partition, epoch=claim.epoch, position=position, from_snapshot=snapshot is not None, devices=len(steps.last_us),
        )  # fmt: skip

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
            stands = None if state is None else (state.epoch, state.position)
            raise OutOfStep(
                f"{claim.topic}[{claim.partition}]: batch begins at {batch.before}, state stands at {stands}; restore and go on"
            )
        anomalies = self._thresholds.anomalies(batch.table["device_type"], batch.table["value"]).to_numpy()
        steps = state.steps
        if self._steps is not None:
            steps, jumped = self._steps.judge(steps, batch.table)
            anomalies = anomalies | jumped
        state.position, state.steps = batch.after, steps
        self.counters["rows_total"] += batch.table.num_rows
        self.gauges["partitions"] = len(self._states)
        snapshot = None
        now = time.monotonic()
        if drain or now >= state.snapshot_due_s:
            state.snapshot_due_s = now + SNAPSHOT_EVERY_S
            snapshot = DetectorSnapshot(claim.epoch, batch.after, self._version, steps.to_bytes() if self._steps is not None else b"")
        return Flags(anomalies, snapshot)

    def _refuse_older(self, claim: PartitionClaim) -> None:
        state = self._states.get((claim.topic, claim.partition))
        if state is not None and claim.epoch < state.epoch:
            raise StaleClaim(f"{claim.topic}[{claim.partition}]: epoch {claim.epoch} is older than {state.epoch}; batch refused")
