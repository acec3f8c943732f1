"""What a chaos run did and cost: a timeline for people, one JSON object for programs.

Three questions with an answer each: were promises broken (`problems`), does the
run prove what it claims (`invalid`), was it quick enough (`slow`). What the run
was too short to cover is listed, and makes it invalid only where it was long
enough or where it was asked for by name.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rayapp.bench.report import say
from rayapp.bench.verdict import Verdict
from rayapp.chaos.plan import Unit, units_of
from rayapp.chaos.recovery import Done, Recovery, sparkline, worst_by_group, worst_since_begin

GOALS_S = {"actor": 5.0, "driver": 10.0, "kafka": 10.0, "database": 10.0}
LATE_LIMIT_MS = 100.0


@dataclass(frozen=True)
class ChaosRun:
    """Everything a run found.

    Attributes:
        kinds: that the machine can do and the caller wanted; what of them was not covered is listed.
        required: what must have occurred, or the run is invalid.
        summary: the simulator's.
        vanished: what the reader saw and then saw no more.
        reader_failure: why the reader could not read to the end.
        p99_ms: epoch second -> p99 of what was due in it.
        traffic_s: when the traffic began and ended.
        baseline_ms: p99 just before the first fault.
        quiet: False when something was still under way when the judge was called.
        troubles: what went wrong that no fault is expected to do.
    """

    seed: int
    kinds: Collection[str]
    required: Collection[Unit]
    faults: Sequence[Done]
    recoveries: Sequence[Recovery]
    p99_ms: dict[int, float]
    traffic_s: tuple[float, float]
    baseline_ms: float
    summary: dict[str, Any]
    verdict: Verdict
    reader_rows: int
    reader_checks: int
    vanished: Sequence[str]
    reader_failure: str
    quiet: bool
    troubles: Sequence[str] = ()
    unavailable: Sequence[str] = ()

    @property
    def covered(self) -> set[Unit]:
        """What was done, and met work."""
        return {fault.unit for fault in self.faults if not fault.error and fault.hit}

    def not_covered(self) -> list[str]:
        """Return what was not done, of all that runs of these kinds can do."""
        return [str(unit) for unit in sorted(units_of(self.kinds) - self.covered)]

    def broken(self) -> list[str]:
        """Return the broken promises; [] when all were kept."""
        found = list(self.verdict.problems)
        if self.vanished:
            found.append(f"vanished: {len(self.vanished)} rows that a reader saw, e.g. {self.vanished[0]}")
        return found

    def invalid(self) -> list[str]:
        """Return why the run proves nothing; [] when it was what it claims."""
        found = [f"{fault.kind} of {fault.target} was not done: {fault.error}" for fault in self.faults if fault.error]
        found += [f"{fault.kind} of {fault.target} met no work in flight" for fault in self.faults if not fault.error and not fault.hit]
        if missing := sorted(set(self.required) - self.covered):
            found.append(f"did not occur: {', '.join(map(str, missing))}; run longer, or with fewer --kinds")
        if not self.faults:
            found.append("there was no fault")
        if self.verdict.absorbed == 0:
            found.append("nothing was absorbed: no fault led to a record being read or sent again")
        if any(fault.kind.startswith("mqtt_") for fault in self.faults) and not self.summary.get("replayed"):
            found.append("no gateway replayed although the MQTT broker ended")
        if self.summary["late_p99_ms"] > LATE_LIMIT_MS:
            found.append(f"the generator itself was late: p99 {self.summary['late_p99_ms']:.0f} ms, at most {LATE_LIMIT_MS:.0f} allowed")
        if self.reader_checks == 0:
            found.append("the reader saw nothing")
        if self.reader_failure:
            found.append(f"the reader did not see the end: {self.reader_failure}")
        if not self.quiet:
            found.append("something was still under way at the end")
        return found

    def unrecovered(self) -> list[str]:
        """Return the faults whose trouble was not seen to end before the next one."""
        return [
            f"{fault.kind} of {fault.target}: more than {cost.seconds} s"
            for fault, cost in self._costs()
            if not cost.recovered and not fault.error
        ]

    def slow(self) -> list[str]:
        """Return the recoveries that took longer than the goal of their group, or were cut short beyond it."""
        return [
            f"{fault.kind} of {fault.target}: {'' if cost.recovered else 'more than '}{cost.seconds} s, goal {GOALS_S[fault.group]:g} s"
            for fault, cost in self._costs()
            if fault.group in GOALS_S and cost.seconds > GOALS_S[fault.group]
        ]

    def figures(self) -> dict[str, Any]:
        """Return the last line's object."""
        verdict = self.verdict
        broken, invalid = self.broken(), self.invalid()
        return {
            "faults": sum(not fault.error for fault in self.faults),
            "faults_by_kind": dict(sorted(Counter(fault.kind for fault in self.faults if not fault.error).items())),
            "sent": verdict.sent,
            "acked": verdict.acked,
            "stored": verdict.readings_stored,
            "absorbed": verdict.absorbed,
            "dead_lettered": verdict.dead_lettered,
            "lost": verdict.lost,
            "duplicates": verdict.duplicates,
            "foreign": verdict.foreign,
            "mismatched": verdict.mismatched,
            "vanished": len(self.vanished),
            "replayed": self.summary.get("replayed", 0),
            "reconnects": self.summary.get("reconnects", 0),
            "reader": {"rows": self.reader_rows, "checks": self.reader_checks},
            "baseline_p99_ms": self.baseline_ms if math.isfinite(self.baseline_ms) else None,
            "max_recovery_s": max((cost.seconds for cost in self.recoveries), default=0.0),
            "recovery_s": worst_by_group(self.faults, self.recoveries),
            "recovery_since_begin_s": worst_since_begin(self.faults, self.recoveries),
            "unrecovered": self.unrecovered(),
            "slow": self.slow(),
            "not_covered": self.not_covered(),
            "seed": self.seed,
            "seconds": round(self.traffic_s[1] - self.traffic_s[0], 1),
            "unavailable": list(self.unavailable),
            "troubles": list(self.troubles),
            "problems": broken,
            "invalid": invalid,
            "valid": not invalid,
            "ok": not broken and not invalid,
        }

    def _costs(self) -> list[tuple[Done, Recovery]]:
        return list(zip(self.faults, self.recoveries, strict=True))


