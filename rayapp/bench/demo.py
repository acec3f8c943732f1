"""The demo: everything from nothing, live, and a table of what happened.

It says what it will do, does it, shows it while it happens, has the judge look
at the result, and stops everything again. With --keep the servers and the job
stay, and it says how to look around; passwords are named by file, never shown.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table

from actors.adapters.postgres import connect
from rayapp.bench.figures import verdict_facts
from rayapp.bench.judge import judge
from rayapp.bench.latency import Latency
from rayapp.bench.measure import EXIT_BROKEN, EXIT_OK, Result, look_again
from rayapp.bench.report import Ticker, print_table, print_verdict, save, say
from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation
from rayapp.bench.verdict import FOREIGN, Verdict
from rayapp.bench.watch import View
from rayapp.config import Settings
from rayapp.stack import StackState
from rayapp.stack.install import install_missing
from rayapp.stack.progress import StartProgress

GATEWAYS = 4
LIVE_EVERY_S = 0.5
PLAIN_EVERY_S = 5.0
TAGS_SHOWN = 5
PLAN = """RuuviTag readings: MQTT -> Kafka -> anomaly detection -> TimescaleDB, on Ray. This demo
  1. starts real servers on 127.0.0.1: Mosquitto, Kafka, a schema registry, PostgreSQL, Ray
  2. brings the database to the current schema and submits the pipeline with `ray job submit`
  3. lets {gateways} simulated gateways with {tags} tags send {rate:g} messages/s for {seconds:g} s; 1 % are broken, 1 % anomalous
  4. waits until nothing is under way, and compares every reading sent with every row stored
  5. {end}"""


@dataclass(frozen=True)
class DemoOptions:
    """What `rayapp demo` was asked for."""

    folder: Path
    rate: float = 200.0
    seconds: float = 60.0
    tags: int = 200
    keep: bool = False


def run_demo(options: DemoOptions, console: Console) -> Result:
    """Run the demo; nothing stays running unless `keep`."""
    began_s = time.monotonic()
    end = "leaves everything running and says how to look around" if options.keep else "stops everything"
    gateways = min(GATEWAYS, options.tags)
    say(console, PLAN.format(gateways=gateways, tags=options.tags, rate=options.rate, seconds=options.seconds, end=end))
    say(console, "")
    install_missing(lambda text: say(console, text))
    with PipelineSession(options.folder, keep=options.keep) as session:
        with StartProgress(console) as progress:
            session.start_servers(progress)
        ray = session.state.ray
        say(console, f"Ray dashboard: {ray.dashboard_url}" + (f"   (token: cat {ray.token_file})" if ray.token_file else ""))
        session.prepare()
        say(console, f"ray job submit: {session.submit()}")
        session.wait_running()
        say(console, "the pipeline runs; the gateways are let in")
        run = session.simulate(rate=options.rate, seconds=options.seconds, prefix="demo", tags=options.tags, gateways=gateways)
        show_traffic(session, run, console)
        summary = run.wait()
        quiet = session.quiesce()
        say(console, f"quiet after {quiet.seconds} s: {quiet.reason}" if quiet.quiet else f"NOT quiet: {quiet.reason}")
        sent = session.sent()
        evidence = session.collect(sent)
        verdict = judge(sent, evidence.stored, evidence.dead, evidence.books)
        latency = Latency.of(evidence.stored["latency_ms"].to_numpy()[verdict.run_of_row != FOREIGN])
        warmest, coldest = extreme_tags(session.settings)
        broken = [*verdict.problems, *unchecked(verdict, latency, quiet_reason=None if quiet.quiet else quiet.reason)]
        say(console, "")
        print_happened(console, verdict, latency, warmest, coldest)
        print_verdict(console, verdict)
        if options.keep:
            print_around(console, session)
        else:
            ended = session.stop_job()
            say(console, f"job {ended}")
            if ended != "STOPPED":
                broken.append(f"job: ended {ended} instead of STOPPED")
    for reason in broken:
        say(console, f"FAILED {reason}")
    figures = {
        "sent": verdict.sent,
        "stored": verdict.readings_stored,
        "dead_lettered": verdict.dead_lettered,
        "p50_ms": latency.p50_ms,
        "p95_ms": latency.p95_ms,
        "p99_ms": latency.p99_ms,
        "max_ms": latency.max_ms,
        "seconds": options.seconds,
        **verdict_facts(verdict),
        "broken": broken,
        "total_seconds": round(time.monotonic() - began_s, 1),
    }
    path = options.folder / f"{session.stamp}.json"
    save(path, figures, {"options": asdict(options), "summary": summary, "dead_by_reason": verdict.dead_by_reason})
    if not broken and not options.keep:
        session.discard()
        say(console, "everything is stopped")
    return Result(figures, EXIT_BROKEN if broken else EXIT_OK)


def show_traffic(session: PipelineSession, run: Simulation, console: Console) -> None:
    """Show what is going on until the gateways have finished."""
    before = view = session.look()
    session.latency.mark()
    recent: list[tuple[float, np.ndarray]] = []
    with Ticker(console, PLAIN_EVERY_S).running() as ticker:
        while run.running:
            now = time.monotonic()
            view = look_again(session, view)
            recent = [(when, values) for when, values in recent if now - when < PLAIN_EVERY_S] + [(now, session.latency.take())]
            latency = Latency.of(np.concatenate([values for _, values in recent]))
            figures = live_figures(run, view, before, latency)
            ticker.show({**figures, "slots": states(view)}, live_table(figures, view))
            deadline = now + LIVE_EVERY_S
            while run.running and time.monotonic() < deadline:
                time.sleep(0.05)


def live_figures(run: Simulation, view: View, before: View, latency: Latency) -> dict[str, object]:
    """Return what the live display says."""
    seen = run.progress()
    return {
        "t": f"{seen.get('t', 0.0):.0f}/{run.seconds:g} s",
        "sent": f"{int(seen.get('sent', 0)):,}",
        "acked": f"{int(seen.get('acked', 0)):,}",
        "stored": f"{view.stored - before.stored:,}",
        "dead": f"{view.dead_letters - before.dead_letters:,}",
        "anomalies": f"{view.counter('iot_anomaly_detected_total'):,}",
        "p50": f"{latency.p50_ms:.0f} ms",
        "p99": f"{latency.p99_ms:.0f} ms",
    }


def states(view: View) -> str:
    """Return the slots' states in a word, or which are not running."""
    other = [f"{name} {slot['state']}" for name, slot in sorted(view.slots.items()) if slot["state"] != "running"]
    return ", ".join(other) or f"all {len(view.slots)} running"


