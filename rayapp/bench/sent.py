"""What the gateways promise: the simulator's ledger in columns, and the readings that must come of it.

The simulator writes what it sent and what was acknowledged. Only PUBACK with
reason 0x00 counts as acknowledged; a message sent and never acknowledged is
unknown: it may have arrived or not. Each `ok` or `fault` message promises one
reading a sensor; each `bad:` message promises one dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from actors.readings import SENSORS
from rayapp.errors import RayappError

_TEXT = pa.dictionary(pa.int32(), pa.string())
_SENT_TYPES = {
    "seq": pa.int64(),
    "gateway_id": _TEXT,
    "device_id": _TEXT,
    "timestamp_us": pa.int64(),
    "kind": _TEXT,
    "field": _TEXT,
    **{sensor.field: pa.float64() for sensor in SENSORS},
    "payload": pa.binary(),
}


class LedgerUnusable(RayappError):
    """The simulator's ledger cannot be what it claims; nothing can be judged by it."""


@dataclass(frozen=True)
class Sent:
    """All messages of one or more simulator runs.

    Attributes:
        messages: run, seq, gateway_id, mac, timestamp_us, good, field, acked, payload and a column a sensor.
    """

    messages: pa.Table

    @property
    def macs(self) -> list[str]:
        """Every tag that spoke."""
        return sorted(str(mac) for mac in pc.unique(self.messages["mac"].cast(pa.string())).to_pylist())

    def count(self, **flags: bool) -> int:
        """Return how many messages have these flags, e.g. `count(good=True, acked=False)`."""
        mask = np.ones(self.messages.num_rows, bool)
        for name, wanted in flags.items():
            mask &= _numpy(self.messages[name]) == wanted
        return int(mask.sum())


@dataclass(frozen=True)
class Promised:
    """The readings that good messages promise, one entry a reading, in columns.

    Attributes:
        devices: device_id by device index.
        device: device index of each reading.
        gateways: gateway_id by gateway index.
        message: row of its message in Sent.messages.
        run: which simulator run, in the order of the prefixes.
    """

    devices: list[str]
    device: np.ndarray
    timestamp_us: np.ndarray
    value: np.ndarray
    anomaly: np.ndarray
    acked: np.ndarray
    gateways: list[str]
    gateway: np.ndarray
    message: np.ndarray
    run: np.ndarray

    def __len__(self) -> int:
        return len(self.device)


def read_sent(prefixes: Sequence[Path]) -> Sent:
    """Read the ledgers of several runs of the simulator.

    Raises:
        LedgerUnusable: a file is missing, lacks a column, or has no row.
    """
    parts = [_read_run(prefix, run) for run, prefix in enumerate(prefixes)]
    if not parts:
        raise LedgerUnusable("no simulator run to judge: call simulate() first")
    return Sent(pa.concat_tables(parts).unify_dictionaries().combine_chunks())


def promise(sent: Sent) -> Promised:
    """Return the readings that the good messages promise.

    A fault's field is the anomaly; every other reading is none.
    """
    messages = sent.messages
    rows = np.flatnonzero(_numpy(messages["good"]))
    good = messages.take(pa.array(rows))
    mac_codes, macs = _codes(good["mac"])
    gateway_codes, gateways = _codes(good["gateway_id"])
    field_codes, fields = _codes(good["field"])
    values = [_numpy(good[sensor.field]) for sensor in SENSORS]
    present = [np.flatnonzero(~np.isnan(column)) for column in values]
    sensor = np.repeat(np.arange(len(SENSORS)), [len(index) for index in present])
    index = np.concatenate(present)
    fault_sensor = np.array([[s.field for s in SENSORS].index(name) if name else -1 for name in fields], np.int64)
    return Promised(
        devices=[f"{mac}_{s.field}" for mac in macs for s in SENSORS],
        device=mac_codes[index] * len(SENSORS) + sensor,
        timestamp_us=_numpy(good["timestamp_us"])[index],
        value=np.concatenate([column[at] for column, at in zip(values, present, strict=True)]),
        anomaly=fault_sensor[field_codes[index]] == sensor,
        acked=_numpy(good["acked"])[index],
        gateways=gateways,
        gateway=gateway_codes[index],
        message=rows[index],
        run=_numpy(good["run"])[index],
    )


def _read_run(prefix: Path, run: int) -> pa.Table:
    sent = _read_csv(Path(f"{prefix}.sent.csv"), _SENT_TYPES)
    acked = _read_csv(Path(f"{prefix}.acked.csv"), {"seq": pa.int64()})
    if sent.num_rows == 0:
        raise LedgerUnusable(f"{prefix}.sent.csv: no message became due; raise --rate or --seconds")
    kind = sent["kind"].cast(pa.string())
    good = pc.or_(pc.equal(kind, "ok"), pc.equal(kind, "fault"))
    return pa.table(
        {
            "run": pa.repeat(pa.scalar(run, pa.int32()), sent.num_rows),
            "seq": sent["seq"],
            "gateway_id": sent["gateway_id"],
            "mac": sent["device_id"],
            "timestamp_us": sent["timestamp_us"],
            "good": good,
            "field": sent["field"],
            "acked": pc.is_in(sent["seq"], value_set=acked["seq"].combine_chunks()),
            "payload": sent["payload"],
            **{sensor.field: sent[sensor.field] for sensor in SENSORS},
        }
    )


def _read_csv(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    try:
        return pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=types, include_columns=list(types)))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise LedgerUnusable(f"{path}: not a simulator ledger ({error}); was the simulator killed before it wrote?") from error


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return a dictionary column as codes and texts."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], _TEXT)
    return array.indices.to_numpy(zero_copy_only=False).astype(np.int64), [str(text) for text in array.dictionary.to_pylist()]


def _numpy(column: pa.ChunkedArray) -> Any:
    return column.to_numpy()
