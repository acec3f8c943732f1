"""Rate of change per device, in columns: a value that jumps between two readings of a device is an anomaly.

A reading counts when its type has a limit and its value is there. It is
compared with the device's last reading, the newest by event time of those that
came before it in the log; when the two are at most `max_gap_s` apart and
differ by more than the limit, it is an anomaly. A reading that is not newer
than the device's last one (ingest slots overtake each other, messages come
twice) is not compared and changes nothing.

The state is one row a device: time and value of its last reading, sorted by
device. It stays bounded by event time alone: a device whose last reading lies
more than `forget_days` before the newest event time that the partition has
seen is forgotten. No clock and no batch boundary enters, so flags and state
are a function of the log up to a position, however it was cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.config import StepSettings
from rayapp.errors import RayappError

FORMAT = 1
"""Part of the configuration version: state in another format is not read."""
NEVER_US = -(2**61)
"""A time before every reading; differences with it still fit 64 bits."""
_DAY_US = 86_400_000_000
_SCHEMA = pa.schema([("device_id", pa.string()), ("last_us", pa.int64()), ("last_value", pa.float64())])

Times = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


class UnreadableSnapshot(RayappError):
    """A snapshot's bytes are not a state; consume goes on without it."""


@dataclass(frozen=True)
class StepState:
    """What is remembered of a partition's devices; never changed, only replaced.

    Attributes:
        device_id: sorted, each once.
        last_us: event time of each device's last reading, microseconds.
        last_value: its value.
        newest_us: newest event time seen in the partition.
    """

    device_id: pa.Array
    last_us: Times
    last_value: Values
    newest_us: int = NEVER_US

    def to_bytes(self) -> bytes:
        """Return the state as a compressed Arrow IPC stream."""
        table = pa.table([self.device_id, self.last_us, self.last_value], schema=_SCHEMA)
        sink = pa.BufferOutputStream()
        metadata = {"newest_us": str(self.newest_us)}
        with pa.ipc.new_stream(sink, _SCHEMA.with_metadata(metadata), options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table.replace_schema_metadata(metadata))
        return cast("bytes", sink.getvalue().to_pybytes())

    @staticmethod
    def from_bytes(data: bytes) -> StepState:
        """Return the state that to_bytes() wrote.

        Raises:
            UnreadableSnapshot: the bytes are something else.
        """
        try:
            table = pa.ipc.open_stream(data).read_all()
            newest_us = int(table.schema.metadata[b"newest_us"])
            table = table.cast(_SCHEMA).combine_chunks()
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise UnreadableSnapshot(f"detector snapshot of {len(data)} bytes: {type(error).__name__}: {error}") from error
        return StepState(_array(table["device_id"]), table["last_us"].to_numpy(), table["last_value"].to_numpy(), newest_us)


EMPTY = StepState(pa.array([], pa.string()), np.empty(0, np.int64), np.empty(0, np.float64))


class StepRule:
    """The configured limits, ready for vectorised look-up."""

    def __init__(self, settings: StepSettings) -> None:
        self._types = pa.array(sorted(settings.limits), pa.string())
        self._limits = np.array([settings.limits[name] for name in sorted(settings.limits)], np.float64)
        self._max_gap_us = round(settings.max_gap_s * 1_000_000)
        self._forget_us = settings.forget_days * _DAY_US

    def judge(self, state: StepState, table: pa.Table) -> tuple[StepState, npt.NDArray[np.bool_]]:
        """Return the state behind a batch and one boolean a row: the value jumped.

        Args:
            state: exactly before the batch.
            table: DETECT_COLUMNS in the log's order.
        """
        flags = np.zeros(table.num_rows, np.bool_)
        rule = pc.index_in(table["device_type"], value_set=self._types)
        rows = pc.indices_nonzero(pc.and_(rule.is_valid(), table["value"].is_valid())).to_numpy()
        if rows.size == 0:
            return state, flags
        if rows.size < table.num_rows:
            table, rule = table.select(["device_id", "timestamp", "value"]).take(rows), rule.take(rows)
        devices = _array(table["device_id"]).dictionary_encode()
        times, values = table["timestamp"].cast(pa.int64()).to_numpy(), table["value"].to_numpy()
        limits = self._limits[rule.to_numpy()]
        newest = np.maximum.accumulate(np.maximum(times, state.newest_us))
        place = pc.fill_null(pc.index_in(devices.dictionary, value_set=state.device_id), -1).to_numpy()
        known = place >= 0
        last_us, last_value = np.full(len(place), NEVER_US), np.zeros(len(place))
        last_us[known], last_value[known] = state.last_us[place[known]], state.last_value[place[known]]

        row, previous, final = _walk(devices.indices.to_numpy(), times, last_us)
        all_us, all_values = np.concatenate([last_us, times]), np.concatenate([last_value, values])
        before_us = all_us[previous]
        near = (times[row] - before_us <= self._max_gap_us) & (before_us >= newest[row] - self._forget_us)
        with np.errstate(over="ignore"):  # two finite values may be an infinity apart: more than any limit
            jumped = np.abs(values[row] - all_values[previous]) > limits[row]
        flags[rows[row[near & jumped]]] = True
        return self._advanced(state, devices.dictionary, place, all_us[final], all_values[final], int(newest[-1])), flags

    def _advanced(self, state: StepState, names: pa.Array, place: Times, last_us: Times, last_value: Values, newest_us: int) -> StepState:
        """Return the state with some devices' last readings replaced, new devices in their places, old ones forgotten."""
        known = place >= 0
        device_id, all_us, all_values = state.device_id, state.last_us.copy(), state.last_value.copy()
        all_us[place[known]], all_values[place[known]] = last_us[known], last_value[known]
        if not known.all():
            device_id = pa.concat_arrays([device_id, names.filter(pa.array(~known))])
            order = pc.sort_indices(device_id)
            device_id, order = device_id.take(order), order.to_numpy()
            all_us, all_values = np.concatenate([all_us, last_us[~known]])[order], np.concatenate([all_values, last_value[~known]])[order]
        kept = all_us >= newest_us - self._forget_us
        if not kept.all():
            device_id, all_us, all_values = device_id.filter(pa.array(kept)), all_us[kept], all_values[kept]
        return StepState(device_id, all_us, all_values, newest_us)


def _walk(device: npt.NDArray[np.int32], times: Times, last_us: Times) -> tuple[Indices, Indices, Indices]:
    """Find what each reading is compared with; readings are numbered behind the remembered ones.

    Args:
        device: number of each reading's device.
        times: each reading's event time.
        last_us: by device, the time of the remembered reading; NEVER_US when there is none.

    Returns:
        rows that are newer than everything of their device before them; for each of these, the number of the
        reading before it; for each device, the number of its last reading.
    """
    devices = len(last_us)
    group = np.concatenate([np.arange(devices), device])
    order = np.argsort(group, kind="stable")  # by device, the remembered reading first, then as in the log
    group = group[order]
    # Devices and times in one number that grows with both, so that one running maximum serves all devices.
    _, rank = np.unique(np.concatenate([last_us, times]), return_inverse=True)
    height = group * len(order) + rank[order]
    newer = np.ones(len(order), np.bool_)
    newer[1:] = height[1:] > np.maximum.accumulate(height)[:-1]
    newest = np.maximum.accumulate(np.where(newer, np.arange(len(order)), 0))
    compared = np.flatnonzero(newer & (order >= devices))
    ends = np.append(np.flatnonzero(group[1:] != group[:-1]), len(order) - 1)
    return order[compared] - devices, order[newest[compared - 1]], order[newest[ends]]


def _array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])
