"""PartitionFlow: batches tile the log without holes through every order of cut, commit, failure and restart."""

from __future__ import annotations

from bisect import bisect_left

from builders import claim
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.adapters.kafka import Fetched
from actors.consume.flow import PartitionFlow, Stage

CREDIT = 100


class Flow(RuleBasedStateMachine):
    """A partition with gaps (transaction markers), a reader that may repeat records, and a shell that may fail anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = PartitionFlow(claim(), 0, 0, CREDIT)
        self.log: dict[int, bytes | None] = {}
        self.end = 0
        self.ledger = 0
        self.committed: list[tuple[int, int]] = []
        self.stored: list[int] = []
        self.last_after = 0
        self.now = 0.0

    @initialize(start=st.integers(0, 5))
    def begin(self, start: int) -> None:
        """Start where the ledger says."""
        self.end = self.ledger = self.last_after = start
        self.first = start
        self.flow.restart(start)

    @rule(sizes=st.lists(st.none() | st.integers(0, 30), max_size=4), gap=st.integers(0, 2))
    def append(self, sizes: list[int | None], gap: int) -> None:
        """Producers append records; a marker may follow."""
        for size in sizes:
            self.log[self.end] = None if size is None else b"x" * size
            self.end += 1
        self.end += gap

    @rule(back=st.integers(0, 3), count=st.integers(0, 6), at_end=st.booleans())
    def fetch(self, back: int, count: int, at_end: bool) -> None:
        """The reader brings records, perhaps some that are known, perhaps with the log's end."""
        offsets = sorted(self.log)
        begin = max(bisect_left(offsets, self.flow.position) - back, 0)
        taken = offsets[begin : begin + back + count]
        reached = not taken or taken[-1] == offsets[-1]
        end = self.end if at_end and reached and (not offsets or self.flow.position >= self.first) else None
        if end is not None and offsets and bisect_left(offsets, self.flow.position) < len(offsets) and not taken:
            end = None  # a reader never reports the end before the records in front of it
        self.now += 1.0
        self.flow.add(Fetched(0, taken, [self.log[o] for o in taken], end), self.now)

    @rule(max_rows=st.integers(1, 4))
    def cut(self, max_rows: int) -> None:
        """Cut when due; the batch begins where the last one ended and holds every record up to its end."""
        if not self.flow.due(self.now, interval_s=0.0, max_rows=max_rows, draining=False):
            return
        under_way = self.flow.cut(self.now, max_rows)

        assert self.last_after == under_way.before
        assert under_way.before < under_way.after
        assert [o for o in sorted(self.log) if under_way.before <= o < under_way.after] == list(under_way.raw)
        assert len(under_way.raw) <= max_rows
        self.last_after = under_way.after

    @rule(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=4), back=st.integers(0, 3), max_rows=st.integers(1, 4))
    def go_round(self, sizes: list[int | None], back: int, max_rows: int) -> None:
        """The usual case in one step: records arrive, some of them again, and a batch is cut and detected."""
        self.append(sizes, 0)
        self.fetch(back, len(sizes), at_end=False)
        self.cut(max_rows)
        if self.flow.first is not None:
            self.flow.first.stage = Stage.READY

    @precondition(lambda self: self.flow.first is not None)
    @rule(stage=st.sampled_from([Stage.DETECT, Stage.READY]))
    def progress(self, stage: Stage) -> None:
        """Detection takes its time."""
        assert self.flow.first is not None
        self.flow.first.stage = stage

    @rule()
    def hand_over(self) -> None:
        """A batch goes to write only when it is ready and nothing is there."""
        first = self.flow.first
        may_go = self.flow.writing is None and first is not None and first.stage is Stage.READY and not self.flow.recovering
        moved = self.flow.advance_to_write()

        assert may_go == (moved is not None)
        assert (first if may_go else None) is moved

    @precondition(lambda self: self.flow.writing is not None)
    @rule()
    def commit(self) -> None:
        """Write stores the batch: the ledger moves from its before to its after."""
        writing = self.flow.writing
        assert writing is not None
        assert self.ledger == writing.before
        self.ledger = writing.after
        self.stored.extend(writing.raw)
        held = self.flow.held_bytes
        self.flow.committed()

        assert held - writing.size_bytes == self.flow.held_bytes

    @rule(unknown_commit=st.booleans())
    def fail(self, unknown_commit: bool) -> None:
        """Something breaks; the commit under way may or may not have happened."""
        writing = self.flow.writing
        if writing is not None and unknown_commit:
            self.ledger = writing.after
            self.stored.extend(writing.raw)
        self.flow.fail()

        assert self.flow.held_bytes == 0
        assert not self.flow.due(self.now + 100, interval_s=0.0, max_rows=1, draining=True)

    @precondition(lambda self: self.flow.recovering)
    @rule()
    def restart(self) -> None:
        """Go on from the ledger."""
        self.flow.restart(self.ledger)
        self.last_after = self.ledger

    @invariant()
    def every_record_below_the_ledger_is_stored_once(self) -> None:
        """What was committed is the log up to the ledger, in order, nothing twice."""
        assert [o for o in sorted(self.log) if self.first <= o < self.ledger] == self.stored

    @invariant()
    def bytes_are_those_held(self) -> None:
        """Credit counts exactly the records that are buffered or under way."""
        held = [*self.flow.values, *(value for u in (self.flow.first, self.flow.writing) if u for value in u.raw.values())]

        assert sum(len(value) for value in held if value) == self.flow.held_bytes
        assert (self.flow.held_bytes > CREDIT) == self.flow.over_credit


