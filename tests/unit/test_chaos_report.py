"""When a chaos run is broken, when it proves nothing, and what its last line says."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from rayapp.bench.verdict import Books, Verdict
from rayapp.chaos.plan import KINDS, Unit, units_of
from rayapp.chaos.recovery import Done, Recovery
from rayapp.chaos.report import ChaosRun, line_of, print_run

GOOD = Recovery(2.0, 2.0, 2.0, 3_000.0, recovered=True)


def verdict(**changes: Any) -> Verdict:
    """Return what the judge says of a run with nothing wrong."""
    numbers = dict.fromkeys(Verdict.__dataclass_fields__, 0)
    books = Books(9, 9, 0, 0, {0: 9}, {0: (0, 9)}, 9, 0)
    plain = {"dead_by_reason": {}, "books": books, "examples": {}, "run_of_row": None}
    return Verdict(**{**numbers, **plain, "sent": 1, "acked": 1, "absorbed": 5, **changes})


def done(kind: str = "actor_kill", target: str = "write/0", **changes: Any) -> Done:
    return replace(Done(kind, target, KINDS[kind].group, 1_020.0, 1_021.0, hit="9 in Kafka"), **changes)


def run(*faults: Done, costs: list[Recovery] | None = None, **changes: Any) -> ChaosRun:
    given = faults or (done(),)
    fields: dict[str, Any] = {
        "seed": 7, "kinds": ["actor_kill"], "required": {Unit("actor_kill", "write")}, "faults": given,
        "recoveries": costs or [GOOD] * len(given), "p99_ms": {1_001: 300.0}, "traffic_s": (1_000.0, 1_060.0), "baseline_ms": 300.0,
        "summary": {"late_p99_ms": 1.0, "replayed": 4}, "verdict": verdict(), "reader_rows": 9, "reader_checks": 9, "vanished": [],
        "reader_failure": "", "quiet": True,
    }  # fmt: skip
    return ChaosRun(**{**fields, **changes})


def test_a_good_run_is_ok_and_says_what_it_did_not_cover() -> None:
    """Roles that were not killed are listed, and do not make a short run invalid."""
    figures = run().figures()
    assert figures["ok"] is True
    assert figures["not_covered"] == ["actor_kill of consume", "actor_kill of detect", "actor_kill of ingest"]
    assert (figures["faults"], figures["faults_by_kind"], figures["max_recovery_s"]) == (1, {"actor_kill": 1}, 2.0)
    json.loads(json.dumps(figures, allow_nan=False))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"required": units_of(["actor_kill"])}, "did not occur: actor_kill of consume, actor_kill of detect, actor_kill of ingest"),
        ({"faults": [done(), done("cut", "mqtt", hit="")], "recoveries": [GOOD, GOOD]}, "cut of mqtt met no work"),
        ({"faults": [done(), done("cut", "mqtt", error="NotDone: none")], "recoveries": [GOOD, GOOD]}, "cut of mqtt was not done"),
        ({"faults": [], "recoveries": []}, "there was no fault"),
        ({"verdict": verdict(absorbed=0)}, "nothing was absorbed"),
        ({"faults": [done(), done("mqtt_kill", "mqtt")], "recoveries": [GOOD, GOOD], "summary": {"late_p99_ms": 1.0, "replayed": 0}}, "replayed"),
        ({"summary": {"late_p99_ms": 150.0}}, "generator itself was late"),
        ({"reader_checks": 0}, "the reader saw nothing"),
        ({"reader_failure": "it ended: KeyError"}, "the reader did not see the end"),
        ({"quiet": False}, "still under way"),
    ],
)  # fmt: skip
def test_a_run_that_proves_nothing_is_invalid_and_says_why(changes: dict[str, Any], said: str) -> None:
    """Each reason by itself is enough."""
    found = run(**changes)
    assert any(said in words for words in found.invalid()), found.invalid()
    figures = found.figures()
    assert (figures["ok"], figures["valid"], figures["problems"]) == (False, False, [])


def test_a_unit_whose_only_fault_met_no_work_does_not_count_as_covered() -> None:
    """Kills of an idle role prove nothing about that role."""
    found = run(done(hit=""))
    assert found.covered == set()
    assert any("did not occur: actor_kill of write" in words for words in found.invalid())


@pytest.mark.parametrize("changes", [{"verdict": verdict(lost=1)}, {"verdict": verdict(duplicates=1)}, {"vanished": ["a at 1"]}])
def test_a_broken_promise_is_a_problem_and_no_invalidity(changes: dict[str, Any]) -> None:
    """Lost, doubled or vanished readings break the run, however valid it was."""
    figures = run(**changes).figures()
    assert len(figures["problems"]) == 1
    assert (figures["valid"], figures["ok"]) == (True, False)


def test_a_recovery_beyond_its_goal_is_slow_and_one_cut_short_counts_as_a_lower_bound() -> None:
    """Unrecovered faults are in the worst times and have a list of their own."""
    faults = [done(), done("kafka_kill", "kafka-1"), done("driver_kill", "driver"), done("delay", "mqtt")]
    costs = [
        replace(GOOD, seconds=6.0),
        replace(GOOD, seconds=12.5, recovered=False),
        replace(GOOD, seconds=9.0),
        replace(GOOD, seconds=40.0, since_begin_s=44.0),
    ]
    figures = run(*faults, costs=costs).figures()
    assert figures["slow"] == ["actor_kill of write/0: 6.0 s, goal 5 s", "kafka_kill of kafka-1: more than 12.5 s, goal 10 s"]
    assert figures["unrecovered"] == ["kafka_kill of kafka-1: more than 12.5 s"]
    assert figures["max_recovery_s"] == 40.0
    assert figures["recovery_s"] == {"actor": 6.0, "driver": 9.0, "driver_since_submitted": 2.0, "kafka": 12.5, "network": 40.0}
    assert figures["recovery_since_begin_s"] == {"actor": 2.0, "driver": 2.0, "kafka": 2.0, "network": 44.0}


def test_everything_wrong_is_printed() -> None:
    """The timeline has a row a fault; problems, reasons and open ends follow."""
    out = io.StringIO()
    found = run(
        done(), done("cut", "mqtt", hit=""), costs=[GOOD, replace(GOOD, recovered=False, worst_ms=float("inf"), late_before=True)],
        verdict=verdict(lost=3), baseline_ms=float("inf"),
    )  # fmt: skip
    print_run(Console(file=out, width=200), found)
    text = out.getvalue()
    for words in ("write/0", "BROKEN", "INVALID", "open end", "not before the next", "late before", "nothing", "not done"):
        assert words in text
    assert found.figures()["baseline_p99_ms"] is None


def test_a_line_of_progress_says_what_was_hit_or_why_not() -> None:
    """Hit, nothing in flight, not done."""
    assert line_of(done(), 1_000.0) == "   20.0 s  actor_kill write/0 for 1.0 s  (9 in Kafka)"
    assert line_of(done(hit=""), 1_000.0).endswith("(nothing in flight)")
    assert line_of(done(error="NotDone: gone"), 1_000.0).endswith("NOT DONE: NotDone: gone")
