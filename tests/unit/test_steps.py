"""Steps in columns against a reference that looks at one reading after the other, whatever the batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.detect.steps import EMPTY, StepRule, StepState, UnreadableSnapshot
from rayapp.config import Settings, StepSettings, load_settings
from rayapp.errors import ConfigurationError

SECOND_US, DAY_US = 1_000_000, 86_400_000_000
SETTINGS = StepSettings(limits={"temperature_sensor": 2.0, "humidity_sensor": 10.0}, max_gap_s=30, forget_days=1)
RULE = StepRule(SETTINGS)

Row = tuple[str, str, int, float | None]

# Few times, so that readings meet: at the same time, a gap's length apart, a day and a little apart.
near = st.integers(0, 9).map(lambda n: n * 10 * SECOND_US)
far = st.builds(lambda days, s: days * DAY_US + s, st.integers(0, 2), near)
rows = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["temperature_sensor", "temperature_sensor", "humidity_sensor", "movement_sensor"]),
        near | far,
        st.none() | st.sampled_from([0.0, -0.0, 1.9, 2.0, 4.1, 12.0, 1.7e308, -1.7e308]),
    ),
    max_size=30,
)


class Reference:
    """The rule as one would tell it: reading by reading, with a dictionary."""

    def __init__(self) -> None:
        self.last: dict[str, tuple[int, float]] = {}
        self.newest_us: int | None = None

    def judge(self, row: Row) -> bool:
        """Return the verdict on one reading and remember it."""
        device, device_type, time_us, value = row
        limit = SETTINGS.limits.get(device_type)
        if limit is None or value is None:
            return False
        self.newest_us = time_us if self.newest_us is None else max(self.newest_us, time_us)
        oldest_us = self.newest_us - SETTINGS.forget_days * DAY_US
        self.last = {name: seen for name, seen in self.last.items() if seen[0] >= oldest_us}
        before = self.last.get(device)
        if time_us < oldest_us or (before is not None and time_us <= before[0]):
            return False
        self.last[device] = (time_us, value)
        return before is not None and time_us - before[0] <= SETTINGS.max_gap_s * SECOND_US and abs(value - before[1]) > limit


def table(listed: list[Row]) -> pa.Table:
    columns = list(zip(*listed, strict=True)) or [[], [], [], []]
    types = [pa.string(), pa.string(), pa.timestamp("us", "UTC"), pa.float64()]
    arrays = [pa.array(list(column), of) for column, of in zip(columns, types, strict=True)]
    return pa.table(arrays, names=["device_id", "device_type", "timestamp", "value"])


def in_batches(listed: list[Row], cuts: list[int], state: StepState = EMPTY) -> tuple[StepState, list[bool]]:
    """Return state and flags of rows that came in batches cut at some positions, the state written and read at each."""
    found: list[bool] = []
    edges = [0, *sorted(cut % (len(listed) + 1) for cut in cuts), len(listed)]
    for begin, end in zip(edges, edges[1:], strict=False):
        state, flags = RULE.judge(StepState.from_bytes(state.to_bytes()), table(listed[begin:end]))
        found += flags.tolist()
    return state, found


def remembered(state: StepState) -> dict[str, tuple[int, float]]:
    return dict(zip(state.device_id.to_pylist(), zip(state.last_us.tolist(), state.last_value.tolist(), strict=True), strict=True))


@given(rows, st.lists(st.integers(0, 40), max_size=6))
def test_columns_equal_the_reference_wherever_batches_are_cut(listed: list[Row], cuts: list[int]) -> None:
    """Flags and state of any batches are those of a look at one reading after the other."""
    reference = Reference()
    expected = [reference.judge(row) for row in listed]
    state, found = in_batches(listed, cuts)

    assert expected == found
    assert reference.last == remembered(state)
    assert sorted(reference.last) == state.device_id.to_pylist()


@given(rows)
def test_batches_of_one_reading_and_the_whole_end_in_the_same_bytes(listed: list[Row]) -> None:
    """The state is a function of the log: its bytes do not tell how the log was cut."""
    whole, flags = in_batches(listed, [])
    single, same = in_batches(listed, list(range(len(listed))))

    assert flags == same
    assert whole.to_bytes() == single.to_bytes()


@given(rows, st.data())
def test_readings_that_come_again_change_nothing(listed: list[Row], data: st.DataObject) -> None:
    """A reading sent twice, anywhere behind its first copy, gets no flag and changes neither state nor another's flag."""
    doubled = [(row, False) for row in listed]
    for _ in range(data.draw(st.integers(0, 5)) if listed else 0):
        at = data.draw(st.integers(0, len(doubled) - 1))
        doubled.insert(data.draw(st.integers(at + 1, len(doubled))), (doubled[at][0], True))
    state, flags = in_batches(listed, [])
    again, with_copies = in_batches([row for row, _ in doubled], data.draw(st.lists(st.integers(0, 40), max_size=4)))

    assert flags == [flag for flag, (_, copy) in zip(with_copies, doubled, strict=True) if not copy]
    assert not any(flag for flag, (_, copy) in zip(with_copies, doubled, strict=True) if copy)
    assert state.to_bytes() == again.to_bytes()


