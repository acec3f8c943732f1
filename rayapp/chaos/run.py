"""One chaos run: servers, pipeline, traffic, faults one after another, silence, judgement.

The plan says when a fault comes at the earliest; the run begins it only when
the one before is really over and some calm has passed. The traffic goes on
until the last fault has had its time. Whatever goes wrong with a fault, the run
comes to a verdict: it is then invalid, and says why.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.readings import SENSORS
from rayapp.bench.measure import bring_up
from rayapp.bench.report import say
from rayapp.bench.simulator import Simulation
from rayapp.chaos import report
from rayapp.chaos.faults import Faults
from rayapp.chaos.plan import KINDS, QUICK, QUICK_PACE, Fault, Pace, Unit, draw, draw_quick, enough_for_all, units_of
from rayapp.chaos.reader import Reader
from rayapp.chaos.recovery import Done, baseline_ms, p99_by_second, recoveries
from rayapp.chaos.session import ChaosSession
from rayapp.errors import ConfigurationError, RayappError
from rayapp.stack import StackOptions
from rayapp.stack.memory_disk import available as disks_available
from rayapp.stack.rayworkers import QUICK_TO_NOTICE_A_DEAD_NODE

EXIT_OK, EXIT_BROKEN, EXIT_INVALID = 0, 1, 3
REPLAY_S = 30
GATEWAYS = 2
TAIL_S = 15.0
"""Traffic after the last fault, longer than the longest goal: its recovery must show."""
WARM_S = 12.0
"""Before the traffic: spare processes have come up by then."""
SLACK_S = 600.0
"""The traffic may go on so much longer than planned; it is ended when the last fault is done."""
QUIET_S = 120.0
SEND_END_S = 90.0
DISK_BYTES_PER_READING = 900
DISK_SPARE_MB = 2_500


@dataclass(frozen=True)
class ChaosOptions:
    """What `rayapp chaos` was asked for.

    Attributes:
        kinds: None = all that the machine can do and that fit in.
        quick: the run of two minutes (plan.QUICK); minutes, every_s and kinds are not asked then.
    """

    folder: Path
    seed: int | None = None
    minutes: float = 20.0
    rate: float = 1_000.0
    every_s: float = 20.0
    kinds: tuple[str, ...] | None = None
    quick: bool = False
    tags: int = 200
    keep: bool = False


@dataclass(frozen=True)
class Programme:
    """What a run is to do.

    Attributes:
        kinds: that it could do.
        required: what must have occurred for it to be valid.
        total_s: of the traffic as planned.
        unavailable: kinds that this machine cannot do, with the reason.
    """

    faults: list[Fault]
    kinds: list[str]
    required: set[Unit]
    pace: Pace
    total_s: float
    unavailable: list[str]


def programme(options: ChaosOptions, seed: int, *, disks: bool) -> Programme:
    """Return what a run is to do.

    Args:
        disks: whether this machine can mount a small disk.

    Raises:
        ConfigurationError: the plan cannot be drawn, or no fault fits in.
    """
    wanted = [kind for kind, _ in QUICK] if options.quick else list(options.kinds if options.kinds is not None else KINDS)
    kinds = [kind for kind in dict.fromkeys(wanted) if kind != "disk_full" or disks]
    unavailable = ["disk_full: only root may mount a small disk"] if len(kinds) < len(set(wanted)) else []
    if options.quick:
        faults, pace = draw_quick(seed, kinds), QUICK_PACE
        total_s = faults[-1].at_s + pace.turn_s(KINDS[faults[-1].kind], faults[-1].seconds)
        return Programme(faults, kinds, {fault.unit for fault in faults}, pace, total_s, unavailable)
    pace, total_s = Pace(options.every_s), options.minutes * 60
    try:
        faults = draw(seed, total_s, pace, kinds)
    except ValueError as error:
        raise ConfigurationError(f"rayapp chaos: {error}") from error
    if not faults:
        raise ConfigurationError(f"--minutes = {options.minutes:g}: no fault fits in; raise it above {options.every_s / 60 + 0.2:.1f}")
    required = {fault.unit for fault in faults}
    if enough_for_all(total_s, pace, kinds):
        required = units_of(kinds)
    elif options.kinds is not None and (missing := sorted(set(kinds) - {fault.kind for fault in faults})):
        raise ConfigurationError(f"--kinds = {','.join(missing)}: not in {options.minutes:g} minutes; run longer, or name fewer")
    return Programme(faults, kinds, required, pace, total_s, unavailable)


def shape_of(plan: Programme, rate: float) -> StackOptions:
    """Return the servers that a programme needs.

    Args:
        rate: messages a second: the disk that is to be filled must hold what they leave until then.
    """
    readings = plan.total_s * rate * len(SENSORS)
    shape = StackOptions(brokers=3, kafka_proxied=True)
    if "disk_full" in plan.kinds:
        shape = replace(shape, postgres_disk_mb=int(readings * DISK_BYTES_PER_READING / 2**20) + DISK_SPARE_MB)
    if "node_kill" in plan.kinds:
        # With half a CPU an actor no node has room for all six: some always live on the one that dies.
        shape = replace(shape, ray_workers=1, ray_num_cpus=2, ray_environment=QUICK_TO_NOTICE_A_DEAD_NODE)
    return shape


def run_chaos(options: ChaosOptions, console: Console) -> tuple[dict[str, Any], int]:
    """Run it and return the last line's object and the exit code.

    Raises:
        ConfigurationError: the plan cannot be drawn.
    """
    seed = options.seed if options.seed is not None else secrets.randbelow(2**31 - 1) + 1
    plan = programme(options, seed, disks=disks_available())
    with ChaosSession(options.folder, options=shape_of(plan, options.rate), keep=options.keep) as session:
        bring_up(session, console)
        kinds = len({fault.kind for fault in plan.faults})
        say(console, f"seed {seed}: {len(plan.faults)} faults of {kinds} kinds in {plan.total_s:.0f} s at {options.rate:g} messages/s")
        time.sleep(WARM_S)
        reader = Reader(session.settings, seed)
        reader.start()
        run = session.simulate(
            rate=options.rate, seconds=plan.total_s + SLACK_S, tags=options.tags, gateways=GATEWAYS, replay_seconds=REPLAY_S, seed=seed
        )
        began_s = time.time()
        faults = Faults(session, run, session.network, time.sleep)
        done = _do_all(plan, faults, run, began_s, console)
        time.sleep(max(0.0, done[-1].ended_s + TAIL_S - time.time()) if done else 0.0)
        ended_s = time.time()
        run.stop()
        faults.mend()
        try:
            summary = run.wait(SEND_END_S)
            quiet = session.quiesce(QUIET_S)
            say(console, f"quiet after {quiet.seconds} s: {quiet.reason}" if quiet.quiet else f"NOT quiet: {quiet.reason}")
            reader.stop()
            verdict = session.judge()
            stored = session.collect(session.sent()).stored
        except RayappError as error:
            return _no_verdict(error, seed, done, console), EXIT_INVALID
        p99_ms = p99_by_second(stored["timestamp_us"].to_numpy(), stored["latency_ms"].to_numpy())
        traffic_s = (began_s, ended_s)
        found = report.ChaosRun(
            seed=seed,
            kinds=plan.kinds,
            required=plan.required,
            faults=done,
            recoveries=recoveries(p99_ms, done, traffic_s),
            p99_ms=p99_ms,
            traffic_s=traffic_s,
            baseline_ms=baseline_ms(p99_ms, traffic_s, done[0].began_s if done else ended_s),
            summary=summary,
            verdict=verdict,
            reader_rows=reader.rows,
            reader_checks=reader.checks,
            vanished=reader.vanished,
            reader_failure=reader.failure,
            quiet=quiet.quiet,
            troubles=faults.troubles,
            unavailable=plan.unavailable,
        )
        report.print_run(console, found)
        if not options.keep and not found.broken():
            session.discard()
    return found.figures(), EXIT_BROKEN if found.broken() else EXIT_INVALID if found.invalid() else EXIT_OK


def _do_all(plan: Programme, faults: Faults, run: Simulation, began_s: float, console: Console) -> list[Done]:
    """Do the faults one after another, each when its time has come and the one before is over; stops when the traffic has ended."""
    done: list[Done] = []
    for fault in plan.faults:
        calm_s = done[-1].ended_s + plan.pace.calm_s if done else 0.0
        time.sleep(max(0.0, max(began_s + fault.at_s, calm_s) - time.time()))
        if not run.running:
            say(console, "the traffic ended before the faults did")
            break
        done.append(faults.do(fault))
        say(console, report.line_of(done[-1], began_s))
    return done


def _no_verdict(error: RayappError, seed: int, done: Collection[Done], console: Console) -> dict[str, Any]:
    """Return the last line's object of a run that could not be judged."""
    words = f"it could not be judged: {type(error).__name__}: {error}"
    say(console, f"INVALID  {words}")
    return {
        "faults": sum(not fault.error for fault in done),
        "seed": seed,
        "problems": [],
        "invalid": [words, *(f"{fault.kind} of {fault.target} was not done: {fault.error}" for fault in done if fault.error)],
        "valid": False,
        "ok": False,
    }
