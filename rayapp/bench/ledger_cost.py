"""`rayapp bench-ledger`: what exactly-once costs, in CPU per million readings.

The same batches are written by the same code into the same table with the same
indexes, with the ledger and without: without, nothing is asked before the COPY
and nothing updated after it, and the transaction commits all the same. The two take
turns batch by batch, and in going first, so that whatever else the machine does
happens to both, over one connection, so that no backend is luckier than the
other. Counted is the client's CPU within write() and the backend's; what the
server's other processes do (WAL, checkpoints) is shared and left out.

One round gives one ratio, from an empty table on; the figure is their median.
When the rounds disagree too much to say, the run is invalid, not good.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection, connect
from actors.base import now_us
from actors.batch import READING_SCHEMA, Batch, Outcome, PartitionClaim
from actors.readings import SENSOR_OF_SUFFIX
from actors.write.ledger import Counts, Ledger
from actors.write.store import BatchStore, PartitionWriter
from rayapp.bench.cli import finish
from rayapp.claims import Claims
from rayapp.config import PlaceSettings, Settings
from rayapp.errors import RayappError
from rayapp.files import project_file
from rayapp.migrate import migrate
from rayapp.stack import StackOptions, StackState, start_stack

LIMIT_PERCENT = 5.0
MIN_ROUNDS = 5
NOISE_PERCENT = 2.0
"""The median is not believed when its own uncertainty is larger."""
TYPICAL_ROWS = 5_000
TAGS = 200
TOPIC = "bench-ledger"

EXIT_TOO_DEAR = 1
EXIT_NOISY = 3


class NoLedger(Ledger):
    """A ledger that asks and writes nothing: every batch is the next one."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        super().__init__(connection, pipeline)
        self._position = 0

    def next_offset(self, claim: PartitionClaim) -> int:  # noqa: ARG002 - the ledger's signature
        """Return where the last batch ended."""
        return self._position

    def advance(self, batch: Batch, counts: Counts) -> None:  # noqa: ARG002
        """Remember where the batch ended."""
        self._position = batch.after


@dataclass(frozen=True)
class Round:
    """CPU seconds per million rows of one round, with the ledger and without."""

    with_ledger: float
    without: float

    @property
    def ratio(self) -> float:
        """How much more it is with the ledger; 1 = nothing."""
        return self.with_ledger / self.without


@dataclass(frozen=True)
class Cost:
    """What the rounds say together.

    Attributes:
        percent: the median round's surplus.
        uncertainty_percent: standard error of that median, from the rounds' quartiles; None with too few rounds.
    """

    percent: float
    uncertainty_percent: float | None
    valid: bool
    reason: str


def judge(rounds: Sequence[Round]) -> Cost:
    """Return the ledger's cost, and whether the rounds agree well enough to say."""
    ratios = sorted(each.ratio for each in rounds)
    percent = (statistics.median(ratios) - 1) * 100
    if len(ratios) < MIN_ROUNDS:
        return Cost(percent, None, valid=False, reason=f"{len(ratios)} rounds, at least {MIN_ROUNDS} are needed")
    low, _, high = statistics.quantiles(ratios, n=4)
    # Of a normal distribution: 1.349 standard deviations between the quartiles, and a median's error is 1.253 times a mean's.
    error = (high - low) / 1.349 * 1.253 / len(ratios) ** 0.5 * 100
    noisy = error > NOISE_PERCENT
    return Cost(percent, error, valid=not noisy, reason=f"the median is uncertain by {error:.1f} points of per cent" if noisy else "")


@click.command("bench-ledger")
@click.option("--batches", type=click.IntRange(min=1), default=100, show_default=True, help="Batches a round, with and without each.")
@click.option(
    "--rows", type=click.IntRange(min=1), multiple=True, default=(TYPICAL_ROWS, 1_000), show_default=True, help="Rows a batch; may repeat."
)
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Each gives one ratio.")
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path(".bench/ledger"), show_default=True, help="Server."
)
@click.option("--json", "as_json", is_flag=True, help="Only the JSON object on standard output; the rest goes to standard error.")
def bench_ledger(batches: int, rows: tuple[int, ...], rounds: int, folder: Path, as_json: bool) -> None:
    """Measure what the ledger costs: CPU per million readings with and without it, on a PostgreSQL of its own.

    \b
    Example:
      rayapp bench-ledger --batches 100 --rows 5000 --rounds 7

    \b
    Exit codes: 0 at most 5 % more; 1 more than that; 3 too few rounds, or they disagree too much; 4 it could not be
    run. The first of --rows decides, the others are shown beside it.
    """  # noqa: D301 - click wants the backspace itself
    finish(lambda console: run(console, folder, batches, rows, rounds), as_json=as_json)


