"""The command line: run, submit, stop, status, db, stack, demo, bench.

Commands import what they need when they run: `--help` must not wait for Ray.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import click

from rayapp import __version__
from rayapp.config import load_settings
from rayapp.log import log_to_stderr

_config = click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with settings; RUUVI_… variables win over it."
)


class _LazyGroup(click.Group):
    """Load a subcommand's module when it is used."""

    lazy: ClassVar = {
        "stack": ("rayapp.stack.cli", "stack"),
        "demo": ("rayapp.bench.cli", "demo"),
        "bench": ("rayapp.bench.cli", "bench"),
        "bench-ledger": ("rayapp.bench.ledger_cost", "bench_ledger"),
        "chaos": ("rayapp.chaos.cli", "chaos"),
        "partition": ("rayapp.partitions", "partition"),
        "dlq": ("rayapp.letters.cli", "dlq"),
        "replay": ("rayapp.reread.cli", "replay"),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *self.lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.lazy:
            import importlib

            module, name = self.lazy[cmd_name]
            command: Any = getattr(importlib.import_module(module), name)
            return command  # type: ignore[no-any-return]  # importlib gives no types
        return super().get_command(ctx, cmd_name)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rayapp")
def cli() -> None:
    """RuuviTag readings: MQTT → Kafka → anomaly detection → TimescaleDB, exactly once, on Ray.

    \b
    Examples:
      rayapp stack up --ray              real servers on this machine, loopback only
      rayapp submit --config rayapp.yaml --address http://127.0.0.1:8265
      rayapp status --config rayapp.yaml
    """  # noqa: D301 - click wants the backspace itself


@cli.command()
@_config
def run(config: Path | None) -> None:
    """Drive the pipeline until SIGTERM, then drain and exit 0 (the entrypoint of the Ray job).

    \b
    Example:
      ray job submit -- python -m rayapp run --config rayapp.yaml
    Exit codes: 0 drained, 2 configuration or schema refused, 3 a server is away, 4 another driver took over.
    """  # noqa: D301 - click wants the backspace itself
    from rayapp import driver

    log_to_stderr()
    sys.exit(driver.run(load_settings(config)))


@cli.command()
@_config
@click.option("--address", envvar="RAY_DASHBOARD_ADDRESS", default="http://127.0.0.1:8265", show_default=True, help="Ray's job address.")
@click.option("--job-id", default=None, help="Submission id; default: the pipeline's name and a random part.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def submit(config: Path | None, address: str, job_id: str | None, as_json: bool) -> None:
    """Submit the pipeline as a Ray job that is given time to drain when it is stopped.

    \b
    Example:
      rayapp submit --config rayapp.yaml --address http://127.0.0.1:8265
      ray job stop JOB_ID --address http://127.0.0.1:8265      drains, then ends
    """  # noqa: D301 - click wants the backspace itself
    from rayapp import jobs

    settings = load_settings(config)
    job = jobs.submit(settings, config, address, job_id)
    click.echo(
        json.dumps({"job_id": job, "address": address}) if as_json else f"submitted {job} to {address}; stop it with: rayapp stop {job}"
    )


@cli.command()
@click.argument("job_id")
@click.option("--address", envvar="RAY_DASHBOARD_ADDRESS", default="http://127.0.0.1:8265", show_default=True, help="Ray's job address.")
@click.option("--timeout-s", default=120.0, show_default=True, help="How long to wait for the drain.")
def stop(job_id: str, address: str, timeout_s: float) -> None:
    """Stop a submitted pipeline with `ray job stop` and wait until it has drained; exit 0 only then."""
    from rayapp import jobs

    state = jobs.stop(job_id, address, timeout_s)
    click.echo(f"{job_id}: {state}")
    sys.exit(0 if state in ("STOPPED", "SUCCEEDED") else 1)


@cli.command()
@_config
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(config: Path | None, as_json: bool) -> None:
    """Say what the driver sees: every slot, its state and its last end. Exit 0 running, 1 degraded, stopping or silent."""
    from rayapp.status import read_status, render

    found = read_status(load_settings(config))
    click.echo(json.dumps(found, default=str) if as_json else render(found))
    sys.exit(0 if found["state"] == "running" else 1)


@cli.group()
def db() -> None:
    """Look after the database."""


@db.command("migrate")
@_config
def db_migrate(config: Path | None) -> None:
    """Bring the database to the current schema, as its owner; a second run does nothing."""
    from actors.adapters.postgres import connect
    from rayapp.files import project_file
    from rayapp.migrate import database_mode, migrate

    settings = load_settings(config)
    connection = connect(settings.database, "owner", application="rayapp db migrate")
    done = migrate(connection, project_file("sql/migrations"))
    click.echo(f"{settings.database.name} ({database_mode(connection)}): " + (f"applied {', '.join(done)}" if done else "up to date"))
