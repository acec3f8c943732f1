"""`rayapp chaos`: run faults from a seed against a whole pipeline, and prove that the judge can fail."""

from __future__ import annotations

from pathlib import Path

import click

from rayapp.bench.cli import finish
from rayapp.chaos.plan import KINDS

_POSITIVE = click.FloatRange(min=0, min_open=True)
_folder = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".bench/chaos"),
    show_default=True,
    help="Servers, ledgers, results.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Only the JSON object on standard output; the rest goes to standard error.")


@click.group(invoke_without_command=True)
@click.option("--seed", type=click.IntRange(min=1), default=None, help="Decides faults and values; default: random, and printed.")
@click.option("--minutes", type=_POSITIVE, default=20.0, show_default=True, help="Length of the traffic.")
@click.option("--rate", type=_POSITIVE, default=1000.0, show_default=True, help="MQTT messages per second; each is nine readings.")
@click.option("--every", "every_s", type=_POSITIVE, default=20.0, show_default=True, help="Seconds from one fault to the next.")
@click.option("--kinds", default=",".join(KINDS), help="Comma-separated kinds of faults; default: all.")
@_folder
@_json
@click.option("--keep", is_flag=True, help="Leave servers and job running.")
@click.pass_context
def chaos(
    context: click.Context,
    seed: int | None,
    minutes: float,
    rate: float,
    every_s: float,
    kinds: str,
    folder: Path,
    as_json: bool,
    keep: bool,
) -> None:
    """Break a whole pipeline again and again while gateways send, and judge every reading by what was sent.

    \b
    Examples:
      rayapp chaos --seed 7 --minutes 20
      rayapp chaos --minutes 2 --every 10 --kinds actor_kill,database_kill
      rayapp chaos prove                          five planted bugs, each must be found

    \b
    Kinds: actor_kill actor_term actor_stop driver_kill driver_stop mqtt_term mqtt_kill kafka_kill
      database_kill database_restart registry_kill cut delay blackhole disk_full (root)

    \b
    Exit codes: 0 all promises kept and the run was valid; 1 a promise was broken; 3 the run was
    invalid (a kind did not occur, a fault met no work, ...); 4 it could not be run.
    """  # noqa: D301 - click wants the backspace itself
    if context.invoked_subcommand is not None:
        return
    from rayapp.chaos.run import ChaosOptions, run_chaos

    chosen = tuple(name.strip() for name in kinds.split(",") if name.strip())
    options = ChaosOptions(folder=folder, seed=seed, minutes=minutes, rate=rate, every_s=every_s, kinds=chosen, keep=keep)
    finish(lambda console: run_chaos(options, console), as_json=as_json)
