"""Which readings say only what their device says anyway.

Place, firmware, metadata and tags are constant per device and cost half of all
insert CPU when repeated on every row. They live in table `devices`, made from
configuration; a reading keeps its own only when it differs. This module knows
the devices' latest versions as columns and compares a whole batch with them.

A reading older than its device's latest version keeps its own columns: it
would be joined to an earlier version, which is not held here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actors.readings import DeviceConstants

Mask = npt.NDArray[np.bool_]
"""One boolean a row."""

_SCALARS = ("latitude", "longitude", "building", "floor", "zone", "room", "firmware_version")
_SCHEMA = pa.schema(
    [
        ("device_id", pa.string()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("building", pa.string()),
        ("floor", pa.int32()),
        ("zone", pa.string()),
        ("room", pa.string()),
        ("firmware_version", pa.string()),
        ("device_metadata", pa.map_(pa.string(), pa.string())),
        ("tags", pa.list_(pa.string())),
        ("valid_from", pa.timestamp("us", "UTC")),
    ]
)


class DeviceDimension:
    """The latest version of every known device, as columns."""

    def __init__(self) -> None:
        self._table = _SCHEMA.empty_table()
        self._ids = pa.array([], pa.string())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def unknown(self, device_id: pa.ChunkedArray) -> list[str]:
        """Return the distinct ids of a batch that are not known here."""
        distinct = pc.unique(device_id)
        if isinstance(distinct, pa.ChunkedArray):
            distinct = distinct.combine_chunks()
        new = pc.filter(distinct, pc.is_null(pc.index_in(distinct, value_set=self._ids)))
        return [str(name) for name in new.to_pylist()]

    def add(self, devices: Sequence[DeviceConstants], valid_from_us: Sequence[int | None]) -> None:
        """Learn devices; valid_from None means since ever."""
        if not devices:
            return
        columns = [
            [d.device_id for d in devices],
            *([getattr(d, name) for d in devices] for name in _SCALARS),
            [list(d.metadata.items()) for d in devices],
            [list(d.tags) for d in devices],
            list(valid_from_us),
        ]
        new = pa.table([pa.array(c, field.type) for c, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
        self._table = pa.concat_tables([self._table, new]).combine_chunks()
        self._ids = self._table["device_id"].combine_chunks()

    def differs(self, batch: pa.Table) -> Mask:
        """Return one boolean a row: the reading must keep its own constant columns."""
        if batch.num_rows == 0:
            return np.zeros(0, bool)
        index = pc.index_in(batch["device_id"], value_set=self._ids).combine_chunks()
        known = index.is_valid()
        expected = self._table.take(pc.fill_null(index, 0)) if len(self) else None
        if expected is None:
            return np.ones(batch.num_rows, bool)
        same: Mask = known.to_numpy(zero_copy_only=False)
        for name in _SCALARS:
            same &= _equal(batch[name], expected[name])
        same &= _lists_equal(batch["tags"], expected["tags"])
        same &= _lists_equal(batch["device_metadata"], expected["device_metadata"])
        same &= np.asarray(pc.fill_null(pc.greater_equal(batch["timestamp"], expected["valid_from"]), fill_value=True).to_numpy())
        return ~same


def _equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> Mask:
    """Compare two columns, null equal to null."""
    both_null = pc.and_(pc.is_null(a), pc.is_null(b))
    return np.asarray(pc.or_(pc.fill_null(pc.equal(a, b), fill_value=False), both_null).to_numpy())


def _lists_equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> Mask:
    """Compare two list or map columns element by element, in order; null equal to null."""
    left, right = a.combine_chunks(), b.combine_chunks()
    sizes, other = _sizes(left), _sizes(right)
    same: Mask = sizes == other
    if not same.all():
        keep = pa.array(np.flatnonzero(same))
        left, right, sizes = left.take(keep), right.take(keep), sizes[same]
    elements = _elements_equal(left, right)
    starts = np.concatenate(([0], np.cumsum(np.maximum(sizes, 0))))
    wrong = np.concatenate(([0], np.cumsum(~elements)))
    result: Mask = same.copy()
    result[same] = wrong[starts[1:]] == wrong[starts[:-1]]
    return result


def _sizes(lists: pa.Array) -> npt.NDArray[np.int32]:
    """Return elements a row; -1 for null, so that null differs from empty."""
    offsets = lists.offsets.to_numpy()
    sizes: npt.NDArray[np.int32] = np.diff(offsets)
    sizes[~lists.is_valid().to_numpy(zero_copy_only=False)] = -1
    return sizes


def _elements_equal(left: pa.Array, right: pa.Array) -> Mask:
    """Compare the flattened elements of equally long lists or maps."""
    if pa.types.is_map(left.type):
        return _flat_equal(_within(left, left.keys), _within(right, right.keys)) & _flat_equal(
            _within(left, left.items), _within(right, right.items)
        )
    return _flat_equal(left.flatten(), right.flatten())


def _within(parent: pa.Array, children: pa.Array) -> pa.Array:
    """Cut a map's child array to the parent's own rows."""
    offsets = parent.offsets.to_numpy()
    return children.slice(int(offsets[0]), int(offsets[-1] - offsets[0])) if len(offsets) else children


def _flat_equal(left: pa.Array, right: pa.Array) -> Mask:
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    equal = pc.or_(pc.fill_null(pc.equal(left, right), fill_value=False), both_null)
    return np.asarray(equal.to_numpy(zero_copy_only=False))
