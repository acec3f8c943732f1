"""Detect: a batch continues where the partition's state stands, under the newest epoch, or is refused."""

from __future__ import annotations

import pytest
from builders import claim, reading, table

from actors.batch import DETECT_COLUMNS, Batch, DetectorSnapshot
from actors.detect import actor as module
from actors.detect.actor import Detect, OutOfStep, configuration_version
from rayapp.config import Settings, ThresholdSettings
from rayapp.errors import StaleClaim


@pytest.fixture
def detect() -> Detect:
    """A detector that stands at offset 0 of partition 0 under epoch 2."""
    made = Detect("detect/0#1", Settings())
    made.restore(claim(epoch=2), 0, None)
    return made


def batch(before: int, after: int, *, epoch: int = 2, partition: int = 0) -> Batch:
    rows = table([reading(offset, value=99.0 if offset % 2 else 20.0) for offset in range(before, after)])
    return Batch(claim(partition, epoch), rows.select(DETECT_COLUMNS), before, after, rows.num_rows)


def test_flags_come_one_a_row(detect: Detect) -> None:
    """Each row gets its flag, in the batch's order, and the next batch continues."""
    assert detect.detect(batch(0, 3)).anomalies.tolist() == [False, True, False]
    assert detect.detect(batch(3, 4)).anomalies.tolist() == [True]
    assert detect.detect(batch(4, 4)).anomalies.tolist() == []


@pytest.mark.parametrize("wrong", [batch(1, 2), batch(0, 1, epoch=3), batch(0, 1, partition=1)])
def test_batch_that_does_not_continue_is_out_of_step(detect: Detect, wrong: Batch) -> None:
    """Another position, an epoch nobody restored or an unknown partition is refused, and the state stays."""
    with pytest.raises(OutOfStep):
        detect.detect(wrong)
    assert detect.detect(batch(0, 1)).anomalies.tolist() == [False]


def test_same_batch_again_is_out_of_step(detect: Detect) -> None:
    """A batch that was detected once is not counted into the state twice."""
    detect.detect(batch(0, 2))
    with pytest.raises(OutOfStep):
        detect.detect(batch(0, 2))


def test_lower_epoch_is_refused(detect: Detect) -> None:
    """A consume actor that lost its partition cannot move or reset the detector's state."""
    with pytest.raises(StaleClaim):
        detect.detect(batch(0, 1, epoch=1))
    with pytest.raises(StaleClaim):
        detect.restore(claim(epoch=1), 7, None)
    assert detect.detect(batch(0, 1)).anomalies.tolist() == [False]


def test_snapshot_is_of_the_position_after(detect: Detect) -> None:
    """While draining, every answer carries a snapshot of exactly the batch's end."""
    snapshot = detect.detect(batch(0, 3), drain=True).snapshot

    assert DetectorSnapshot(2, 3, configuration_version(ThresholdSettings()), b"{}") == snapshot


def test_snapshots_come_now_and_then(detect: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a drain a snapshot comes only when ten seconds have passed."""
    assert None is detect.detect(batch(0, 1)).snapshot
    later = module.time.monotonic() + module.SNAPSHOT_EVERY_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)

    assert None is not detect.detect(batch(1, 2)).snapshot
    assert None is detect.detect(batch(2, 3)).snapshot


def test_configuration_version_follows_the_rules() -> None:
    """Other limits are another version, the same limits the same."""
    assert configuration_version(ThresholdSettings()) == configuration_version(ThresholdSettings(temperature_high=50))
    assert configuration_version(ThresholdSettings()) != configuration_version(ThresholdSettings(temperature_high=51))