TestFlow = Flow.TestCase
TestFlow.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def flow(**changes: object) -> PartitionFlow:
    started = PartitionFlow(claim(), 0, 0, CREDIT, **changes)  # type: ignore[arg-type]
    started.restart(0)
    return started


def test_records_that_come_again_are_ignored() -> None:
    """Records below the position, as a reader may bring them after a rewind, are not buffered a second time."""
    one = flow()
    one.add(Fetched(0, [0, 1], [b"a", b"b"], None), 0.0)
    one.cut(0.0, 9)
    one.add(Fetched(0, [0, 1, 2], [b"a", b"b", b"c"], None), 0.0)

    assert ([2], 3) == (one.offsets, one.held_bytes)


def test_second_batch_waits_while_one_is_in_write() -> None:
    """A batch that is ready stays before write until the one in write has committed."""
    one = flow()
    for offset in (0, 1):
        one.add(Fetched(0, [offset], [b"x"], None), 0.0)
        one.cut(0.0, 1).stage = Stage.READY
        moved = one.advance_to_write()
        assert (offset == 0) == (moved is not None)
    one.committed()
    waiting = one.first
    assert waiting is one.advance_to_write()


def test_nothing_is_taken_before_the_ledger_was_read() -> None:
    """A new flow is recovering: it buffers nothing and cuts nothing until restart()."""
    fresh = PartitionFlow(claim(), 0, 0, CREDIT)
    fresh.add(Fetched(0, [0], [b"x"], None), 0.0)

    assert (fresh.held_bytes, fresh.due(9.0, interval_s=0.0, max_rows=1, draining=True)) == (0, False)


def test_batch_is_due_by_age_by_rows_or_by_drain() -> None:
    """A batch waits for its interval unless it is full or the actor drains."""
    one = flow()
    one.add(Fetched(0, [0], [b"x"], None), 10.0)

    assert not one.due(10.1, interval_s=0.2, max_rows=2, draining=False)
    assert one.due(10.25, interval_s=0.2, max_rows=2, draining=False)
    assert one.due(10.0, interval_s=0.2, max_rows=1, draining=False)
    assert one.due(10.0, interval_s=0.2, max_rows=2, draining=True)


def test_trailing_marker_is_a_batch_without_records() -> None:
    """A log that ends in a transaction marker is followed to its end, else its lag would never be zero."""
    one = flow()
    one.add(Fetched(0, [0], [b"x"], None), 0.0)
    one.cut(0.0, 10)
    one.first = None
    one.add(Fetched(0, [], [], 2), 1.0)
    under_way = one.cut(1.0, 10)

    assert (under_way.before, under_way.after, under_way.raw) == (1, 2, {})


def test_credit_returns_at_half_so_that_it_does_not_flap() -> None:
    """Fetching stops above the credit and goes on only below half of it."""
    one = flow()
    one.add(Fetched(0, [0, 1], [b"x" * 51, b"x" * 50], None), 0.0)

    assert one.over_credit
    one.paused = True
    one.cut(0.0, 1)
    one.first = None
    assert not one.over_credit
    one.add(Fetched(0, [2], [b"x" * 20], None), 0.0)
    assert one.over_credit


def test_idle_means_nothing_is_left_to_do() -> None:
    """A flow with buffered records, a batch under way or a call without answer is not idle."""
    one = flow()

    assert one.idle
    one.outstanding = 1
    assert not one.idle
    one.outstanding = 0
    one.add(Fetched(0, [0], [b"x"], None), 0.0)
    assert not one.idle
    one.cut(0.0, 1)
    assert not one.idle