def run(console: Console, folder: Path, batches: int, sizes: Sequence[int], rounds: int) -> tuple[dict[str, Any], int]:
    """Measure, print a table, and return the figures and the exit code."""
    found: dict[int, list[Round]] = {size: [] for size in sizes}
    with start_stack(StackOptions(folder=folder, components=("postgres",), leash=True)) as stack:
        plant = _Plant(stack.state)
        for size in sizes:
            plant.round(2, size)  # devices are learnt, caches are warm
        for number in range(rounds):
            for size in sizes:
                found[size].append(plant.round(batches, size))
            console.print(f"round {number + 1}: " + ", ".join(f"{size} rows {(found[size][-1].ratio - 1) * 100:+.1f} %" for size in sizes))
        plant.close()
    costs = {size: judge(each) for size, each in found.items()}
    console.print(_table(found, costs))
    decides = costs[sizes[0]]
    figures = {
        "valid": decides.valid,
        "reason": decides.reason,
        "ledger_cost_percent": round(decides.percent, 2),
        "limit_percent": LIMIT_PERCENT,
        "batches": batches,
        "rounds": rounds,
        "by_rows": {
            size: {
                "cost_percent": round(costs[size].percent, 2),
                "uncertainty_percent": _rounded(costs[size].uncertainty_percent),
                "with_cpu_s_per_m": round(statistics.median(each.with_ledger for each in found[size]), 3),
                "without_cpu_s_per_m": round(statistics.median(each.without for each in found[size]), 3),
                "rounds": [[round(each.with_ledger, 3), round(each.without, 3)] for each in found[size]],
            }
            for size in sizes
        },
    }
    if not decides.valid:
        return figures, EXIT_NOISY
    return figures, 0 if decides.percent <= LIMIT_PERCENT else EXIT_TOO_DEAR


@dataclass
class _Side:
    """With or without the ledger: a partition, and what its batches have used."""

    claim: PartitionClaim
    writer: PartitionWriter
    backend: int
    position: int = 0
    cpu_s: float = 0.0

    def store(self, store: BatchStore, table: pa.Table) -> None:
        """Write a batch and add its CPU."""
        after = self.position + table.num_rows
        batch = Batch(self.claim, table, self.position, after, table.num_rows)
        server_s, client_s = _cpu_s(self.backend), time.process_time()
        answer = store.write(self.writer, batch, now_us())
        self.cpu_s += time.process_time() - client_s + _cpu_s(self.backend) - server_s
        if answer.outcome is not Outcome.STORED or answer.stored != table.num_rows:
            raise RayappError(f"batch at {self.position}: {answer.outcome}, {answer.stored} of {table.num_rows} rows stored")
        self.position = after


class _Plant:
    """A migrated database and one connection that writes with the ledger and without."""

    def __init__(self, state: StackState) -> None:
        there = state.postgres
        accounts = {
            f"{a}_{what}": getattr(there, f"{a}_{what}") for a in ("owner", "driver", "writer") for what in ("user", "password_file")
        }
        self._settings = Settings.model_validate(
            {"pipeline": TOPIC, "database": {"host": there.host, "port": there.port, "name": there.database, **accounts}}
        )
        self._owner = connect(self._settings.database, "owner", application=TOPIC, autocommit=True)
        migrate(self._owner, project_file("sql/migrations"))
        driver = connect(self._settings.database, "driver", application=TOPIC)
        claims = Claims(driver, TOPIC, TOPIC)
        claims.become_driver()
        self._store = BatchStore(self._settings.place)
        connection = connect(self._settings.database, "writer", application=TOPIC)
        self._with, self._without = (_side(claims, connection, partition, kind) for partition, kind in enumerate((Ledger, NoLedger)))
        driver.close()

    def round(self, batches: int, size: int) -> Round:
        """Write so many batches with and without the ledger, in turns, into an empty table."""
        self._owner.execute("TRUNCATE sensor_readings")
        self._owner.execute("SELECT ensure_day(%s)", (datetime.now(UTC).date(),))
        sides = [self._with, self._without]
        for side in sides:
            side.cpu_s = 0.0
        tables = _tables(self._settings.place, 2 * batches, size)
        for _ in range(batches):
            sides.reverse()
            for side in sides:
                side.store(self._store, next(tables))
        millions = batches * size / 1e6
        return Round(self._with.cpu_s / millions, self._without.cpu_s / millions)

    def close(self) -> None:
        """Close all connections."""
        self._with.writer.connection.close()
        self._owner.close()


