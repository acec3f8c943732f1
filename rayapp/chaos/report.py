"""What a chaos run did and cost: a timeline for people, one JSON object for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rayapp.bench.report import say
from rayapp.bench.verdict import Verdict
from rayapp.chaos.recovery import Done, Recovery, sparkline, worst_by_group

GOALS_S = {"actor": 5.0, "driver": 10.0, "kafka": 10.0, "database": 10.0}
LATE_LIMIT_MS = 100.0


@dataclass(frozen=True)
class ChaosRun:
    """Everything a run found.

    Attributes:
        summary: the simulator's.
        vanished: what the reader saw and then saw no more.
        p99_ms: epoch second -> p99 of what was due in it.
        quiet: False when something was still under way when the judge was called.
    """

    seed: int
    kinds: Sequence[str]
    faults: Sequence[Done]
    recoveries: Sequence[Recovery]
    p99_ms: dict[int, float]
    summary: dict[str, Any]
    verdict: Verdict
    reader_rows: int
    reader_checks: int
    vanished: Sequence[str]
    quiet: bool
    unavailable: Sequence[str] = ()

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
        missing = sorted(set(self.kinds) - {fault.kind for fault in self.faults if not fault.error})
        if missing:
            found.append(f"kinds that did not occur: {', '.join(missing)}; run longer, or with fewer --kinds")
        if self.verdict.absorbed == 0:
            found.append("nothing was absorbed: no fault led to a record being read or sent again")
        if any(fault.kind.startswith("mqtt_") for fault in self.faults) and not self.summary.get("replayed"):
            found.append("no gateway replayed although the MQTT broker ended")
        if self.summary["late_p99_ms"] > LATE_LIMIT_MS:
            found.append(f"the generator itself was late: p99 {self.summary['late_p99_ms']:.0f} ms, at most {LATE_LIMIT_MS:.0f} allowed")
        if self.reader_checks == 0:
            found.append("the reader saw nothing")
        if not self.quiet:
            found.append("something was still under way at the end")
        return found

    def slow(self) -> list[str]:
        """Return the recoveries that took longer than the goal of their group."""
        return [
            f"{fault.kind} of {fault.target}: {cost.since_end_s} s, goal {GOALS_S[fault.group]:g} s"
            for fault, cost in zip(self.faults, self.recoveries, strict=True)
            if fault.group in GOALS_S and cost.since_end_s > GOALS_S[fault.group]
        ]

    def figures(self) -> dict[str, Any]:
        """Return the last line's object."""
        verdict = self.verdict
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
            "max_recovery_s": max((cost.since_end_s for cost in self.recoveries), default=0.0),
            "recovery_s": worst_by_group(self.faults, self.recoveries),
            "slow": self.slow(),
            "seed": self.seed,
            "unavailable": list(self.unavailable),
            "problems": self.broken(),
            "invalid": self.invalid(),
            "valid": not self.invalid(),
            "ok": not self.broken() and not self.invalid(),
        }


def line_of(fault: Done, began_s: float) -> str:
    """Return one line of progress."""
    lasted = f" for {fault.ended_s - fault.began_s:.1f} s" if fault.ended_s - fault.began_s >= 0.5 else ""
    return f"{fault.began_s - began_s:7.1f} s  {fault.kind} {fault.target}{lasted}" + (
        f"  NOT DONE: {fault.error}" if fault.error else f"  ({fault.hit or 'nothing in flight'})"
    )


def print_run(console: Console, run: ChaosRun, began_s: float) -> None:
    """Print timeline, p99 by second, and what is wrong."""
    table = Table(title=f"chaos, seed {run.seed}", title_justify="left")
    for name in ("at s", "fault", "target", "lasted s", "worst p99 ms", "p99 < 1 s after s", "since it began"):
        table.add_column(name, justify="left" if name in ("fault", "target") else "right")
    for fault, cost in zip(run.faults, run.recoveries, strict=True):
        table.add_row(
            f"{fault.began_s - began_s:.1f}",
            fault.kind,
            fault.target,
            f"{fault.ended_s - fault.began_s:.1f}",
            f"{cost.worst_ms:.0f}",
            f"{cost.since_end_s:.1f}" + ("" if cost.recovered else " (not before the next)"),
            f"{cost.since_begin_s:.1f}",
        )
    console.print(table)
    say(console, f"p99 by second, a step is 0.5 s: {sparkline(run.p99_ms)}")
    for words in run.broken():
        say(console, f"BROKEN   {words}")
    for words in run.invalid():
        say(console, f"INVALID  {words}")
    for words in run.slow():
        say(console, f"slow     {words}")
