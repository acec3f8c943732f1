"""`rayapp partition`: look at the ledger's partitions and let a halted one go on.

A partition halts when going on would mean to skip records or to store what
nobody understands. Only a person can decide that. resume moves the position if
asked to, writes down who decided what and why, and raises the epoch, so that
whoever held the partition finds out; the driver sees it within seconds and
claims it again.
"""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from actors.adapters.kafka import TopicIdentity, Topics
from actors.adapters.postgres import Connection, connect
from rayapp.config import Settings, load_settings
from rayapp.errors import ConfigurationError

_config = click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings.")

_COLUMNS = ("partition", "epoch", "owner", "next_offset", "records", "stored", "duplicate", "dead", "halted", "halted_at")


@click.group()
def partition() -> None:
    """Look at partitions; let a halted one go on."""


@partition.command("list")
@_config
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_command(config: Path | None, as_json: bool) -> None:
    """List the ledger's partitions. Exit 0 none is halted, 1 some are.

    \b
    Example:
      rayapp partition list --config rayapp.yaml
    """  # noqa: D301 - click wants the backspace itself
    settings = load_settings(config)
    connection = connect(settings.database, "driver", application="rayapp partition list", autocommit=True)
    try:
        rows = connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM ingest_ledger WHERE pipeline = %s AND topic = %s ORDER BY partition",
            (settings.pipeline, settings.kafka.topic),
        )
    finally:
        connection.close()
    for row in rows:
        seen = dict(zip(_COLUMNS, row, strict=True))
        click.echo(json.dumps(seen, default=str) if as_json else _line(seen))
    sys.exit(1 if any(row[-2] is not None for row in rows) else 0)


