"""The figures of a run, and whether they may be believed.

A run whose load came late, whose samples are missing or whose messages stayed
unknown is invalid: its figures describe the generator or the machine, not the
pipeline. That is not the same as a broken promise, which the judge finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayapp.bench.latency import Latency
from rayapp.bench.processes import Bill
from rayapp.bench.session import Quiet
from rayapp.bench.verdict import Verdict

SLIP_LIMIT_MS = 100.0
RATE_SHARE = 0.99
SAMPLES_SHARE = 0.8
STEADY_COMPONENTS = ("simulator", "mosquitto", "kafka", "registry", "postgres", "ray", "driver", "stack")


@dataclass(frozen=True)
class Measured:
    """What the measured run itself gave.

    Attributes:
        readings: stored during the window of the bill; what was stored later is the backlog, and not in cpu_s_per_m.
        writer: the writers' own record.
    """

    summary: dict[str, Any]
    bill: Bill
    readings: int
    quiet: Quiet
    writer: Latency


def invalid_because(seconds: float, measured: Measured, verdict: Verdict, independent: Latency, stored: int) -> list[str]:
    """Return why the figures do not describe the pipeline; [] when they do."""
    summary, bill = measured.summary, measured.bill
    slots = [name for name in bill.components if "/" in name]
    reasons = [
        f"{name} {summary[name]:.1f} > {SLIP_LIMIT_MS:g}: the load came late"
        for name in ("late_p99_ms", "slip_p99_ms")
        if summary[name] > SLIP_LIMIT_MS
    ]
    if summary["rate_actual"] < RATE_SHARE * summary["rate_target"]:
        reasons.append(f"rate_actual {summary['rate_actual']:.0f} of {summary['rate_target']:.0f} messages/s")
    if verdict.unknown:
        reasons.append(f"{verdict.unknown} messages are unknown: sent, never acknowledged")
    if not measured.quiet.quiet:
        reasons.append(f"not quiescent after {measured.quiet.seconds} s: {measured.quiet.reason}")
    if bill.samples < SAMPLES_SHARE * seconds:
        reasons.append(f"{bill.samples} process samples in {seconds:g} s")
    missing = [name for name in (*STEADY_COMPONENTS, *slots) if name not in bill.components]
    if missing or not slots:
        reasons.append(f"no process seen of {', '.join(missing) or 'any actor'}")
    if independent.count != stored:
        reasons.append(f"commit times of {independent.count} of {stored} readings")
    if measured.writer.count != stored and not verdict.absorbed:
        reasons.append(f"the writers recorded {measured.writer.count} latencies, the table has {stored} readings")
    return reasons


def figures_of(
    seconds: float, measured: Measured, verdict: Verdict, independent: Latency, stored: int, reasons: list[str]
) -> dict[str, Any]:
    """Return the figures of the last line."""
    bill, summary = measured.bill, measured.summary
    cpu_s = cpu_seconds(bill, summary)
    per_million = {name: round(used / (measured.readings / 1e6), 3) if measured.readings else None for name, used in cpu_s.items()}
    return {
        "rate_msgs_s": summary["rate_actual"],
        "readings_stored": stored,
        "dead_lettered": verdict.dead_lettered,
        "p50_ms": independent.p50_ms,
        "p95_ms": independent.p95_ms,
        "p99_ms": independent.p99_ms,
        "max_ms": independent.max_ms,
        "slip_p99_ms": summary["slip_p99_ms"],
        "cpu_s_per_m": per_million,
        "rss_mb": {name: cost.rss_mb for name, cost in bill.components.items()},
        "pss_mb": {name: cost.pss_mb for name, cost in bill.components.items()},
        "seconds": seconds,
        "backlog_readings": max(0, stored - measured.readings),
        "valid": not reasons,
        "invalid_because": reasons,
        "writer_p99_ms": measured.writer.p99_ms,
        "total_rss_mb": bill.total_rss_mb,
        "total_pss_mb": bill.total_pss_mb,
        "total_cpu_s_per_m": round(sum(used for used in per_million.values() if used is not None), 3),
        "total_cores": round(sum(cpu_s.values()) / bill.seconds, 3),
        "rss_growth_mb": {name: cost.rss_growth_mb for name, cost in bill.components.items() if "/" in name},
        **verdict_facts(verdict),
    }


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """Return the judge's findings under the names that bench and demo share."""
    return {
        "lost": verdict.lost,
        "duplicates": verdict.duplicates,
        "absorbed": verdict.absorbed,
        "foreign": verdict.foreign,
        "mismatched": verdict.mismatched,
        "dead_missing": verdict.dead_missing,
        "dead_wrong": verdict.dead_wrong + verdict.dead_foreign,
        "anomalies": verdict.anomalies,
        "anomalies_wrong": verdict.anomalies_wrong,
        "unknown": verdict.unknown,
        "conserved": verdict.conserved,
    }


def cpu_seconds(bill: Bill, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return each component's CPU seconds; the simulator's by its own count, as it ends before the last sample."""
    return {name: cost.cpu_s for name, cost in bill.components.items()} | {"simulator": float(summary["cpu_s"])}
