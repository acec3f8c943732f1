"""DeadShare against a reference that counts the window anew at every record."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actors.consume.dead_share import DeadShare, Exceeded

shares = st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0])


def reference(records: list[bool], share: float, window: int, minimum: int) -> tuple[int, Exceeded] | None:
    """Return the first record at which too many of the last ones are dead, by counting."""
    for number in range(len(records)):
        last = records[max(0, number + 1 - window) : number + 1]
        if number + 1 >= minimum and sum(last) > share * len(last):
            return number, Exceeded(number, sum(last), len(last))
    return None


def numbers(records: list[bool]) -> np.ndarray:
    return np.flatnonzero(records).astype(np.int64)


@given(st.lists(st.booleans(), max_size=40), st.lists(st.integers(0, 40), max_size=5), shares, st.integers(1, 12), st.integers(1, 12))
def test_share_is_judged_at_every_record_wherever_batches_are_cut(
    records: list[bool], cuts: list[int], share: float, window: int, minimum: int
) -> None:
    """Any batches find the same first record that is one too many as a count at every record does."""
    known = DeadShare(share, window, minimum)
    found = None
    edges = [0, *sorted(cut % (len(records) + 1) for cut in cuts), len(records)]
    for begin, end in zip(edges, edges[1:], strict=False):
        part = records[begin:end]
        over = known.exceeded(len(part), numbers(part))
        if over is not None:
            found = begin + over.record, Exceeded(begin + over.record, over.dead, over.records)
            break
        known = known.after(len(part), numbers(part))

    assert reference(records, share, window, minimum) == found


def test_few_records_are_not_judged() -> None:
    """A partition that begins with bad records is given its minimum, then judged at once, although the last record was good."""
    known = DeadShare(0.5, 100, 10).after(6, numbers([True] * 6))

    assert None is known.exceeded(3, numbers([True] * 3))
    assert Exceeded(3, 6, 10) == known.exceeded(4, numbers([False] * 4))


def test_everything_the_next_window_needs_is_kept() -> None:
    """The oldest record that the next one's window holds counts, at whatever record a batch ended."""
    records = [False, True, False, True, True]
    for cut in range(1, 5):
        known = DeadShare(0.5, 4, 1).after(cut, numbers(records[:cut]))
        assert Exceeded(4 - cut, 3, 4) == known.exceeded(5 - cut, numbers(records[cut:]))


def test_old_dead_letters_are_forgotten() -> None:
    """What left the window neither counts nor is kept."""
    known = DeadShare(0.5, 10, 1).after(5, numbers([True] * 5)).after(1000, numbers([]))

    assert 0 == len(known.dead)
    assert None is known.exceeded(5, numbers([True] * 5))
    assert Exceeded(5, 6, 10) == known.exceeded(6, numbers([True] * 6))
