"""What arrived, read from the servers: the rows, the dead letters, the ledger's sums and Kafka's offsets.

One COPY brings all rows with their commit times (the server keeps them:
track_commit_timestamp), so that the judge and the latency figures look at the
same rows. Nothing here decides anything.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.csv as pa_csv

from actors.adapters.kafka import Topics, read_all
from actors.adapters.postgres import Connection, connect
from actors.avro import HEADER_BYTES, Codec, UndecodableRecord, schema_id_of
from rayapp.bench.judge import DEAD_SCHEMA, STORED_SCHEMA
from rayapp.bench.verdict import Books
from rayapp.config import Settings
from rayapp.files import reading_schema


@dataclass(frozen=True)
class Evidence:
    """What the servers hold after a run."""

    stored: pa.Table
    dead: pa.Table
    books: Books


def collect(settings: Settings, *, macs: Sequence[str] | None, since_us: int, absorbed_before: int) -> Evidence:
    """Read everything that is to be judged.

    Args:
        macs: only rows of these tags, stored since `since_us`; None means all rows there are (the table is ours alone).
        since_us: start of the session, by this machine's clock.
        absorbed_before: the ledger's duplicates at the start of the session.

    Raises:
        DependencyUnavailable: a server does not answer.
    """
    connection = connect(settings.database, "driver", application="rayapp bench judge", autocommit=True)
    try:
        stored = read_stored(connection, macs, since_us)
        books = read_books(settings, connection, table_rows=stored.num_rows if macs is None else None, absorbed_before=absorbed_before)
    finally:
        connection.close()
    return Evidence(stored, read_dead(settings), books)


def read_stored(connection: Connection, macs: Sequence[str] | None, since_us: int) -> pa.Table:
    """Return rows of the table in columns STORED_SCHEMA."""
    where = ""
    if macs is not None:
        # COPY takes no parameters: MACs of the simulator's own ledger are hexadecimal digits and colons.
        names = ", ".join(f"'{mac}'" for mac in macs if set(mac) <= set("0123456789abcdef:"))
        where = f" WHERE split_part(device_id, '_', 1) IN ({names or 'NULL'}) AND created_at >= to_timestamp({int(since_us)} / 1e6)"
    text = connection.copy_out(
        "COPY (SELECT device_id, (extract(epoch FROM timestamp) * 1000000)::bigint, value, is_anomaly, gateway_id,"
        " date_part('epoch', pg_xact_commit_timestamp(xmin) - timestamp) * 1000"
        f" FROM sensor_readings{where}) TO STDOUT (FORMAT csv)"
    )
    if not text:
        return STORED_SCHEMA.empty_table()
    return pa_csv.read_csv(
        io.BytesIO(text),
        read_options=pa_csv.ReadOptions(column_names=STORED_SCHEMA.names),
        convert_options=pa_csv.ConvertOptions(
            column_types=STORED_SCHEMA, true_values=["t"], false_values=["f"], null_values=[""], strings_can_be_null=True
        ),
    )


def read_books(settings: Settings, connection: Connection, *, table_rows: int | None, absorbed_before: int) -> Books:
    """Return the ledger's sums beside Kafka's offsets."""
    rows = connection.execute(
        "SELECT partition, next_offset, records, stored, duplicate, dead FROM ingest_ledger WHERE pipeline = %s AND topic = %s",
        (settings.pipeline, settings.kafka.topic),
    )
    records, stored, duplicate, dead = (sum(int(row[at]) for row in rows) for at in range(2, 6))
    return Books(
        records=records,
        stored=stored,
        duplicate=duplicate,
        dead=dead,
        next_offsets={int(row[0]): int(row[1]) for row in rows},
        log=Topics(settings.kafka).offsets(settings.kafka.topic, settings.kafka.partitions),
        table_rows=table_rows,
        absorbed=duplicate - absorbed_before,
    )


def read_dead(settings: Settings) -> pa.Table:
    """Return the dead letters in columns DEAD_SCHEMA."""
    codec = Codec(reading_schema())
    rows = []
    for payload, headers in read_all(settings.kafka, settings.kafka.dead_letter_topic):
        device, timestamp_us = key_of(payload, codec)
        rows.append(
            {
                "payload": payload,
                "id": headers.get("id", ""),
                "reason": headers.get("reason", ""),
                "stage": headers.get("stage", ""),
                "device": device,
                "timestamp_us": timestamp_us,
            }
        )
    return pa.Table.from_pylist(rows, schema=DEAD_SCHEMA)


def key_of(payload: bytes, codec: Codec) -> tuple[str | None, int | None]:
    """Return which tag (or device) and time a dead letter speaks of, as far as it shows them."""
    try:
        if schema_id_of(payload) is not None:
            record = codec.decode_one(payload[HEADER_BYTES:]).to_pylist()[0]
            return str(record["device_id"]), _microseconds(str(record["timestamp"]))
        message = json.loads(payload)
        return str(message["device_id"]), _microseconds(str(message["timestamp"]))
    except (UndecodableRecord, ValueError, KeyError, TypeError):
        return None, None


def _microseconds(text: str) -> int:
    """Return a time as the simulator and the pipeline write it, in exact microseconds; the pipeline's own parser has no say here."""
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
