"""Detect: a batch continues where the partition's state stands, under the newest epoch, or is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import claim, reading, table

from actors.batch import DETECT_COLUMNS, Batch, DetectorSnapshot
from actors.detect import actor as module
from actors.detect.actor import Detect, OutOfStep, configuration_version
from actors.detect.steps import UnreadableSnapshot
from rayapp.config import Settings
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

    assert DetectorSnapshot(2, 3, configuration_version(Settings()), b"") == snapshot


def test_snapshots_come_now_and_then(detect: Detect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a drain a snapshot comes only when ten seconds have passed."""
    assert None is detect.detect(batch(0, 1)).snapshot
    later = module.time.monotonic() + module.SNAPSHOT_EVERY_S + 1
    monkeypatch.setattr(module.time, "monotonic", lambda: later)

    assert None is not detect.detect(batch(1, 2)).snapshot
    assert None is detect.detect(batch(2, 3)).snapshot


def test_configuration_version_follows_the_rules() -> None:
    """Other limits are another version, the same limits the same."""
    assert configuration_version(Settings()) == configuration_version(Settings(thresholds={"temperature_high": 50}))
    assert configuration_version(Settings()) != configuration_version(Settings(thresholds={"temperature_high": 51}))


STEPS = {"limits": {"temperature_sensor": 5.0}}


def jump(before: int, values: list[float], *, epoch: int = 2) -> Batch:
    """Return a batch of one device's readings, one a second."""
    rows = table([reading(before + n, value=value) for n, value in enumerate(values)])
    return Batch(claim(0, epoch), rows.select(DETECT_COLUMNS), before, before + len(values), rows.num_rows)


def stepping(**changes: object) -> Detect:
    return Detect("detect/0#1", Settings(steps={**STEPS, **changes}))  # type: ignore[arg-type]


def test_steps_and_thresholds_flag_together() -> None:
    """A reading is an anomaly for its value or for its jump; off by default, the jump alone is none."""
    for made, flags in ((stepping(), [False, True, True, True]), (Detect("detect/0#1", Settings()), [False, True, False, False])):
        made.restore(claim(epoch=2), 0, None)
        assert flags == made.detect(jump(0, [20.0, 99.0, 40.0, 30.0])).anomalies.tolist()


def test_snapshot_carries_the_state_to_another_detector() -> None:
    """Restored from a snapshot at its position, a new detector goes on as the old one would have; restored empty, it does not know."""
    first = stepping()
    first.restore(claim(epoch=2), 0, None)
    snapshot = first.detect(jump(0, [20.0]), drain=True).snapshot
    assert snapshot is not None
    for given, flags in ((snapshot, [True]), (None, [False])):
        second = stepping()
        second.restore(claim(epoch=3), 1, given)
        assert flags == second.detect(jump(1, [30.0], epoch=3)).anomalies.tolist()


def test_rewind_forgets_what_was_seen_beyond_it() -> None:
    """After a restore at an earlier position the same batch gets the same flags as before."""
    made = stepping()
    made.restore(claim(epoch=2), 0, None)
    snapshot = made.detect(jump(0, [20.0]), drain=True).snapshot
    seen = made.detect(jump(1, [30.0, 20.0])).anomalies.tolist()
    made.restore(claim(epoch=2), 1, snapshot)

    assert [True, True] == seen == made.detect(jump(1, [30.0, 20.0])).anomalies.tolist()


def test_snapshot_of_other_rules_position_or_bytes_is_refused() -> None:
    """A state that is not exactly what is wanted is never gone on from, and the refusal leaves the state as it is."""
    made = stepping()
    made.restore(claim(epoch=2), 0, None)
    good = made.detect(jump(0, [20.0]), drain=True).snapshot
    assert good is not None
    for wrong, position in ((replace(good, configuration_version="other"), 1), (good, 2), (replace(good, state=b"{}"), 1)):
        with pytest.raises(UnreadableSnapshot):
            made.restore(claim(epoch=2), position, wrong)
    assert [True] == made.detect(jump(1, [30.0])).anomalies.tolist()


def test_configuration_version_follows_the_steps_but_not_the_window_before_them() -> None:
    """Another limit, gap or memory is another version; how much is read again without a snapshot is not a rule."""
    versions = [configuration_version(Settings(steps=steps)) for steps in (  # type: ignore[arg-type]
        {}, STEPS, {**STEPS, "max_gap_s": 5}, {**STEPS, "forget_days": 1}, {"limits": {"temperature_sensor": 6.0}})]  # fmt: skip

    assert len(versions) == len(set(versions))
    assert versions[1] == configuration_version(Settings(steps={**STEPS, "warm_up_records": 1}))  # type: ignore[arg-type]
