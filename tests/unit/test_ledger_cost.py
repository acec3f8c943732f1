"""What rounds of a cost measurement say, and when they say nothing."""

from __future__ import annotations

import pytest
from builders import PLACE

from actors.batch import READING_SCHEMA
from rayapp.bench.ledger_cost import Round, _tables, judge


def rounds(*percent: float) -> list[Round]:
    return [Round(8.0 * (1 + each / 100), 8.0) for each in percent]


def test_median_of_the_rounds_is_the_cost() -> None:
    """One round that something disturbed does not move the figure."""
    cost = judge(rounds(1.0, 1.2, 0.9, 40.0, 1.1, 0.8, 1.0))

    assert (True, "") == (cost.valid, cost.reason)
    assert 1.0 == pytest.approx(cost.percent)


@pytest.mark.parametrize("percent", [(1.0,) * 4, (1.0,), ()])
def test_few_rounds_say_nothing(percent: tuple[float, ...]) -> None:
    """However well they agree."""
    if percent:
        cost = judge(rounds(*percent))
        assert not cost.valid
        assert "at least 5" in cost.reason


def test_rounds_that_disagree_say_nothing() -> None:
    """A cheap median of scattered rounds is not good news, it is none."""
    cost = judge(rounds(-20.0, 15.0, 2.0, -12.0, 18.0, 1.0, 9.0))

    assert not cost.valid
    assert "uncertain by" in cost.reason


def test_batches_are_distinct_readings_that_continue_the_log() -> None:
    """No key comes twice in a block, offsets go on, and the columns are a batch's."""
    tables = list(_tables(PLACE, 3, 2_000))
    keys = [
        key for table in tables for key in zip(table["device_id"].to_pylist(), table["timestamp"].cast("int64").to_pylist(), strict=True)
    ]

    assert [READING_SCHEMA] * 3 == [table.schema for table in tables]
    assert 6_000 == len(set(keys))
    assert list(range(6_000)) == [offset for table in tables for offset in table["offset"].to_pylist()]
