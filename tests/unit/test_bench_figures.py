"""Latency, the bill, and whether a run may be believed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rayapp.bench.figures import Measured, cpu_seconds, figures_of, invalid_because
from rayapp.bench.latency import Latency, LatencyFiles
from rayapp.bench.processes import Bill, Cost, Roots, Sampler, Seen, assign, growth_mb, read_processes
from rayapp.bench.session import Quiet
from rayapp.bench.verdict import Books, Verdict
from rayapp.bench.watch import View


def test_percentiles_are_values_that_occurred() -> None:
    latency = Latency.of(np.arange(1.0, 101.0))
    assert latency == Latency(100, 50.0, 95.0, 99.0, 100.0)


def test_unknown_latencies_are_not_counted() -> None:
    assert Latency.of(np.array([5.0, np.nan])) == Latency(1, 5.0, 5.0, 5.0, 5.0)
    assert Latency.of(np.array([np.nan])).count == 0


def test_latency_files_are_read_from_the_mark_and_in_whole_values(tmp_path: Path) -> None:
    file = tmp_path / "write-0.f32"
    file.write_bytes(np.array([1, 2], np.float32).tobytes())
    files = LatencyFiles(tmp_path)
    files.mark()
    with file.open("ab") as out:
        out.write(np.array([3, 4], np.float32).tobytes() + b"\x00\x00")
    (tmp_path / "write-1.f32").write_bytes(np.array([5], np.float32).tobytes())
    assert files.read().tolist() == [3.0, 4.0, 5.0]
    assert files.take().tolist() == [3.0, 4.0, 5.0]
    assert files.take().tolist() == []
    assert LatencyFiles(tmp_path / "none").read().tolist() == []


def test_a_process_belongs_to_its_nearest_named_ancestor() -> None:
    parents = {1: 0, 10: 1, 11: 10, 20: 11, 21: 20, 22: 21, 30: 1, 40: 20}
    seen = {pid: Seen(pid, parent, 0, 0.0, 0) for pid, parent in parents.items()}
    roots = Roots({11: "kafka", 20: "ray", 21: "write/0", 99: "gone"}, {10: "stack", 20: "stack"})
    assert assign(seen, roots) == {10: "stack", 11: "kafka", 20: "stack", 40: "ray", 21: "write/0", 22: "write/0"}


def test_a_circle_of_parents_ends() -> None:
    seen = {pid: Seen(pid, parent, 0, 0.0, 0) for pid, parent in {2: 3, 3: 2}.items()}
    assert assign(seen, Roots({1: "a"}, {})) == {}


def test_names_with_spaces_and_brackets_are_read(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = ["S", "1", *["0"] * 9, "150", "50", *["0"] * 6, "777", "0", "10"]
    (tmp_path / "7" / "stat").write_text(f"7 (a b) c)) {' '.join(fields)}\n")
    (tmp_path / "8").mkdir()
    seen = read_processes(tmp_path)[7]
    assert (seen.parent, seen.started, seen.cpu_s) == (1, 777, 2.0)
    assert seen.rss_bytes == 10 * 4096


def test_the_sampler_bills_this_very_process() -> None:
    with Sampler(lambda: Roots({os.getpid(): "me"}, {}), interval_s=0.05) as sampler:
        start = os.times()
        while sum(os.times()[:2]) - sum(start[:2]) < 0.3:
            pass
        bill = sampler.stop()
    assert 0.2 < bill.components["me"].cpu_s < 1.0
    assert bill.samples >= 3  # the busy loop above keeps the sampler from its turn
    assert 0 < bill.total_pss_mb <= bill.total_rss_mb * 1.05
    assert bill.components["me"].pss_mb == bill.total_pss_mb


def test_growth_compares_the_edges() -> None:
    times = [float(t) for t in range(60)]
    assert growth_mb(times, [100_000_000 + (5_000_000 if t > 30 else 0) for t in range(60)]) == 5.0
    assert growth_mb([0.0], [5]) == 0.0


BOOKS = Books(9, 9, 0, 0, {0: 9}, {0: (0, 9)}, 9, 0)
VERDICT = Verdict(
    sent=1, acked=1, unknown=0, readings_promised=9, readings_stored=9, lost=0, lost_messages=0, duplicates=0, foreign=0, mismatched=0,
    absorbed=0, anomalies_expected=0, anomalies=0, anomalies_wrong=0, dead_expected=0, dead_lettered=0, dead_missing=0, dead_wrong=0,
    dead_foreign=0, dead_copies=0, dead_by_reason={}, books=BOOKS,
)  # fmt: skip
NAMES = ("simulator", "mosquitto", "kafka", "registry", "postgres", "ray", "driver", "stack", "write/0")
LATENCY = Latency(9, 1.0, 2.0, 3.0, 4.0)
SUMMARY = {"late_p99_ms": 5.0, "slip_p99_ms": 6.0, "rate_actual": 99.5, "rate_target": 100.0, "cpu_s": 0.5}


def measured(**changes: object) -> Measured:
    bill = Bill(60.0, {name: Cost(1.0, 10.0, 0.1, 5.0) for name in NAMES}, 90.0, 50.0, 0, 61)
    return replace(Measured(SUMMARY, bill, 1_000_000, Quiet(quiet=True, reason="", seconds=2.0), LATENCY), **changes)


def reasons(run: Measured, verdict: Verdict = VERDICT, latency: Latency = LATENCY) -> list[str]:
    return invalid_because(60.0, run, verdict, latency, 9)


def test_a_sound_run_is_valid() -> None:
    assert reasons(measured()) == []


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (measured(summary=SUMMARY | {"late_p99_ms": 100.1}), "late_p99_ms"),
        (measured(summary=SUMMARY | {"slip_p99_ms": 100.1}), "slip_p99_ms"),
        (measured(summary=SUMMARY | {"rate_actual": 98.9}), "rate_actual"),
        (measured(quiet=Quiet(quiet=False, reason="lag 5", seconds=60.0)), "quiescent"),
        (measured(writer=Latency(8, 1, 1, 1, 1)), "writers recorded 8"),
        (measured(bill=replace(measured().bill, samples=40)), "samples"),
        (measured(bill=replace(measured().bill, components={n: Cost(1, 1, 0, 1) for n in NAMES[1:]})), "simulator"),
        (measured(bill=replace(measured().bill, components={n: Cost(1, 1, 0, 1) for n in NAMES[:-1]})), "actor"),
    ],
)
def test_each_unsound_run_is_invalid(run: Measured, word: str) -> None:
    found = reasons(run)
    assert len(found) == 1
    assert word in found[0]


def test_unknown_messages_and_missing_commit_times_are_invalid() -> None:
    assert "unknown" in reasons(measured(), replace(VERDICT, unknown=1))[0]
    assert "commit times of 8 of 9" in reasons(measured(), latency=replace(LATENCY, count=8))[0]


def test_the_last_line_has_every_promised_key() -> None:
    figures = figures_of(60.0, measured(), VERDICT, LATENCY, 9, [])
    wanted = [
        "rate_msgs_s",
        "readings_stored",
        "lost",
        "duplicates",
        "absorbed",
        "dead_lettered",
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "max_ms",
        "slip_p99_ms",
        "cpu_s_per_m",
        "rss_mb",
        "seconds",
        "valid",
        "invalid_because",
        "writer_p99_ms",
        "total_rss_mb",
        "total_pss_mb",
        "foreign",
        "mismatched",
        "anomalies",
    ]
    assert set(wanted) <= set(figures)
    assert figures["cpu_s_per_m"]["kafka"] == 1.0
    assert figures["cpu_s_per_m"]["simulator"] == 0.5
    assert cpu_seconds(measured().bill, SUMMARY)["simulator"] == 0.5


def test_a_view_is_caught_up_only_at_every_end() -> None:
    view = View("running", {}, None, 9, 9, 0, {0: 5, 1: 4}, {0: 5, 1: 4})
    assert view.caught_up
    assert not replace(view, next_offsets={0: 5}).caught_up
    assert replace(view, next_offsets={0: 5}).lag == 4
    assert not replace(view, ends={}).caught_up
