"""`rayapp dlq`: list, show, replay, drop.

Exit codes: 0 done; 1 nothing matched, or letters stayed refused; 2 a wrong flag, id or setting; 3 a server is
away. What was asked for goes to standard output, progress and remarks to standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from actors.adapters.kafka import RecordProducer
from actors.adapters.postgres import Connection, connect
from actors.adapters.registry import Registry
from actors.avro import Codec
from rayapp.config import Settings, load_settings
from rayapp.errors import ConfigurationError, DependencyUnavailable
from rayapp.files import reading_schema
from rayapp.letters import select, states, topic, view
from rayapp.letters.interrupt import stop_asked
from rayapp.letters.judge import Judge
from rayapp.letters.letter import Letter, apply_decisions
from rayapp.letters.replay import Replayer, Tally

NOTHING_OR_REFUSED = 1
_config = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flags that choose letters."""
    for option in (
        click.option("--device", default=None, metavar="MAC", help="The tag, or the device_id of one of its sensors."),
        click.option("--id", "prefixes", multiple=True, metavar="PREFIX", help="The id begins so; may be given several times."),
        click.option("--until", default=None, metavar="TIME", help="First judged before this."),
        click.option("--since", default=None, metavar="TIME", help="Last judged at or after this: ISO (UTC) or an age like 2h, 3d."),
        click.option("--stage", type=click.Choice(["ingest", "consume", "write"]), default=None, help="Who refused it."),
        click.option("--reason", default=None, metavar="PATTERN", help="Of the last refusal, e.g. 'bad_value:*'."),
    ):
        command = option(command)
    return command


@dataclass(frozen=True)
class _Chosen:
    """The letters a command is about, and what they were chosen from."""

    settings: Settings
    connection: Connection
    letters: list[Letter]


@click.group()
def dlq() -> None:
    """Dead letters: messages that are no readings. Look at them, try them again, put them aside.

    \b
    Examples:
      rayapp dlq list --since 2h --reason 'bad_value:*'
      rayapp dlq list --count-by reason
      rayapp dlq show iot-sensor-data/3/41200
      rayapp dlq replay --reason unknown_schema --dry-run
      rayapp dlq drop --device C6:8D:C6:26:39:A6 --why "tag on the test bench" --yes
    A letter is all copies under one id. Its state is new, replayed, refused (replayed, and came back) or dropped.
    Exit codes: 0 done, 1 nothing matched or letters stayed refused, 2 usage, 3 a server is away.
    """  # noqa: D301 - click wants the backspace itself


@dlq.command("list")
@_filters
@click.option("--state", type=click.Choice(select.STATES), default="new", show_default=True, help="new takes refused along.")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="The newest so many.")
@click.option("--count-by", type=click.Choice(select.COUNTED_BY), default=None, help="Counts instead of letters.")
@_config
@_json
def list_command(config: Path | None, as_json: bool, limit: int | None, count_by: str | None, **flags: Any) -> None:
    """List dead letters, oldest first.

    \b
    Examples:
      rayapp dlq list --state all --limit 20
      rayapp dlq list --count-by reason --state all      beside what the ledger counted
    """  # noqa: D301 - click wants the backspace itself
    with _choose(config, (), flags) as chosen:
        if not chosen.letters:
            _nothing()
        if count_by is not None:
            counts = select.count_by(chosen.letters, count_by)
            ledger = states.ledger_counts(chosen.connection, chosen.settings) if count_by == "reason" else None
            for line in view.counts(count_by, counts, ledger, as_json=as_json):
                click.echo(line)
            if ledger is not None:
                click.echo(view.WHY_COUNTS_DIFFER, err=True)
            return
        for letter in chosen.letters[-(limit or 0) :]:
            click.echo(json.dumps(view.as_object(letter), ensure_ascii=False) if as_json else view.line(letter))


@dlq.command()
@click.argument("letter_id", metavar="ID")
@click.option("--raw", is_flag=True, help="Write the message's exact bytes to standard output, and nothing else.")
@_config
@_json
def show(letter_id: str, raw: bool, config: Path | None, as_json: bool) -> None:
    """Show one letter: its copies, its bytes, what they mean, and what parser and decoder say of them today.

    \b
    Examples:
      rayapp dlq show iot-sensor-data/3/41200
      rayapp dlq show ruuvitag/data/5f0c --raw > message.bin     the beginning of an id is enough
    """  # noqa: D301 - click wants the backspace itself
    with _choose(config, (letter_id,), {"state": "all"}) as chosen:
        (letter,) = chosen.letters
        copies = topic.read_copies(chosen.settings.kafka, letter)
        value = copies[0].value or b""
        if raw:
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
            return
        try:
            with _judge(chosen.settings) as judge:
                verdict, away = judge.judge(letter, value), None
        except DependencyUnavailable as error:
            verdict, away = None, str(error)
        found = view.details(letter, copies, verdict, away)
        click.echo(json.dumps(found, ensure_ascii=False, default=str) if as_json else view.page(found))


