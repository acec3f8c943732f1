"""`rayapp replay`: flags, questions, progress and exit codes.

Exit codes: 0 the job is done, or there was nothing to do; 1 it was stopped before its end or found conflicts;
2 usage, a range that the log does not hold, or a job that another process works on; 3 a server is away, start
the job again. The result goes to standard output, progress and conflicts to standard error.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.adapters.kafka import TopicIdentity, Topics
from actors.adapters.kafka_read import RangeReader
from actors.adapters.postgres import Connection, connect
from actors.adapters.registry import Registry
from actors.avro import Codec
from actors.consume.decode import Decoder
from rayapp.config import Settings, load_settings
from rayapp.errors import ConfigurationError
from rayapp.files import reading_schema
from rayapp.letters.interrupt import stop_asked
from rayapp.log import log_to_stderr
from rayapp.reread import jobs, plan
from rayapp.reread.jobs import Part
from rayapp.reread.run import Rereader

STOPPED_OR_CONFLICTS = 1
NAMED_CONFLICTS = 20
"""Offsets that are named for one batch; the counts are of all."""


@click.command()
@click.option(
    "--from", "low", default=None, metavar="TIME|OFFSET|start", help="First record: ISO (UTC), an age like 2h, an offset, start of the log."
)
@click.option(
    "--to", "high", default="next", show_default=True, metavar="TIME|OFFSET|next", help="Where to end; next = what the ledger has stored."
)
@click.option("--partition", "only", type=click.IntRange(min=0), multiple=True, help="May be given several times; all without it.")
@click.option("--job", "job_id", default=None, metavar="ID", help="Begin the job under this id, or go on with it; without it, a new one.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=None, metavar="N", help="Records a second at most.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--list", "list_jobs", is_flag=True, help="List the jobs there are, and do nothing.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def replay(
    low: str | None, high: str, only: tuple[int, ...], job_id: str | None, rate: float | None, yes: bool, list_jobs: bool, config: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Read a range of the readings topic into the table again, beside live traffic.

    Rows that are missing come back, rows that are there stay untouched, and the ledger is not moved. A reading that
    differs from the stored one is counted and named, the stored one stays. Killed or stopped, a job goes on where it
    was with the same --job. Times are those at which Kafka got the records.

    \b
    Examples:
      rayapp replay --from 2d --rate 5000
      rayapp replay --from 2026-03-01T08:00 --to 2026-03-01T09:30 --job restore-1 --yes
      rayapp replay --from 41200 --to next --partition 3
      rayapp replay --list
    Exit codes: 0 done, 1 stopped or conflicts found, 2 usage, 3 a server is away.
    """  # noqa: D301 - click wants the backspace itself
    settings, now = load_settings(config), datetime.now(UTC)
    log_to_stderr()
    connection = connect(settings.database, "writer", application=f"rayapp replay {job_id or ''}")
    try:
        if list_jobs:
            for job in jobs.listed(connection, settings):
                click.echo(json.dumps(job, default=str) if as_json else _job_line(job))
            return
        job_id = job_id or f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        jobs.lock(connection, settings, job_id)
        identity = Topics(settings.kafka).identity()
        parts = jobs.parts(connection, settings, job_id, identity)
        if parts:
            click.echo(f"job {job_id} is there already: it goes on with its own range", err=True)
        else:
            ranges = _ranges(connection, settings, identity, low, high, only, now)
            parts = [Part(p, start, start, stop) for p, (start, stop) in ranges.items()]
            if parts and not yes:
                click.confirm(
                    "\n".join([*(_part_line(settings.kafka.topic, part) for part in parts), "Replay this?"]), abort=True, err=True
                )
            jobs.create(connection, settings, job_id, identity, ranges)
        finished = _run(connection, settings, identity, job_id, parts, rate, as_json=as_json)
    finally:
        connection.close()
    _finish(settings, identity, job_id, finished, as_json=as_json)