@partition.command()
@click.argument("topic")
@click.argument("number", metavar="PARTITION", type=click.IntRange(min=0))
@_config
@click.option(
    "--at", default="next", show_default=True, help="Where to go on: next (the ledger's position), start or end of the log, OFFSET."
)
@click.option("--accept-topic", is_flag=True, help="The topic was made anew: count the one that Kafka has now.")
@click.option("--why", required=True, help="Written down with your name and the time.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def resume(topic: str, number: int, config: Path | None, at: str, accept_topic: bool, why: str, yes: bool) -> None:
    """Let a halted partition go on; records between the ledger's position and the new one are given up.

    \b
    Examples:
      rayapp partition resume iot-sensor-data 3 --at next  --why "dead letters were a test"
      rayapp partition resume iot-sensor-data 3 --at start --why "retention passed: two days are lost"
    Exit codes: 0 resumed, 2 refused (the message says why), 3 a server is away.
    """  # noqa: D301 - click wants the backspace itself
    settings = load_settings(config)
    if topic != settings.kafka.topic:
        _refuse(f"TOPIC = {topic}: the pipeline reads {settings.kafka.topic}; name that, or another --config")
    topics = Topics(settings.kafka)
    connection = connect(settings.database, "driver", application="rayapp partition resume")
    try:
        decision = decide(
            connection, settings, topics.identity(), topics.offsets(topic, settings.kafka.partitions), number, at, accept_topic
        )
        click.echo(decision["words"])
        if not yes:
            click.confirm("Go on?", abort=True)
        apply(connection, settings, decision, why)
    except ConfigurationError as error:
        _refuse(str(error))
    finally:
        connection.close()
    click.echo(f"{topic}[{number}] resumed at {decision['to_offset']}; a running driver claims it within seconds")


def decide(
    connection: Connection,
    settings: Settings,
    identity: TopicIdentity,
    log: dict[int, tuple[int, int]],
    number: int,
    at: str,
    accept_topic: bool,
) -> dict[str, Any]:
    """Return what resuming would do.

    Args:
        log: partition -> (first, next) offset in Kafka.

    Raises:
        ConfigurationError: it cannot be done so; names the rule and the fix.
    """
    rows = connection.execute(
        "SELECT next_offset, records, halted, cluster_id, topic_id, epoch FROM ingest_ledger"
        " WHERE pipeline = %s AND topic = %s AND partition = %s",
        (settings.pipeline, settings.kafka.topic, number),
    )
    connection.rollback()
    if not rows or number not in log:
        raise ConfigurationError(f"PARTITION = {number}: the ledger knows no such partition; `rayapp partition list` shows those it knows")
    position, records, halted, cluster_id, topic_id, epoch = rows[0]
    first, end = log[number]
    anew = (cluster_id, topic_id) != (identity.cluster_id, identity.topic_id)
    if anew and not accept_topic:
        raise ConfigurationError(
            f"the ledger counts topic {topic_id}, Kafka has {identity.topic_id}: it was made anew, and old offsets mean nothing in it; "
            "add --accept-topic --at start"
        )
    if halted is None and not anew:
        raise ConfigurationError(f"PARTITION = {number}: it is not halted; nothing to do")
    places = {"next": int(position), "start": first, "end": end}
    if at not in places and not at.isdigit():
        raise ConfigurationError(f"--at = {at}: must be next, start, end or an offset")
    to_offset = places[at] if at in places else int(at)
    if not first <= to_offset <= end:
        raise ConfigurationError(
            f"--at = {at}: offset {to_offset} is outside the log, which holds {first}..{end}; choose one inside, or start"
        )
    skipped = max(0, to_offset - int(position)) if not anew else 0
    words = f"halted because: {halted or 'the topic was made anew'}\nposition {position} -> {to_offset} (the log holds {first}..{end})" + (
        f"; {skipped} offsets are given up" if skipped else ""
    )
    return {
        "partition": number,
        "from_offset": int(position),
        "to_offset": to_offset,
        "records": int(records),
        "epoch": int(epoch),
        "halted": halted,
        "identity": identity,
        "anew": anew,
        "words": words,
    }


def apply(connection: Connection, settings: Settings, decision: dict[str, Any], why: str) -> None:
    """Carry a decision out, in one transaction with the note of who made it.

    Raises:
        ConfigurationError: the partition changed since the decision.
    """
    identity: TopicIdentity = decision["identity"]
    changed = connection.count(
        "UPDATE ingest_ledger SET halted = NULL, halted_at = NULL, epoch = epoch + 1, owner = '', next_offset = %s, counted_from = %s,"
        " leader_epoch = NULL, cluster_id = %s, topic_id = %s"
        " WHERE pipeline = %s AND topic = %s AND partition = %s AND epoch = %s AND next_offset = %s",
        (
            decision["to_offset"], decision["to_offset"] - decision["records"], identity.cluster_id, identity.topic_id,
            settings.pipeline, settings.kafka.topic, decision["partition"], decision["epoch"], decision["from_offset"],
        ),
    )  # fmt: skip
    if changed != 1:
        connection.rollback()
        raise ConfigurationError(f"PARTITION = {decision['partition']}: it moved in the meantime; run the command again")
    if decision["to_offset"] != decision["from_offset"] or decision["anew"]:
        connection.count(
            "DELETE FROM detector_snapshots WHERE pipeline = %s AND topic = %s AND partition = %s",
            (settings.pipeline, settings.kafka.topic, decision["partition"]),
        )
    connection.count(
        "INSERT INTO partition_decisions (pipeline, topic, partition, decided_by, why, halted, from_offset, to_offset)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
        (
            settings.pipeline, settings.kafka.topic, decision["partition"], getpass.getuser(), why, decision["halted"],
            decision["from_offset"], decision["to_offset"],
        ),
    )  # fmt: skip
    connection.commit()


def _line(seen: dict[str, Any]) -> str:
    halted = f"  HALTED since {seen['halted_at']}: {seen['halted']}" if seen["halted"] else ""
    return (
        f"{seen['partition']:>4}  next {seen['next_offset']:>12}  epoch {seen['epoch']:>5}  stored {seen['stored']:>12}"
        f"  duplicate {seen['duplicate']:>9}  dead {seen['dead']:>7}  {seen['owner']}{halted}"
    )


def _refuse(words: str) -> NoReturn:
    click.echo(f"rayapp partition: {words}", err=True)
    sys.exit(2)