def _side(claims: Claims, connection: Connection, partition: int, kind: type[Ledger]) -> _Side:
    held = claims.claim_partition(TOPIC, TopicIdentity(TOPIC, TOPIC, 2), partition, 0, TOPIC)
    claim = PartitionClaim(TOPIC, partition, held.epoch, TOPIC, 0, 0)
    ledger = kind(connection, TOPIC)
    # Registered nowhere: the second claim would end the first one's backend, which is the same.
    ((backend,),) = connection.execute("SELECT pg_backend_pid()")
    connection.commit()
    return _Side(claim, PartitionWriter(connection, ledger), int(backend), held.next_offset)


def _cpu_s(pid: int) -> float:
    """Return a process's CPU seconds so far; `schedstat` counts nanoseconds, where `stat` and psutil have ticks of 10 ms."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9


def _tables(place: PlaceSettings, batches: int, size: int) -> Iterator[pa.Table]:
    """Yield batches of distinct readings, as consume would send them: all sensors of some tags, all tags in turn."""
    sensors = list(SENSOR_OF_SUFFIX.items())
    per_sweep = TAGS * len(sensors)
    midnight_us = now_us() // 86_400_000_000 * 86_400_000_000
    rows = []
    for number in range(per_sweep):
        mac = f"be:9c:00:00:{number // len(sensors) // 256:02x}:{number // len(sensors) % 256:02x}"
        suffix, sensor = sensors[number % len(sensors)]
        rows.append(
            {
                "offset": 0, "device_id": f"{mac}_{suffix}", "device_type": sensor.device_type, "timestamp": 0, "value": 20.0 + number % 100 / 100,
                "unit": sensor.unit, "latitude": place.latitude, "longitude": place.longitude, "building": place.building, "floor": place.floor,
                "zone": place.zone, "room": place.room, "battery_level": 90.0, "signal_strength": -70.0, "firmware_version": place.firmware_version,
                "is_anomaly": number % 50 == 0, "status": "ACTIVE", "maintenance_date": None, "device_metadata": list(sensor.metadata(mac).items()),
                "tags": list(sensor.tags), "gateway_id": "gw-1", "measurement_sequence": number, "received_at": None,
            }
        )  # fmt: skip
    sweep = pa.table([pa.array([row[field.name] for row in rows], field.type) for field in READING_SCHEMA], schema=READING_SCHEMA)
    for batch in range(batches):
        numbers = range(batch * size, (batch + 1) * size)
        table = sweep.take(pa.array([number % per_sweep for number in numbers]))
        times = pa.array([midnight_us + number // per_sweep * 1_000 for number in numbers], pa.timestamp("us", "UTC"))
        offsets = pa.array(numbers, pa.int64())
        for name, column in (("offset", offsets), ("timestamp", times)):
            place_of = table.schema.get_field_index(name)
            table = table.set_column(place_of, READING_SCHEMA.field(place_of), column)
        yield table


def _table(found: dict[int, list[Round]], costs: dict[int, Cost]) -> Table:
    shown = Table(title="CPU seconds per million readings, client and database")
    for heading in ("rows a batch", "with ledger", "without", "more", "uncertain by", "rounds"):
        shown.add_column(heading, justify="right")
    for size, rounds in found.items():
        cost = costs[size]
        shown.add_row(
            f"{size:,}", f"{statistics.median(each.with_ledger for each in rounds):.2f}",
            f"{statistics.median(each.without for each in rounds):.2f}", f"{cost.percent:+.1f} %", f"{_rounded(cost.uncertainty_percent)} %",
            " ".join(f"{(each.ratio - 1) * 100:+.1f}" for each in rounds),
        )  # fmt: skip
    return shown


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 2)
