"""PartitionFlow: batches tile the log without holes through every order of cut, commit, failure and restart."""

from __future__ import annotations

from bisect import bisect_left

from builders import claim
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from actors.adapters.kafka import Fetched
from actors.consume.dead_share import DeadShare
from actors.consume.flow import PartitionFlow, Stage

CREDIT = 100
SHARE = DeadShare(1.0, 10, 1)


class Flow(RuleBasedStateMachine):
    """A partition with gaps (transaction markers), a reader that may repeat records, and a shell that may fail anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = PartitionFlow(claim(), CREDIT, SHARE)
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
        self.flow.restart(start, start)

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
        if taken:  # leader epochs change every ten offsets; a fetch tells that of its last record
            taken = [offset for offset in taken if offset // 10 == taken[0] // 10]
            end = end if taken[-1] == offsets[-1] else None
        self.flow.add(Fetched(0, taken, [self.log[o] for o in taken], end, {}, taken[-1] // 10 if taken else None), self.now)

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
        assert under_way.warm == (under_way.before < self.flow.warm_until)
        assert not under_way.warm or under_way.after <= self.flow.warm_until
        if under_way.raw:
            assert under_way.leader_epoch == max(under_way.raw) // 10
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
        if first is not None and first.warm:
            self.flow.warmed()
            first = None
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
    @rule(back=st.just(0) | st.integers(0, 20))
    def restart(self, back: int) -> None:
        """Store from the ledger, detect from there or from further back."""
        position = max(self.first, self.ledger - back)
        self.flow.restart(position, self.ledger)
        self.last_after = position

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
    started = PartitionFlow(claim(), CREDIT, SHARE, **changes)  # type: ignore[arg-type]
    started.restart(0, 0)
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
    fresh = PartitionFlow(claim(), CREDIT, SHARE)
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


def warm_flow(position: int, next_offset: int) -> PartitionFlow:
    started = PartitionFlow(claim(), CREDIT, SHARE)
    started.restart(position, next_offset)
    return started


def test_no_batch_straddles_the_ledgers_position() -> None:
    """Records below the ledger are warm batches that end exactly there, whatever the fetch; they do not wait for the interval."""
    one = warm_flow(0, 3)
    one.add(Fetched(0, [0, 1, 2, 3, 4], [b"x"] * 5, None), 0.0)
    found = []
    assert one.due(0.0, interval_s=9.0, max_rows=9, draining=False)
    while one.due(0.0, interval_s=0.0, max_rows=2, draining=False):
        under_way = one.cut(0.0, 2)
        found.append((under_way.before, under_way.after, under_way.warm, under_way.snapshot_wanted))
        one.first = None

    assert [(0, 2, True, False), (2, 3, True, False), (3, 5, False, True)] == found
    one.add(Fetched(0, [5], [b"x"], None), 0.0)
    assert not one.due(0.0, interval_s=0.2, max_rows=2, draining=False)
    assert not one.cut(0.0, 2).snapshot_wanted


def test_warm_batch_ends_at_the_ledger_over_a_marker() -> None:
    """When markers lie before the ledger's position, or only markers do, the warm batch covers them."""
    gap = warm_flow(0, 4)
    gap.add(Fetched(0, [0, 7], [b"x"] * 2, None), 0.0)
    assert (0, 4) == (gap.cut(0.0, 9).before, gap.cut_position)
    gap.first = None
    assert (4, 8, [7]) == ((found := gap.cut(0.0, 9)).before, found.after, list(found.raw))

    end = warm_flow(0, 4)
    end.add(Fetched(0, [], [], 6), 0.0)
    assert (0, 4, True) == ((found := end.cut(0.0, 9)).before, found.after, found.warm)
    end.first = None
    assert (4, 6, False) == ((found := end.cut(0.0, 9)).before, found.after, found.warm)


def test_ids_of_replayed_letters_go_with_their_records() -> None:
    """A batch carries the ids of its own records and no others."""
    one = flow()
    one.add(Fetched(0, [0, 1, 2], [b"x"] * 3, None, {0: "a", 2: "c"}), 0.0)

    assert {0: "a"} == one.cut(0.0, 2).letter_ids
    one.first = None
    assert {2: "c"} == one.cut(0.0, 2).letter_ids
    assert {} == one.letter_ids


def test_leader_epoch_is_never_older_than_the_last_records() -> None:
    """Cut within a fetch, a batch carries the epoch that the fetch ended with; a log must not look truncated for it."""
    one = flow()
    one.add(Fetched(0, [0, 1], [b"x"] * 2, None, {}, 3), 0.0)
    one.add(Fetched(0, [2, 3], [b"x"] * 2, None, {}, 4), 0.0)
    epochs = []
    for _ in range(4):
        epochs.append(one.cut(0.0, 1).batch().leader_epoch)
        one.first = None

    assert [3, 3, 4, 4] == epochs


def test_dead_letters_are_counted_over_the_batches_under_way() -> None:
    """Rows that write rejects count in their own batch, and the batch behind it is judged with them."""
    one = PartitionFlow(claim(), CREDIT, DeadShare(0.5, 4, 4))
    one.restart(0, 0)
    one.add(Fetched(0, list(range(8)), [b"x"] * 8, None), 0.0)
    one.cut(0.0, 4).stage = Stage.READY
    writing = one.advance_to_write()
    assert writing is not None
    first = one.cut(0.0, 4)
    first.count_dead([4, 5])
    assert None is one.too_many_dead()
    writing.count_dead([3])
    found = one.too_many_dead()
    assert found is not None
    assert (first, 1) == (found[0], found[1].record)
    one.committed()
    assert (4, [3]) == (one.share.seen, one.share.dead.tolist())


def test_halted_flow_holds_nothing_and_takes_nothing() -> None:
    """A halted partition counts as recovering for good: nothing is buffered, cut or held."""
    one = flow()
    one.add(Fetched(0, [0], [b"x"], None), 0.0)
    one.cut(0.0, 1)
    one.halt()
    one.add(Fetched(0, [1], [b"x"], None), 0.0)

    assert (True, True, 0) == (one.halted, one.recovering, one.held_bytes)
