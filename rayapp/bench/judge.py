"""What was sent against what arrived: an exact comparison, without servers, clocks or tolerance.

Every reading of every acknowledged message must be in the table once, with its
value, its gateway and its anomaly flag, or its message must be a dead letter.
Nothing else may be in the table, and no good message among the dead letters.
Keys are compared as numbers (device index and microseconds), so that millions
of readings take seconds. A judge that cannot fail proves nothing: tests plant
each fault, and `rayapp bench --plant` plants it in real servers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayapp.bench.sent import LedgerUnusable, Promised, Sent, promise
from rayapp.bench.verdict import FOREIGN, Books, Verdict

EXAMPLES = 5

STORED_SCHEMA = pa.schema(
    [
        ("device_id", pa.dictionary(pa.int32(), pa.string())),
        ("timestamp_us", pa.int64()),
        ("value", pa.float64()),
        ("is_anomaly", pa.bool_()),
        ("gateway_id", pa.dictionary(pa.int32(), pa.string())),
        ("latency_ms", pa.float64()),
    ]
)
"""Rows of the table; latency_ms is commit time minus timestamp, null when the commit time is not known any more."""

DEAD_SCHEMA = pa.schema(
    [
        ("payload", pa.binary()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("stage", pa.string()),
        ("device", pa.string()),
        ("timestamp_us", pa.int64()),
    ]
)
"""Dead letters; device (a MAC, or a device_id for a Kafka record) and timestamp_us where the payload shows them."""


def judge(sent: Sent, stored: pa.Table, dead: pa.Table, books: Books, *, alone: bool = True) -> Verdict:
    """Compare what was sent with what arrived.

    Args:
        sent: the simulator's ledgers.
        stored: columns STORED_SCHEMA.
        dead: columns DEAD_SCHEMA.
        alone: nobody else used these topics, so a dead letter of unknown origin is a fault.

    Raises:
        LedgerUnusable: two promised readings share a key, so nothing can be told apart.
    """
    promised = promise(sent)
    letters = _judge_dead(sent, promised, dead, alone=alone)
    entry = _match(promised, stored)
    ours = entry >= 0
    hit = entry[ours]
    hits = np.bincount(hit, minlength=len(promised))
    excused = letters.excused_readings | letters.excused_messages[promised.message]
    lost = promised.acked & (hits == 0) & ~excused
    value, anomaly = (_numpy(stored[name])[ours] for name in ("value", "is_anomaly"))
    gateway = _recode(stored["gateway_id"], promised.gateways)[ours]
    mismatched = ~(value == promised.value[hit]) | (gateway != promised.gateway[hit])  # `~ ==`: a null value is NaN and must count
    wrong_flag = anomaly.astype(bool) != promised.anomaly[hit]
    run_of_row = np.full(len(entry), FOREIGN, np.int32)
    run_of_row[ours] = promised.run[hit]
    kinds = {
        "lost": np.flatnonzero(lost),
        "duplicates": np.flatnonzero(hits > 1),
        "mismatched": hit[mismatched],
        "anomalies": hit[wrong_flag],
    }
    examples = {name: [_reading(promised, at) for at in found[:EXAMPLES]] for name, found in kinds.items() if len(found)}
    foreign = np.flatnonzero(~ours)
    if len(foreign):
        rows = stored.select(["device_id", "timestamp_us"]).take(pa.array(foreign[:EXAMPLES])).to_pylist()
        examples["foreign"] = [f"{row['device_id']} at {row['timestamp_us']} us" for row in rows]
    return Verdict(
        sent=sent.messages.num_rows,
        acked=sent.count(acked=True),
        unknown=sent.count(acked=False),
        readings_promised=len(promised),
        readings_stored=int((hits > 0).sum()),
        lost=int(lost.sum()),
        lost_messages=len(np.unique(promised.message[lost])),
        duplicates=int((hits - (hits > 0)).sum()),
        foreign=len(foreign),
        mismatched=int(mismatched.sum()),
        absorbed=books.absorbed,
        anomalies_expected=int(promised.anomaly[hits > 0].sum()),
        anomalies=int(anomaly.sum()),
        anomalies_wrong=int(wrong_flag.sum()),
        dead_expected=sent.count(good=False, acked=True),
        books=books,
        examples=examples | letters.examples,
        run_of_row=run_of_row,
        **letters.counts,
    )


@dataclass(frozen=True)
class _Letters:
    """What the dead letters amount to."""

    counts: dict[str, Any]
    excused_messages: np.ndarray
    excused_readings: np.ndarray
    examples: dict[str, list[str]]


def _judge_dead(sent: Sent, promised: Promised, dead: pa.Table, *, alone: bool) -> _Letters:
    """Find every broken message among the dead letters, and every dead letter among the broken messages."""
    messages = sent.messages
    bad_rows = np.flatnonzero(~_numpy(messages["good"]))
    bad = messages.select(["payload", "acked", "seq"]).take(pa.array(bad_rows))
    found = _numpy(pc.is_in(bad["payload"], value_set=dead["payload"].combine_chunks()))
    missing = _numpy(bad["acked"]) & ~found
    expected = _numpy(pc.is_in(dead["payload"], value_set=bad["payload"].combine_chunks()))
    # Of the rest, those that carry the key of a good message or a promised reading were put there wrongly.
    rest = dead.take(pa.array(np.flatnonzero(~expected)))
    good_rows = np.flatnonzero(_numpy(messages["good"]))
    message_at: dict[tuple[str, int], int] = {}
    reading_at: dict[tuple[str, int], int] = {}
    if rest.num_rows:
        good = messages.select(["mac", "timestamp_us"]).take(pa.array(good_rows)).to_pydict()
        message_at = dict(zip(zip(good["mac"], good["timestamp_us"], strict=True), good_rows.tolist(), strict=True))
        wanted = set(rest["timestamp_us"].to_pylist())
        near = np.flatnonzero(np.isin(promised.timestamp_us, [t for t in wanted if t is not None]))
        reading_at = {(promised.devices[promised.device[at]], int(promised.timestamp_us[at])): int(at) for at in near}
    excused_messages = np.zeros(messages.num_rows, bool)
    excused_readings = np.zeros(len(promised), bool)
    wrong: list[str] = []
    foreign: list[str] = []
    for row in rest.to_pylist():
        key = (row["device"], row["timestamp_us"])
        if key in message_at:
            excused_messages[message_at[key]] = True
        elif key in reading_at:
            excused_readings[reading_at[key]] = True
        else:
            foreign.append(f"{row['id']} ({row['reason']})")
            continue
        wrong.append(f"{row['id']} ({row['reason']})")
    ids = dead["id"].to_pylist()
    first = dict(zip(reversed(ids), reversed(dead["reason"].to_pylist()), strict=True))
    named = {"dead_wrong": wrong, "dead_foreign": foreign if alone else []}
    missing_seqs = [f"seq {seq}" for seq in bad["seq"].take(pa.array(np.flatnonzero(missing)[:EXAMPLES])).to_pylist()]
    return _Letters(
        counts={
            "dead_lettered": int(found.sum()),
            "dead_missing": int(missing.sum()),
            "dead_wrong": len(wrong),
            "dead_foreign": len(named["dead_foreign"]),
            "dead_copies": len(ids) - len(first),
            "dead_by_reason": dict(Counter(first.values()).most_common()),
        },
        excused_messages=excused_messages,
        excused_readings=excused_readings,
        examples={name: texts[:EXAMPLES] for name, texts in {**named, "dead_missing": missing_seqs}.items() if texts},
    )


def _match(promised: Promised, stored: pa.Table) -> np.ndarray:
    """Return, for each row of the table, the promised reading it is, or FOREIGN."""
    if not len(promised):
        return np.full(stored.num_rows, FOREIGN, np.int64)
    first_us = int(promised.timestamp_us.min())
    span = int(promised.timestamp_us.max()) - first_us + 1
    keys = promised.device * span + (promised.timestamp_us - first_us)
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    if (in_order[1:] == in_order[:-1]).any():
        raise LedgerUnusable("two messages of the simulator share tag and time; give each run its own seed")
    device = _recode(stored["device_id"], promised.devices)
    offset_us = _numpy(stored["timestamp_us"]) - first_us
    possible = (device >= 0) & (offset_us >= 0) & (offset_us < span)
    row_keys = device * span + offset_us
    at = np.minimum(np.searchsorted(in_order, row_keys), len(in_order) - 1)
    return np.where(possible & (in_order[at] == row_keys), order[at], FOREIGN)


def _recode(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    """Return each row's index in `names`, -1 when it is not there."""
    index = {name: at for at, name in enumerate(names)}
    parts = []
    for chunk in column.chunks:
        table = np.array([index.get(name, -1) for name in chunk.dictionary.to_pylist()] + [-1], np.int64)
        codes = pc.fill_null(chunk.indices, len(table) - 1).to_numpy(zero_copy_only=False)
        parts.append(table[codes])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _reading(promised: Promised, at: int) -> str:
    return f"{promised.devices[promised.device[at]]} at {promised.timestamp_us[at]} us (message row {promised.message[at]})"


def _numpy(column: pa.ChunkedArray) -> Any:
    return column.to_numpy()
