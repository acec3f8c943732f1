"""assign(): every partition has one slot, slots are even, and nothing moves without need."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayapp.plan.assign import assign

partition_sets = st.sets(st.integers(0, 60), max_size=40).map(sorted)
slot_sets = st.sets(st.integers(0, 12), min_size=1, max_size=8).map(sorted)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[int], list[int], dict[int, int]]:
    """Partitions, slots, and where the partitions are now: on some of the slots, unevenly, on slots that are gone, or nowhere."""
    partitions, slots = draw(partition_sets), draw(slot_sets)
    places = st.sampled_from([*slots[: draw(st.integers(1, len(slots)))], 99, None])
    current = {partition: draw(places) for partition in partitions}
    return partitions, slots, {partition: slot for partition, slot in current.items() if slot is not None}


def fewest_moves(partitions: list[int], slots: list[int], current: dict[int, int]) -> int:
    """Return the least number of partitions that any even assignment has to move."""
    share, extra = divmod(len(partitions), len(slots))
    held = sorted((sum(current.get(p) == slot for p in partitions) for slot in slots), reverse=True)
    return len(partitions) - sum(min(count, share + (1 if rank < extra else 0)) for rank, count in enumerate(held))


@given(situations())
@example(([0, 1, 2, 3], [0, 1, 2], {0: 0, 1: 0, 2: 1, 3: 1}))
def test_assignment_is_complete_even_and_moves_least(situation: tuple[list[int], list[int], dict[int, int]]) -> None:
    """From any earlier state: one slot each, counts within one, and no even assignment would move fewer."""
    partitions, slots, current = situation
    found = assign(partitions, slots, current)
    counts = Counter(found.values())

    assert partitions == sorted(found)
    assert set(found.values()) <= set(slots)
    assert not partitions or max(counts.values()) - min(counts[slot] for slot in slots) <= 1
    assert fewest_moves(partitions, slots, current) == sum(current.get(p) != slot for p, slot in found.items())


@given(situations())
def test_nothing_moves_when_nothing_changed(situation: tuple[list[int], list[int], dict[int, int]]) -> None:
    """An assignment fed back in comes out the same."""
    partitions, slots, current = situation
    found = assign(partitions, slots, current)

    assert found == assign(partitions, slots, found)


@given(partition_sets, slot_sets, st.integers(0, 12))
def test_a_slot_more_or_less_moves_only_its_share(partitions: list[int], slots: list[int], changed: int) -> None:
    """Adding a slot moves only what it gets; removing it again moves only what it held."""
    fewer = [slot for slot in slots if slot != changed] or [changed + 1]
    more = sorted({*fewer, changed})
    before = assign(partitions, fewer, {})
    added = assign(partitions, more, before)
    removed = assign(partitions, fewer, added)

    assert all(added[p] == changed for p in partitions if added[p] != before[p])
    assert all(added[p] == changed for p in partitions if removed[p] != added[p])


def test_order_of_input_does_not_matter() -> None:
    """The same partitions and slots in any order give the same assignment."""
    assert assign([0, 1, 2, 3, 4], [1, 0], {}) == assign([4, 2, 0, 1, 3], [0, 1], {})


def test_no_slot_is_an_error() -> None:
    """Without a slot there is no assignment."""
    with pytest.raises(ValueError, match="at least one slot"):
        assign([0], [], {})
