"""`rayapp bench` and `rayapp demo`: exit codes, Ctrl-C, and the JSON object as the last line.

Whatever happens, the last line of standard output is one JSON object and
nothing is left running (unless --keep was given).
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console

from rayapp.bench.plant import KINDS
from rayapp.errors import ConfigurationError, RayappError
from rayapp.stack.errors import ProgramMissing

EXIT_COULD_NOT_RUN = 4
EXIT_INTERRUPTED = 130
PLAIN_WIDTH = 140
"""A log has no width; without this, tables would be cut at 80."""

_POSITIVE = click.FloatRange(min=0, min_open=True)
_SHARE = click.FloatRange(0, 1)


@click.command()
@click.option("--rate", type=_POSITIVE, default=2500.0, show_default=True, help="MQTT messages per second; each is nine readings.")
@click.option("--seconds", type=_POSITIVE, default=60.0, show_default=True, help="Length of the measured run.")
@click.option("--tags", type=click.IntRange(min=1), default=200, show_default=True, help="Simulated tags.")
@click.option("--malformed-share", type=_SHARE, default=0.01, show_default=True, help="Share of broken payloads.")
@click.option("--fault-share", type=_SHARE, default=0.01, show_default=True, help="Share of messages with one anomaly.")
@click.option("--gateways", type=click.IntRange(min=1), default=1, show_default=True, help="Simulated gateways.")
@click.option("--warmup-seconds", type=_POSITIVE, default=5.0, show_default=True, help="Load before the measured run.")
@click.option("--seed", type=click.IntRange(min=1), default=None, help="Decides values and MACs; default: random.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".bench"),
    show_default=True,
    help="Servers, ledgers, results.",
)
@click.option("--json", "as_json", is_flag=True, help="Only the JSON object on standard output; the rest goes to standard error.")
@click.option("--keep", is_flag=True, help="Leave servers and job running.")
@click.option("--plant", type=click.Choice(KINDS), default=None, help="Plant this fault before judging, to see the judge fail (exit 1).")
def bench(folder: Path, as_json: bool, plant: str | None, **options: Any) -> None:
    """Measure the pipeline on real servers of its own: latency, cost, and whether every promise was kept.

    \b
    Example:
      rayapp bench --rate 2500 --seconds 60
      rayapp bench --seconds 5 --plant lost        must exit 1

    \b
    Exit codes: 0 all promises kept and the run was valid; 1 a promise was broken; 3 the run was
    invalid (the load slipped, samples are missing, ...); 4 it could not be run.
    """  # noqa: D301 - click wants the backspace itself
    from rayapp.bench.measure import BenchOptions, run_bench

    chosen = BenchOptions(folder=folder, plant=plant or "", **options)
    finish(lambda console: _pair(run_bench(chosen, console)), as_json=as_json)


@click.command()
@click.option("--seconds", type=_POSITIVE, default=60.0, show_default=True, help="How long the gateways send.")
@click.option("--tags", type=click.IntRange(min=1), default=200, show_default=True, help="Simulated tags.")
@click.option("--rate", type=_POSITIVE, default=200.0, show_default=True, help="MQTT messages per second; each is nine readings.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".bench/demo"),
    show_default=True,
    help="Servers, ledgers, results.",
)
@click.option("--json", "as_json", is_flag=True, help="Only the JSON object on standard output; the rest goes to standard error.")
@click.option("--keep", is_flag=True, help="Leave servers and job running, and say how to look around.")
def demo(folder: Path, as_json: bool, **options: Any) -> None:
    """Show the whole pipeline, from nothing: servers, job, gateways, a table of what happened, everything stopped again.

    \b
    Example:
      rayapp demo
      rayapp demo --seconds 15 --keep

    \b
    Exit codes: 0 nothing lost, doubled or foreign, and everything was checked; 1 not so; 4 it could not be run.
    """  # noqa: D301 - click wants the backspace itself
    from rayapp.bench.demo import DemoOptions, run_demo

    chosen = DemoOptions(folder=folder, **options)
    finish(lambda console: _pair(run_demo(chosen, console)), as_json=as_json)


def _pair(result: Any) -> tuple[dict[str, Any], int]:
    return result.figures, result.exit_code


def finish(work: Callable[[Console], tuple[dict[str, Any], int]], *, as_json: bool) -> NoReturn:
    """Run a command's work and end the process with its code, its figures as the last line."""
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    with _terminable():
        try:
            figures, code = work(console)
        except KeyboardInterrupt:
            figures, code = {"valid": False, "error": "interrupted; everything was stopped"}, EXIT_INTERRUPTED
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        except (RayappError, ProgramMissing) as error:
            click.echo(f"rayapp: {error}", err=True)
            figures, code = {"valid": False, "error": str(error)}, EXIT_COULD_NOT_RUN
    click.echo(json.dumps(figures, default=str))
    sys.stdout.flush()
    sys.exit(code)


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end us like Ctrl-C: in order."""

    def interrupt(_number: int, _frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