def _ranges(
    connection: Connection, settings: Settings, identity: TopicIdentity, low: str | None, high: str, only: Sequence[int], now: datetime
) -> dict[int, tuple[int, int]]:
    """Return what a new job reads."""
    if low is None:
        raise ConfigurationError("--from: a new job needs it; an ISO time, an age like 2h, an offset, or start")
    start, stop = plan.parse_bound("--from", low, now), plan.parse_bound("--to", high, now)
    positions = jobs.ledger_positions(connection, settings, identity)
    unknown = sorted(set(only) - positions.keys())
    if unknown:
        raise ConfigurationError(
            f"--partition = {unknown[0]}: the ledger knows {', '.join(map(str, sorted(positions))) or 'no partition yet'}"
        )
    meant = sorted(set(only) or positions)
    with RangeReader(settings.kafka, settings.kafka.topic) as reader:
        known = {p: plan.Known(first, end, positions[p]) for p, (first, end) in reader.bounds(meant).items()}
        at = [reader.offsets_for_times(dict.fromkeys(meant, bound.time_us)) if bound.time_us is not None else {} for bound in (start, stop)]
    return plan.resolve(settings.kafka.topic, start, stop, known, *at)


def _run(
    connection: Connection,
    settings: Settings,
    identity: TopicIdentity,
    job_id: str,
    parts: Sequence[Part],
    rate: float | None,
    *,
    as_json: bool,
) -> bool:
    """Carry the job out and return whether it reached its end."""

    def conflicts(partition: int, offsets: Sequence[int]) -> None:
        more = f" and {len(offsets) - NAMED_CONFLICTS} more" if len(offsets) > NAMED_CONFLICTS else ""
        named = ", ".join(map(str, offsets[:NAMED_CONFLICTS]))
        click.echo(f"conflict: {settings.kafka.topic}[{partition}] offsets {named}{more}; the stored readings stay", err=True)

    with (
        Registry(settings.registry) as registry,
        stop_asked("stopping after the batch under way; the job can go on later") as stop,
        _progress(job_id, parts, as_json=as_json) as progress,
    ):
        schema = reading_schema()
        decoder = Decoder(Codec(schema), registry.register(f"{settings.kafka.topic}-value", schema), registry.schema_text)
        return Rereader(
            settings, job_id, identity, decoder, rate=rate, stop=stop, progress=progress, conflicts=conflicts
        ).run(connection)  # fmt: skip


def _finish(settings: Settings, identity: TopicIdentity, job_id: str, finished: bool, *, as_json: bool) -> None:
    """Say what the job did as the database has it, and exit."""
    connection = connect(settings.database, "writer", application="rayapp replay result")
    try:
        parts = jobs.parts(connection, settings, job_id, identity)
    finally:
        connection.close()
    names = ("stored", "duplicate", "other_gateway", "conflicts", "dead")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    if as_json:
        click.echo(json.dumps({"job": job_id, "done": finished, "partitions": len(parts), **sums}))
    elif not parts:
        click.echo("nothing lies in that range")
    else:
        told = ", ".join(f"{name} {count}" for name, count in sums.items())
        click.echo(f"job {job_id}: {'done' if finished else f'stopped; go on with --job {job_id}'}: {told}")
    sys.exit(0 if finished and not sums["conflicts"] else STOPPED_OR_CONFLICTS)


@contextlib.contextmanager
def _progress(job_id: str, parts: Sequence[Part], *, as_json: bool) -> Iterator[Callable[[int], None]]:
    """Show how far the job is: a bar on a terminal, with --json a line a second on standard output."""
    total = sum(part.end_offset - part.from_offset for part in parts)
    done, begun_s, told_s = sum(part.next_offset - part.from_offset for part in parts), time.monotonic(), time.monotonic()
    before = done
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar:
        task = bar.add_task(f"replay {job_id}", total=total, completed=done, rate=0.0)

        def advance(offsets: int) -> None:
            nonlocal done, told_s
            done += offsets
            rate = (done - before) / max(0.001, time.monotonic() - begun_s)
            bar.update(task, completed=done, rate=rate)
            if as_json and time.monotonic() - told_s >= 1.0:
                told_s = time.monotonic()
                click.echo(json.dumps({"job": job_id, "offsets": done, "of": total, "per_s": round(rate, 1)}))

        yield advance


def _part_line(topic: str, part: Part) -> str:
    return f"{topic}[{part.partition}] offsets {part.from_offset}..{part.end_offset - 1} ({part.end_offset - part.from_offset})"


def _job_line(job: dict[str, object]) -> str:
    return (
        f"{job['job_id']}  {job['topic']}[{job['partition']}]  {job['from_offset']}..{job['end_offset']} at {job['next_offset']}  {job['state']}"
        f"  stored {job['stored']}  duplicate {job['duplicate']}  conflicts {job['conflicts']}  dead {job['dead']}  since {job['started_at']:%Y-%m-%d %H:%M}"
    )