@dlq.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--again", is_flag=True, help="Also what was replayed or dropped before, and conflicts.")
@click.option("--dry-run", is_flag=True, help="Say what would happen, send nothing.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=None, metavar="N", help="Records a second at most.")
@_yes
@_config
@_json
def replay(
    ids: tuple[str, ...], config: Path | None, again: bool, dry_run: bool, rate: float | None, yes: bool, as_json: bool, **flags: Any
) -> None:
    """Send letters through the pipeline again; what they make twice is absorbed.

    A message that MQTT brought is parsed again, with the time at which it came first; a Kafka record goes back to
    its partition as it was. What today's rules still refuse stays and is named. Ctrl-C finishes what is on its way.

    \b
    Examples:
      rayapp dlq replay --reason 'time_out_of_range:*' --dry-run
      rayapp dlq replay iot-sensor-data/3/41200 --yes
      rayapp dlq replay --since 1d --rate 500 --yes
    """  # noqa: D301 - click wants the backspace itself
    with _choose(config, ids, {**flags, "state": "all"}) as chosen, _judge(chosen.settings) as judge:
        skipped = {} if again else {letter.id: why for letter in chosen.letters if (why := view.why_skipped(letter))}
        letters = [letter for letter in chosen.letters if letter.id not in skipped]
        for why in sorted(set(skipped.values())):
            click.echo(f"skipped {sum(w == why for w in skipped.values())}: {why}", err=True)
        if not letters:
            _nothing()
        settings = chosen.settings
        values = topic.read_values(settings.kafka, letters)
        if dry_run:
            tally = Tally()
            for letter, value in values:
                verdict = judge.judge(letter, value)
                tally.letters += verdict.refused is None
                tally.records += len(verdict.records)
                if verdict.refused is not None:
                    tally.refused[letter.id] = verdict.refused
        else:
            if not yes:
                click.confirm(f"Replay {len(letters)} letters to {settings.kafka.topic}?", abort=True)
            decide = partial(states.decide, chosen.connection, settings, state="replayed", why="")
            with stop_asked("stopping: waiting for the reports of what is on its way") as stop:
                producer = RecordProducer(settings.kafka)
                tally = Replayer(producer, settings.kafka.topic, judge.judge, decide, rate=rate, stop=stop).run(values)
        for line in view.tally(tally, len(skipped), dry_run=dry_run, as_json=as_json):
            click.echo(line)
        sys.exit(NOTHING_OR_REFUSED if tally.refused or tally.stopped else 0)


@dlq.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option("--why", required=True, help="Written down with your name and the time.")
@_yes
@_config
def drop(ids: tuple[str, ...], config: Path | None, why: str, yes: bool, **flags: Any) -> None:
    """Put letters aside: they are listed no more and not replayed (without --again). The topic keeps them.

    \b
    Example:
      rayapp dlq drop --reason not_json --until 2026-03-01 --why "port scanner" --yes
    """  # noqa: D301 - click wants the backspace itself
    with _choose(config, ids, {**flags, "state": "new"}) as chosen:
        letters = [letter for letter in chosen.letters if letter.state != "dropped"]
        if not letters:
            _nothing()
        if not yes:
            click.confirm(f"Drop {len(letters)} letters?", abort=True)
        states.decide(chosen.connection, chosen.settings, letters, state="dropped", why=why)
        click.echo(f"dropped {len(letters)} letters")


@contextlib.contextmanager
def _choose(config: Path | None, ids: tuple[str, ...], flags: dict[str, Any]) -> Iterator[_Chosen]:
    """Read topic and states, and bring the letters that ids or flags mean."""
    settings, now = load_settings(config), datetime.now(UTC)
    wanted = select.Filters(
        reason=flags.get("reason"), stage=flags.get("stage"), ids=tuple(flags.get("prefixes", ())), device=flags.get("device"),
        since_us=select.parse_moment(flags["since"], now) if flags.get("since") else None,
        until_us=select.parse_moment(flags["until"], now) if flags.get("until") else None,
        state=flags["state"],
    )  # fmt: skip
    chosen_by_flag = [name for name, value in flags.items() if value and name != "state"]
    if ids and chosen_by_flag:
        raise ConfigurationError(f"ID and --{chosen_by_flag[0]}: name letters by their ids or by filters, not by both")
    connection = connect(settings.database, "driver", application="rayapp dlq")
    try:
        with view.progress() as progress:
            letters = list(topic.scan(settings.kafka, progress).values())
        apply_decisions(letters, states.decisions(connection, settings))
        yield _Chosen(
            settings, connection, select.named(letters, ids) if ids else [letter for letter in letters if select.matches(letter, wanted)]
        )
    finally:
        connection.close()


@contextlib.contextmanager
def _judge(settings: Settings) -> Iterator[Judge]:
    """Bring today's parser and decoder, under the schema id that the registry has for our schema."""
    schema = reading_schema()
    with Registry(settings.registry) as registry:
        schema_id = registry.register(f"{settings.kafka.topic}-value", schema)
        yield Judge(settings, Codec(schema), schema_id, registry.schema_text)


def _nothing() -> None:
    click.echo("no letter matches", err=True)
    sys.exit(NOTHING_OR_REFUSED)