def line_of(fault: Done, began_s: float) -> str:
    """Return one line of progress."""
    lasted = f" for {fault.ended_s - fault.began_s:.1f} s" if fault.ended_s - fault.began_s >= 0.5 else ""
    return f"{fault.began_s - began_s:7.1f} s  {fault.kind} {fault.target}{lasted}" + (
        f"  NOT DONE: {fault.error}" if fault.error else f"  ({fault.hit or 'nothing in flight'})"
    )


def print_run(console: Console, run: ChaosRun) -> None:
    """Print timeline, p99 by second, and what is wrong."""
    table = Table(title=f"chaos, seed {run.seed}", title_justify="left")
    for name in ("at s", "fault", "target", "lasted s", "worst p99 ms", "p99 < 1 s after s", "since it began"):
        table.add_column(name, justify="left" if name in ("fault", "target") else "right")
    for fault, cost in zip(run.faults, run.recoveries, strict=True):
        remarks = [word for word, true in (("not before the next", not cost.recovered), ("late before", cost.late_before)) if true]
        table.add_row(
            f"{fault.began_s - run.traffic_s[0]:.1f}",
            fault.kind,
            fault.target,
            f"{fault.ended_s - fault.began_s:.1f}",
            f"{cost.worst_ms:.0f}" if math.isfinite(cost.worst_ms) else "nothing",
            f"{cost.seconds:.1f}" + (f" ({', '.join(remarks)})" if remarks else ""),
            f"{cost.since_begin_s:.1f}",
        )
    console.print(table)
    say(console, f"p99 before the first fault: {run.baseline_ms:.0f} ms")
    say(console, f"p99 by second, a step is 0.5 s, ! nothing stored: {sparkline(run.p99_ms, run.traffic_s)}")
    for title, lines in (
        ("BROKEN", run.broken()),
        ("INVALID", run.invalid()),
        ("slow", run.slow()),
        ("open end", run.unrecovered()),
        ("trouble", run.troubles),
    ):
        for words in lines:
            say(console, f"{title:<9}{words}")
    if run.not_covered():
        say(console, f"not done {', '.join(run.not_covered())}")