def live_table(figures: dict[str, object], view: View) -> RenderableType:
    """Return the live display of a terminal."""
    flow = Table(box=None, pad_edge=False, header_style="dim")
    for name in figures:
        flow.add_column(name, justify="right", min_width=9)
    flow.add_row(*(str(figure) for figure in figures.values()))
    slots = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("slot", "state", "incarnation", "pid"):
        slots.add_column(name)
    for name, slot in sorted(view.slots.items()):
        colour = "green" if slot["state"] == "running" else "yellow"
        slots.add_row(name, f"[{colour}]{slot['state']}[/]", str(slot["incarnation"]), str(slot["pid"] or ""))
    return Group(flow, "", slots)


def extreme_tags(settings: Settings) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the hottest and the coldest tags: tag, mean, lowest and highest temperature, readings."""
    connection = connect(settings.database, "driver", application="rayapp demo", autocommit=True)
    try:
        found = [
            connection.execute(
                "SELECT device_metadata ->> 'parent_device', round(avg(value)::numeric, 2), min(value), max(value), count(*)"
                " FROM readings WHERE device_type = 'temperature_sensor' AND NOT is_anomaly"
                f" GROUP BY 1 ORDER BY 2 {order}, 1 LIMIT {TAGS_SHOWN}"
            )
            for order in ("DESC", "ASC")
        ]
    finally:
        connection.close()
    return found[0], found[1]


def unchecked(verdict: Verdict, latency: Latency, *, quiet_reason: str | None) -> list[str]:
    """Return what could not be checked: a demo that checked nothing did not succeed."""
    found = []
    if quiet_reason is not None:
        found.append(f"unchecked: the pipeline did not become quiet: {quiet_reason}")
    if verdict.unknown:
        found.append(f"unchecked: {verdict.unknown} messages were sent and never acknowledged")
    if not verdict.readings_stored:
        found.append("unchecked: no reading was stored")
    if latency.count != verdict.readings_stored:
        found.append(f"unchecked: commit times of {latency.count} of {verdict.readings_stored} readings")
    return found


def print_happened(
    console: Console, verdict: Verdict, latency: Latency, warmest: list[tuple[Any, ...]], coldest: list[tuple[Any, ...]]
) -> None:
    """Print what happened, before the judge has the last word."""
    rows = [(name, getattr(latency, name)) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
    print_table(console, "from intended send to committed row", ("", "ms"), rows)
    print_table(console, "dead letters", ("reason", "messages"), verdict.dead_by_reason.items())
    columns = ("tag", "mean °C", "lowest", "highest", "readings")
    print_table(console, f"{len(warmest)} hottest tags", columns, warmest)
    print_table(console, f"{len(coldest)} coldest tags", columns, coldest)


def print_around(console: Console, session: PipelineSession) -> None:
    """Say how to look at what was left running."""
    for what, command in around(session.state, session.settings, session.config_path, session.stack_folder):
        say(console, f"{what:<12}{command}")


def around(state: StackState, settings: Settings, config: Path, stack_folder: Path) -> list[tuple[str, str]]:
    """Return commands that work as they stand; each reads its password from the file."""
    postgres, mqtt, ray = state.postgres, state.mqtt, state.ray
    token = f"   token: cat {ray.token_file}" if ray.token_file else ""
    psql = f"psql -h {postgres.host} -p {postgres.port} -U {postgres.reader_user} -d {postgres.database}"
    query = "SELECT * FROM readings ORDER BY timestamp DESC LIMIT 9"
    publish = f"mosquitto_pub -V 5 -q 1 -h {mqtt.host} -p {mqtt.port} -u {mqtt.gateway_username} -t {settings.mqtt.topics[0]}"
    message = json.dumps({"device_id": "aa:bb:cc:dd:ee:ff", "temperature": 21.5})
    return [
        ("dashboard", f"{ray.dashboard_url}{token}"),
        ("fleet", f"rayapp status --config {config}"),
        ("database", f'PGPASSWORD="$(cat {postgres.reader_password_file})" {psql} -c "{query}"'),
        ("send one", f"{publish} -P \"$(cat {mqtt.gateway_password_file})\" -m '{message}'"),
        ("stop", f"rayapp stack down --dir {stack_folder}"),
    ]
