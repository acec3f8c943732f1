"""`rayapp chaos`: run faults from a seed against a whole pipeline, and prove that the judge can fail."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from rayapp.bench.cli import finish
from rayapp.chaos.planted import BUGS

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
@click.option("--kinds", default=None, help="Comma-separated kinds of faults, each must occur; default: all, as far as the time allows.")
@click.option("--quick", is_flag=True, help="The run of two minutes that belongs to the tests: fourteen faults, each must occur.")
@_folder
@_json
@click.option("--keep", is_flag=True, help="Leave servers and job running; the job then waits, as the network between them ends with us.")
@click.pass_context
def chaos(
    context: click.Context,
    seed: int | None,
    minutes: float,
    rate: float,
    every_s: float,
    kinds: str | None,
    quick: bool,
    folder: Path,
    as_json: bool,
    keep: bool,
) -> None:
    """Break a whole pipeline again and again while gateways send, and judge every reading by what was sent.

    \b
    Examples:
      rayapp chaos --seed 7 --minutes 20
      rayapp chaos --quick
      rayapp chaos --minutes 2 --every 10 --kinds actor_kill,database_kill
      rayapp chaos prove                          five planted bugs, each must be found

    \b
    Kinds: actor_kill actor_term actor_stop driver_kill driver_stop mqtt_term mqtt_kill kafka_kill
      node_kill database_kill database_restart registry_kill cut delay blackhole disk_full (root)

    \b
    Exit codes: 0 all promises kept and the run was valid; 1 a promise was broken; 3 the run was
    invalid (a fault was not done, or met no work; a run long enough for every kind on every role
    did not have them all; ...); 4 it could not be run.
    """  # noqa: D301 - click wants the backspace itself
    if context.invoked_subcommand is not None:
        return
    given = [name for name in ("minutes", "every_s", "kinds") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if quick and given:
        raise click.UsageError("--quick has its own length and faults: leave out --minutes, --every and --kinds")
    from rayapp.chaos.run import ChaosOptions, run_chaos

    chosen = None if kinds is None else tuple(name.strip() for name in kinds.split(",") if name.strip())
    options = ChaosOptions(folder=folder, seed=seed, minutes=minutes, rate=rate, every_s=every_s, kinds=chosen, quick=quick, keep=keep)
    finish(lambda console: run_chaos(options, console), as_json=as_json)


@chaos.command()
@click.option("--bugs", default=",".join(BUGS), show_default=True, help="Comma-separated; which bugs to plant.")
@_folder
@_json
def prove(bugs: str, folder: Path, as_json: bool) -> None:
    """Plant five bugs one after another; the judge must find each, and complain of none that is not there.

    \b
    Example:
      rayapp chaos prove

    \b
    Exit codes: 0 every bug was found and there was no false alarm; 1 not so; 4 it could not be run.
    """  # noqa: D301 - click wants the backspace itself
    from rayapp.chaos.prove import run_prove

    chosen = [name.strip() for name in bugs.split(",") if name.strip()]
    unknown = sorted(set(chosen) - set(BUGS))
    if unknown or not chosen:
        raise click.BadParameter(f"{', '.join(unknown) or 'none'}: must be some of {', '.join(BUGS)}", param_hint="--bugs")
    finish(lambda console: run_prove(folder, console, chosen), as_json=as_json)
