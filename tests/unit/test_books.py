"""The ledger's equation: what breaks it is named, and only what is new is an alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rayapp.books import Ledger, PartitionBooks, news

ROW = PartitionBooks(
    partition=0, epoch=3, owner="consume/0#1", next_offset=110, counted_from=10, records=100, stored=90, duplicate=7, other_gateway=1,
    dead=3, end=125, halted=None,
)  # fmt: skip


def ledger(*rows: PartitionBooks, at_s: float = 10.0) -> Ledger:
    return Ledger(at_s, {row.partition: row for row in rows})


def test_everything_received_is_stored_absorbed_dead_or_in_flight() -> None:
    """Kafka's 115 records from where counting began are the 100 counted ones and 15 in flight."""
    assert [] == ROW.problems
    assert (15, 0) == (ROW.in_flight, ROW.offsets_without_record)
    assert 125 - 10 == ROW.stored + ROW.duplicate + ROW.dead + ROW.in_flight


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (replace(ROW, stored=91), "100 records != 91 stored"),
        (replace(ROW, records=101, stored=91), "counted twice"),
        (replace(ROW, end=109), "beyond the log's end"),
    ],
)
def test_a_broken_equation_is_named(broken: PartitionBooks, words: str) -> None:
    """Each way in which the books can be wrong has its sentence."""
    assert any(words in problem for problem in broken.problems)
    assert [("ledger_does_not_add_up", 0)] == [(event, partition) for event, partition, _ in news(ledger(ROW), ledger(broken))]


def test_an_alarm_is_raised_once() -> None:
    """What was wrong at the look before is no news."""
    broken = replace(ROW, stored=91)
    assert [] == news(ledger(broken), ledger(broken))


def test_offsets_without_records_are_told_when_they_grow() -> None:
    """Markers of a foreign transaction, or lost records, show up as soon as the ledger has passed them."""
    later = replace(ROW, next_offset=115, records=103, stored=93)
    ((event, _, words),) = news(ledger(ROW), ledger(later))
    assert ("offsets_without_record", True) == (event, words.startswith("2 more"))
    assert [] == news(ledger(later), ledger(later))


def test_a_halt_and_its_end_are_told() -> None:
    """A halted partition is an alarm, a resumed one is told with its position."""
    halted = replace(ROW, halted="too many dead")
    assert [("partition_halted", 0, "too many dead")] == news(ledger(ROW), ledger(halted))
    assert [("partition_resumed", 0, "goes on at 110")] == news(ledger(halted), ledger(ROW))


def test_a_partition_is_resumed_only_by_a_look_made_after_it_halted() -> None:
    """A look that began before the halt shows it as going on; that is no resumption."""
    assert [] == ledger(ROW, at_s=10.0).resumed({0: 10.0})
    assert [0] == ledger(ROW, at_s=10.1).resumed({0: 10.0})
    assert [] == ledger(replace(ROW, halted="still"), at_s=11.0).resumed({0: 10.0})
    assert [] == ledger(ROW, at_s=11.0).resumed({5: 10.0})


def test_unknown_end_is_nothing_in_flight() -> None:
    """While Kafka does not answer, nothing is claimed about what it holds."""
    assert 0 == replace(ROW, end=None).in_flight
