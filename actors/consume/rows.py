"""Small column operations on a batch under way."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


def raise_flags(table: pa.Table, anomalies: npt.NDArray[np.bool_]) -> pa.Table:
    """Return the table with is_anomaly also set where detection says so; detection never lowers a flag."""
    if table.num_rows == 0:
        return table
    index = table.schema.get_field_index("is_anomaly")
    return table.set_column(index, table.schema.field(index), pc.or_(table["is_anomaly"], pa.array(anomalies)))


def drop_offsets(table: pa.Table, offsets: Iterable[int]) -> pa.Table:
    """Return the table without the rows of some Kafka offsets."""
    return table.filter(pc.invert(pc.is_in(table["offset"], value_set=pa.array(list(offsets), pa.int64()))))
