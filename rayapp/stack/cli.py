"""`rayapp stack`: the local servers from the command line, for people, make targets and CI.

Exit codes: 0 done; 1 `status` found nothing running; 3 a server did not come up, or `status` found one
that does not answer; 4 a program is missing, the last line says what to run; 2 a wrong flag. Progress
goes to standard error, so that `--json` output is the only thing on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from rayapp.errors import ConfigurationError
from rayapp.stack.errors import ProgramMissing, StackError, StackNotRunning
from rayapp.stack.install import install_missing
from rayapp.stack.lifecycle import start_stack, stop_stack
from rayapp.stack.operate import ask_components, enable_gateways, process_ids
from rayapp.stack.options import DEFAULT_FOLDER, StackOptions, parse_use
from rayapp.stack.progress import StartProgress
from rayapp.stack.state import StackState, keeper_is_alive, load_state

EXIT_NOT_RUNNING, EXIT_DEGRADED, EXIT_MISSING = 1, 3, 4
FOLDER = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(DEFAULT_FOLDER),
    show_default=True,
    help="Folder of state file, passwords, logs and data.",
)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn this package's errors into a message on standard error and an exit code."""
    try:
        yield
    except ProgramMissing as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_MISSING)
    except StackNotRunning as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_NOT_RUNNING)
    except StackError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_DEGRADED)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


@click.group(name="stack")
def stack() -> None:
    r"""Run real servers on this machine: Kafka, schema registry, Mosquitto, PostgreSQL, Ray.

    \b
    Examples:
      rayapp stack install                 what apt-get must bring (once, as root)
      rayapp stack up --ray                start everything, wait until it serves
      rayapp stack status --json           ask every server again
      rayapp stack gateways enable         let gateways publish
      rayapp stack down                    stop and delete everything
    """


@stack.command()
@FOLDER
@click.option("--brokers", type=int, default=1, show_default=True, help="Kafka brokers: 1 or 3.")
@click.option("--ray/--no-ray", default=False, help="Also start a Ray head.")
@click.option("--ray-cpus", default=8, show_default=True, help="CPUs Ray may give away (a number to schedule by).")
@click.option("--ray-workers", default=0, show_default=True, help="Ray nodes beside the head.")
@click.option("--shared-buffers", default="128MB", show_default=True, help="PostgreSQL's shared_buffers.")
@click.option(
    "--use",
    "uses",
    multiple=True,
    metavar="COMPONENT=ADDRESS",
    help="Use a server that already runs; may be repeated (also RUUVI_STACK_USE=a=..,b=..).",
)
@click.option("--leash", is_flag=True, help="Stay in the foreground; stop everything when this command ends.")
@click.option("--json", "as_json", is_flag=True, help="Print the state file's content when ready.")
def up(
    folder: Path,
    brokers: int,
    ray: bool,
    ray_cpus: int,
    ray_workers: int,
    shared_buffers: str,
    uses: tuple[str, ...],
    leash: bool,
    as_json: bool,
) -> None:
    r"""Start the servers and wait until each answers a real question.

    \b
    Examples:
      rayapp stack up
      rayapp stack up --brokers 3 --ray
      rayapp stack up --use postgres=127.0.0.1:5432
    """
    with exit_codes():
        options = StackOptions(
            folder=folder,
            brokers=brokers,
            ray=ray,
            ray_num_cpus=ray_cpus,
            ray_workers=ray_workers,
            postgres_shared_buffers=shared_buffers,
            use=parse_use(uses, os.environ),
            leash=leash,
        )
        with StartProgress(Console(stderr=True)) as progress:
            running = start_stack(options, progress)
        state = running.state
        word = "already running" if running.already_running else "ready"
        click.echo(f"{word}: {running.folder / 'stack.json'}", err=True)
        if as_json:
            click.echo(state.to_json(), nl=False)
        if leash and not running.already_running:
            with running, contextlib.suppress(KeyboardInterrupt):
                psutil.Process(state.keeper_pid).wait()


@stack.command()
@FOLDER
@click.option("--keep-data", is_flag=True, help="Keep data, passwords and logs for the next `up`.")
def down(folder: Path, keep_data: bool) -> None:
    r"""Stop all servers in order and delete what the stack made; does nothing when none runs.

    \b
    Examples:
      rayapp stack down
      rayapp stack down --keep-data
    """
    with exit_codes():
        stopped = stop_stack(folder, keep_data=keep_data)
        click.echo("stopped" if stopped else "not running", err=True)


@stack.command()
@FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(folder: Path, as_json: bool) -> None:
    r"""Ask every server again. Exit 0 all serve, 1 not running, 3 at least one does not.

    \b
    Examples:
      rayapp stack status
      rayapp stack status --json
    """
    with exit_codes():
        state = _running_state(folder)
        rows = describe(state, ask_components(state))
        if as_json:
            click.echo(json.dumps({"running": True, "keeper_pid": state.keeper_pid, "components": rows}))
        else:
            _print_table(rows)
        if any(row["state"] != "ready" for row in rows.values()):
            sys.exit(EXIT_DEGRADED)


@stack.command()
def install() -> None:
    r"""Install missing programs with apt-get (needs root; else prints the line to run).

    \b
    Example:
      sudo rayapp stack install
    """
    with exit_codes():
        installed = install_missing(lambda text: click.echo(text, err=True))
        click.echo(f"installed: {', '.join(installed) or 'nothing was missing'}", err=True)


@stack.command()
@FOLDER
@click.argument("what", type=click.Choice(["enable", "disable"]))
def gateways(folder: Path, what: str) -> None:
    r"""Let the gateways' MQTT account in, or shut it out.

    Enable it only when the pipeline has subscribed: the broker acknowledges what nobody receives.

    \b
    Example:
      rayapp stack gateways enable
    """
    with exit_codes():
        enable_gateways(_running_state(folder), enabled=what == "enable")
        click.echo(f"gateways {what}d", err=True)


def describe(state: StackState, answers: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return what `status` shows: recorded state corrected by the answer, address, pids, memory."""
    pids = process_ids(state)
    rows: dict[str, dict[str, Any]] = {}
    for name, component in state.components.items():
        answer = answers.get(name, "")
        word = component.state if component.state != "ready" or not answer else "silent"
        rows[name] = {
            "state": word,
            "pid": component.pids[0] if component.pids else None,
            "pids": pids[name],
            "address": component.where,
            "rss_mb": _rss_mb(pids[name]),
            "external": component.external,
            "exit_code": component.exit_code,
            "answer": answer,
        }
    return rows


def _running_state(folder: Path) -> StackState:
    state = load_state(folder)
    if not keeper_is_alive(state):
        raise StackNotRunning(f"dir={folder}: its keeper (pid {state.keeper_pid}) is gone; `rayapp stack up`")
    return state


def _rss_mb(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_info().rss
    return round(total / 1e6, 1)


def _print_table(rows: dict[str, dict[str, Any]]) -> None:
    table = Table("component", "state", "pid", "RSS MB", "address", box=None, pad_edge=False)
    for name, row in rows.items():
        pid = "external" if row["external"] else str(row["pid"] or "-")
        table.add_row(name, row["state"], pid, str(row["rss_mb"]), row["address"])
    Console().print(table)
