"""One chaos run: servers, pipeline, traffic, faults one after another, silence, judgement."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rayapp.bench.measure import bring_up
from rayapp.bench.report import say
from rayapp.chaos import report
from rayapp.chaos.faults import Faults
from rayapp.chaos.plan import KINDS, draw
from rayapp.chaos.reader import Reader
from rayapp.chaos.recovery import Done, p99_by_second, recoveries
from rayapp.chaos.session import ChaosSession
from rayapp.errors import ConfigurationError
from rayapp.stack import StackOptions
from rayapp.stack.memory_disk import available as disks_available

EXIT_OK, EXIT_BROKEN, EXIT_INVALID = 0, 1, 3
REPLAY_S = 30
GATEWAYS = 2
TAIL_S = 12.0
"""Traffic after the last fault's turn, so that its recovery shows."""
WARM_S = 12.0
"""Before the traffic: spare processes have come up by then."""
QUIET_S = 120.0
DISK_MB = 6_000


@dataclass(frozen=True)
class ChaosOptions:
    """What `rayapp chaos` was asked for."""

    folder: Path
    seed: int | None = None
    minutes: float = 20.0
    rate: float = 1_000.0
    every_s: float = 20.0
    kinds: tuple[str, ...] = tuple(KINDS)
    tags: int = 200
    keep: bool = False


def run_chaos(options: ChaosOptions, console: Console) -> tuple[dict[str, Any], int]:
    """Run it and return the last line's object and the exit code.

    Raises:
        ConfigurationError: the plan cannot be drawn.
    """
    seed = options.seed if options.seed is not None else secrets.randbelow(2**31 - 1) + 1
    kinds, unavailable = _possible(options.kinds)
    total_s = options.minutes * 60
    try:
        plan = draw(seed, total_s, options.every_s, kinds)
    except ValueError as error:
        raise ConfigurationError(f"rayapp chaos: {error}") from error
    if not plan:
        raise ConfigurationError(f"--minutes = {options.minutes:g}: no fault fits in; raise it above {options.every_s / 60 + 0.2:.1f}")
    shape = StackOptions(brokers=3, kafka_proxied=True, postgres_disk_mb=DISK_MB if "disk_full" in kinds else 0)
    with ChaosSession(options.folder, options=shape, keep=options.keep) as session:
        bring_up(session, console)
        say(console, f"seed {seed}: {len(plan)} faults of {len(kinds)} kinds in {total_s:.0f} s at {options.rate:g} messages/s")
        time.sleep(WARM_S)
        reader = Reader(session.settings, seed)
        reader.start()
        run = session.simulate(
            rate=options.rate, seconds=total_s + TAIL_S, tags=options.tags, gateways=GATEWAYS, replay_seconds=REPLAY_S, seed=seed
        )
        began_s = time.time()
        faults = Faults(session, run, session.network, time.sleep)
        done: list[Done] = []
        for fault in plan:
            time.sleep(max(0.0, began_s + fault.at_s - time.time()))
            done.append(faults.do(fault))
            say(console, report.line_of(done[-1], began_s))
        summary = run.wait(total_s + 180.0)
        ended_s = time.time()
        quiet = session.quiesce(QUIET_S)
        say(console, f"quiet after {quiet.seconds} s: {quiet.reason}" if quiet.quiet else f"NOT quiet: {quiet.reason}")
        reader.stop()
        verdict = session.judge()
        stored = session.collect(session.sent()).stored
        p99_ms = p99_by_second(stored["timestamp_us"].to_numpy(), stored["latency_ms"].to_numpy())
        found = report.ChaosRun(
            seed=seed,
            kinds=kinds,
            faults=done,
            recoveries=recoveries(p99_ms, done, min(ended_s, began_s + total_s + TAIL_S)),
            p99_ms=p99_ms,
            summary=summary,
            verdict=verdict,
            reader_rows=reader.rows,
            reader_checks=reader.checks,
            vanished=reader.vanished,
            quiet=quiet.quiet,
            unavailable=unavailable,
        )
        report.print_run(console, found, began_s)
        if not options.keep and not found.broken():
            session.discard()
    figures = found.figures()
    return figures, EXIT_BROKEN if found.broken() else EXIT_INVALID if found.invalid() else EXIT_OK


def _possible(kinds: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the kinds this machine can do, and what it cannot, with the reason."""
    if "disk_full" in kinds and not disks_available():
        return [kind for kind in kinds if kind != "disk_full"], ["disk_full: only root may mount a small disk"]
    return list(kinds), []
