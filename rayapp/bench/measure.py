"""The bench: a known load, exact latency, the bill, and a judge.

A warm-up run first (imports, plans, caches; judged, but in no figure), then the
measured run, then silence, then the judge. A run whose load slipped, whose
samples are missing or whose messages stayed unknown is invalid: its figures
describe the generator or the machine, not the pipeline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from rayapp.bench.deployment import SessionFailed
from rayapp.bench.figures import Measured, cpu_seconds, figures_of, invalid_because
from rayapp.bench.judge import judge
from rayapp.bench.latency import Latency
from rayapp.bench.plant import plant_in_letters, plant_in_table
from rayapp.bench.processes import Sampler
from rayapp.bench.report import Ticker, print_table, print_verdict, save, say
from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation
from rayapp.bench.verdict import Verdict
from rayapp.bench.watch import View
from rayapp.errors import DependencyUnavailable
from rayapp.stack.progress import StartProgress

EXIT_OK, EXIT_BROKEN, EXIT_INVALID = 0, 1, 3
MEASURED_RUN = 1


@dataclass(frozen=True)
class BenchOptions:
    """What `rayapp bench` was asked for."""

    folder: Path
    rate: float = 2500.0
    seconds: float = 60.0
    tags: int = 200
    malformed_share: float = 0.01
    fault_share: float = 0.01
    gateways: int = 1
    warmup_seconds: float = 5.0
    seed: int | None = None
    keep: bool = False
    plant: str = ""


@dataclass(frozen=True)
class Result:
    """Figures for the last line, and the exit code they mean."""

    figures: dict[str, Any]
    exit_code: int


def run_bench(options: BenchOptions, console: Console) -> Result:
    """Run the bench and return its result; nothing stays running unless `keep`."""
    began_s = time.monotonic()
    with PipelineSession(options.folder, keep=options.keep) as session:
        bring_up(session, console)
        warm_up(session, options, console)
        measured = measure(session, options, console)
        say(
            console,
            f"quiet after {measured.quiet.seconds} s: {measured.quiet.reason}"
            if measured.quiet.quiet
            else f"NOT quiet: {measured.quiet.reason}",
        )
        if options.plant:
            say(console, f"planting a fault: {options.plant}")
            plant_in_table(options.plant, session.settings)
        sent = session.sent()
        evidence = session.collect(sent)
        if options.plant:
            evidence = plant_in_letters(options.plant, sent, evidence)
        verdict = judge(sent, evidence.stored, evidence.dead, evidence.books)
        independent = Latency.of(evidence.stored["latency_ms"].to_numpy()[verdict.run_of_row == MEASURED_RUN])
        stored = int(np.count_nonzero(verdict.run_of_row == MEASURED_RUN))
        broken = list(verdict.problems)
        if not options.keep:
            ended = session.stop_job()
            say(console, f"job {ended}")
            if ended != "STOPPED":
                broken.append(f"job: ended {ended} instead of STOPPED; see the driver's log")
    reasons = invalid_because(options.seconds, measured, verdict, independent, stored)
    code = EXIT_BROKEN if broken else EXIT_INVALID if reasons else EXIT_OK
    figures = figures_of(options.seconds, measured, verdict, independent, stored, reasons) | {
        "broken": broken,
        "total_seconds": round(time.monotonic() - began_s, 1),
        "exit": code,
    }
    print_result(console, measured, verdict, independent, figures)
    path = options.folder / f"{session.stamp}.json"
    save(path, figures, {"options": asdict(options), "summary": measured.summary, "bill": asdict(measured.bill), "judge": _plain(verdict)})
    if code == EXIT_OK and not options.keep:
        session.discard()
    else:
        say(console, f"ledgers and settings stay in {session.run_folder}")
    say(console, f"saved {path}")
    return Result(figures, code)


def bring_up(session: PipelineSession, console: Console) -> None:
    """Start servers and job, showing what comes up."""
    with StartProgress(console) as progress:
        session.start_servers(progress)
    session.prepare()
    say(console, f"submitting the job to {session.state.ray.dashboard_url}")
    job = session.submit()
    view = session.wait_running()
    say(console, f"{job} runs: {', '.join(sorted(view.slots))}")


def warm_up(session: PipelineSession, options: BenchOptions, console: Console) -> None:
    """Run a first load that no figure contains.

    Raises:
        SessionFailed: what it sent did not arrive.
    """
    say(console, f"warm-up: {options.rate:g} messages/s for {options.warmup_seconds:g} s")
    run = _simulate(session, options, options.warmup_seconds, "warmup", None if options.seed is None else options.seed + 1)
    run.wait()
    quiet = session.quiesce()
    if not quiet.quiet:
        raise SessionFailed(f"warm-up: the pipeline is not quiet after {quiet.seconds} s: {quiet.reason}")


def measure(session: PipelineSession, options: BenchOptions, console: Console) -> Measured:
    """Run the load that counts, with every process watched."""
    say(console, f"measuring: {options.rate:g} messages/s ({options.rate * 9:g} readings/s) for {options.seconds:g} s")
    session.latency.mark()
    before = session.look()
    latest = [before]
    with Sampler(lambda: session.roots(latest[0])) as sampler:
        run = _simulate(session, options, options.seconds, "measured", options.seed)
        with Ticker(console).running() as ticker:
            while run.running:
                latest[0] = look_again(session, latest[0])
                ticker.show(progress_line(run, latest[0], before))
                _wait_a_second(run)
        summary = run.wait()
        latest[0] = look_again(session, latest[0])
        bill = sampler.stop()
    quiet = session.quiesce()
    return Measured(summary, bill, latest[0].stored - before.stored, quiet, Latency.of(session.latency.read()))


def look_again(session: PipelineSession, last: View) -> View:
    """Return a new view, or the last one while a server is away."""
    try:
        return session.look()
    except DependencyUnavailable:
        return last


def progress_line(run: Simulation, view: View, before: View) -> dict[str, object]:
    """Return what a line of progress says."""
    seen = run.progress()
    return {
        "t": f"{seen.get('t', 0.0):5.1f} s",
        "sent": f"{int(seen.get('sent', 0)):,}",
        "acked": f"{int(seen.get('acked', 0)):,}",
        "stored": f"{view.stored - before.stored:,}",
        "lag": f"{view.lag:,}",
    }


def print_result(console: Console, measured: Measured, verdict: Verdict, independent: Latency, figures: Mapping[str, Any]) -> None:
    """Print latency, bill and verdict."""
    say(console, "")
    names = ("p50_ms", "p95_ms", "p99_ms", "max_ms", "count")
    rows = [
        (who, *(getattr(figure, name) for name in names))
        for who, figure in (("database's commit times", independent), ("writers' own record", measured.writer))
    ]
    print_table(console, "latency, intended send to commit (ms)", ("", "p50", "p95", "p99", "max", "readings"), rows)
    bill, cpu_s = measured.bill, cpu_seconds(measured.bill, measured.summary)
    costs = [
        (
            name,
            f"{used:.2f}" if (used := figures["cpu_s_per_m"][name]) is not None else "",
            f"{cpu_s[name] / bill.seconds:.3f}",
            f"{cost.rss_mb:.0f}",
            f"{cost.rss_growth_mb:+.1f}",
            f"{cost.pss_mb:.0f}",
        )
        for name, cost in bill.components.items()
    ]
    total = (
        "total",
        f"{figures['total_cpu_s_per_m']:.2f}",
        f"{figures['total_cores']:.3f}",
        f"{bill.total_rss_mb:.0f}",
        "",
        f"{bill.total_pss_mb:.0f}",
    )
    title = f"cost over {bill.seconds:.0f} s, {measured.readings:,} readings"
    print_table(console, title, ("component", "CPU s/M", "cores", "RSS MB", "growth MB", "PSS MB"), [*costs, total])
    print_verdict(console, verdict)
    for reason in figures["invalid_because"]:
        say(console, f"INVALID {reason}")


def _simulate(session: PipelineSession, options: BenchOptions, seconds: float, prefix: str, seed: int | None) -> Simulation:
    return session.simulate(
        rate=options.rate,
        seconds=seconds,
        prefix=prefix,
        seed=seed,
        tags=options.tags,
        malformed_share=options.malformed_share,
        fault_share=options.fault_share,
        gateways=options.gateways,
    )


def _wait_a_second(run: Simulation) -> None:
    """Return when the simulator ends or a second has passed."""
    deadline = time.monotonic() + 1.0
    while run.running and time.monotonic() < deadline:
        time.sleep(0.05)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict without its row index."""
    return {name: value for name, value in vars(verdict).items() if name != "run_of_row"} | {"books": asdict(verdict.books)}