def one(*values: tuple[int, float | None], device_type: str = "temperature_sensor") -> list[bool]:
    """Return the flags of one device's readings, times in seconds."""
    return in_batches([("d", device_type, second * SECOND_US, value) for second, value in values], [])[1]


def test_a_jump_is_flagged_and_so_is_the_way_back() -> None:
    """Exactly the limit is no jump, a little more is; the value after a jump is compared with the jump."""
    assert [False, False, True, True, False] == one((0, 20.0), (1, 22.0), (2, 24.5), (3, 20.0), (4, 20.5))


def test_too_long_a_gap_is_not_compared() -> None:
    """Thirty seconds are compared, thirty-one are not."""
    assert [False, True, False] == one((0, 20.0), (30, 30.0), (61, 20.0))


def test_late_reading_is_not_compared_and_not_remembered() -> None:
    """A reading older than the last one gets no flag, and the next is compared with the last one."""
    assert [False, False, False] == one((10, 20.0), (5, 90.0), (11, 20.5))


def test_absent_values_and_types_without_a_limit_are_passed_over() -> None:
    """Null is no value to compare with; a type without a limit is never judged."""
    assert [False, False, True] == one((0, 20.0), (1, None), (2, 30.0))
    assert [False, False] == one((0, 20.0), (1, 90.0), device_type="movement_sensor")


def test_devices_not_seen_for_days_are_forgotten_and_the_state_stays_small() -> None:
    """A thousand devices a day for five days leave those of the last day; forgetting takes event time, not a clock."""
    state = EMPTY
    for day in range(5):
        listed = [(f"{day}-{n}", "temperature_sensor", day * (DAY_US + SECOND_US), 20.0) for n in range(1000)]
        state, _ = RULE.judge(state, table(listed))

    assert {f"4-{n}" for n in range(1000)} == set(state.device_id.to_pylist())


def test_another_value_at_the_same_time_is_not_compared() -> None:
    """The first reading of a time stays the device's last one, as it does in the table."""
    assert [False, False, False] == one((0, 20.0), (0, 90.0), (1, 20.5))


def test_forgotten_reading_is_not_compared_however_late_it_is_dropped() -> None:
    """Another device's newer time makes a reading too old to be compared, in the same batch as in the next."""
    day = DAY_US // SECOND_US
    listed = [("a", 0, 20.0), ("b", day + 10, 20.0), ("a", 20, 90.0)]
    rows_ = [(device, "temperature_sensor", second * SECOND_US, value) for device, second, value in listed]

    for cuts in ([], [1], [2], [1, 2]):
        assert [False, False, False] == in_batches(rows_, cuts)[1]


def test_state_of_many_devices_is_compact() -> None:
    """Ten thousand devices take far less than their plain columns."""
    names = [f"c6:8d:c6:{n // 256:02x}:{n % 256:02x}:a6_temperature" for n in range(10_000)]
    state, _ = RULE.judge(EMPTY, table([(name, "temperature_sensor", n * SECOND_US, 20.0) for n, name in enumerate(names)]))

    assert len(state.to_bytes()) < 200_000


@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 64, EMPTY.to_bytes()[:-40], EMPTY.to_bytes()[:100]])
def test_bytes_that_are_no_state_are_named(data: bytes) -> None:
    """A snapshot that cannot be read is an error with a name, so that consume can go on without it."""
    with pytest.raises(UnreadableSnapshot):
        StepState.from_bytes(data)


def test_judging_does_not_change_the_state_it_was_given() -> None:
    """A state may be kept as a snapshot while the partition goes on."""
    before, _ = RULE.judge(EMPTY, table([("a", "temperature_sensor", 0, 1.0)]))
    kept = replace(before, last_us=before.last_us.copy(), last_value=before.last_value.copy())
    RULE.judge(before, table([("a", "temperature_sensor", SECOND_US, 9.0), ("b", "temperature_sensor", SECOND_US, 9.0)]))

    assert kept.to_bytes() == before.to_bytes()


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_limits_must_be_positive_numbers(limit: float) -> None:
    """A limit that flags everything or nothing is refused by name."""
    with pytest.raises(ConfigurationError, match=r"steps\.limits"):
        load_settings(overrides={"steps": {"limits": {"temperature_sensor": limit}}})


def test_the_rule_is_off_by_default() -> None:
    """Without limits nothing is flagged, whatever jumps."""
    state, flags = StepRule(Settings().steps).judge(EMPTY, table([("a", "temperature_sensor", n, 100.0 * n) for n in range(5)]))

    assert (0, False) == (len(state.device_id), bool(np.any(flags)))


def test_chunked_columns_give_the_same_flags() -> None:
    """Columns of tables that were put together are judged as one."""
    listed: list[Row] = [("a", "temperature_sensor", n * SECOND_US, float(n % 3) * 3) for n in range(9)]
    chunked = pa.concat_tables([table(listed[:4]), table([]), table(listed[4:])])

    assert RULE.judge(EMPTY, table(listed))[1].tolist() == RULE.judge(EMPTY, chunked)[1].tolist()
