"""The judge passes an honest run, and fails for each planted fault and for nothing else."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from actors.avro import Codec
from actors.detect.thresholds import Thresholds
from actors.ingest.explode import Exploder
from actors.ingest.parse import Parsed
from actors.readings import SENSORS
from rayapp.bench.evidence import key_of
from rayapp.bench.judge import DEAD_SCHEMA, STORED_SCHEMA, judge
from rayapp.bench.sent import LedgerUnusable, Sent, promise, read_sent
from rayapp.bench.verdict import Books, Verdict
from rayapp.config import PlaceSettings, ThresholdSettings
from rayapp.files import reading_schema

MACS = ["c6:8d:c6:00:00:01", "c6:8d:c6:00:00:02"]
FIRST_US = 1_795_502_243_442_162
GOOD = {
    "temperature": "22.600", "humidity": "48.4925", "pressure": "101706", "acceleration_x": "-0.000", "acceleration_y": "0.020",
    "acceleration_z": "-1.020", "battery_voltage": "2.813", "tx_power": "4", "movement_counter": "25",
}  # fmt: skip
HEADER = ["seq", "gateway_id", "device_id", "timestamp_us", "kind", "field", *GOOD, "measurement_sequence", "rssi", "payload"]


def ledger(folder: Path, name: str = "run", count: int = 20, unacked: tuple[int, ...] = (), start_us: int = FIRST_US) -> Path:
    """Write a simulator's ledger: message 3 is not JSON, message 5 a fault of humidity, the others are good."""
    prefix = folder / name
    with (folder / f"{name}.sent.csv").open("w", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(HEADER)
        for seq in range(count):
            head = [seq, "gw-1-0", MACS[seq % 2], start_us + seq * 400]
            if seq == 3:
                out.writerow([*head, "bad:not_json", "", *[""] * (len(GOOD) + 2), f'not "json", {name}-{seq}'])
            elif seq == 5:
                out.writerow([*head, "fault", "humidity", *(GOOD | {"humidity": "7.9825"}).values(), 1, -60, ""])
            else:
                out.writerow([*head, "ok", "", *GOOD.values(), 1, -60, ""])
    acked = "".join(f"{seq},{start_us + seq * 400 + 900},1\n" for seq in range(count) if seq not in unacked)
    (folder / f"{name}.acked.csv").write_text("seq,acked_us,sends\n" + acked)
    return prefix


def stored_rows(sent: Sent) -> list[dict]:
    """What a faultless pipeline stores."""
    rows = []
    for message in sent.messages.to_pylist():
        if not message["good"]:
            continue
        for sensor in SENSORS:
            rows.append({
                "device_id": f"{message['mac']}_{sensor.field}", "timestamp_us": message["timestamp_us"], "value": message[sensor.field],
                "is_anomaly": message["field"] == sensor.field, "gateway_id": message["gateway_id"], "latency_ms": 250.0,
            })  # fmt: skip
    return rows


def dead_rows(sent: Sent) -> list[dict]:
    bad = [message for message in sent.messages.to_pylist() if not message["good"]]
    return [
        {
            "payload": m["payload"],
            "id": f"t/{m['run']}-{m['seq']}",
            "reason": "not_json",
            "stage": "ingest",
            "device": None,
            "timestamp_us": None,
        }
        for m in bad
    ]


class Case:
    """An honest run that a test may spoil before judging."""

    def __init__(self, *prefixes: Path) -> None:
        self.sent = read_sent(prefixes)
        self.rows = stored_rows(self.sent)
        self.dead = dead_rows(self.sent)
        self.spoil_books: dict = {}

    def verdict(self, *, alone: bool = True) -> Verdict:
        count = len(self.rows)
        books = Books(
            records=count, stored=count, duplicate=0, dead=0, next_offsets={0: count}, log={0: (0, count)}, table_rows=count, absorbed=0
        )
        stored = pa.Table.from_pylist(self.rows, schema=STORED_SCHEMA) if self.rows else STORED_SCHEMA.empty_table()
        dead = pa.Table.from_pylist(self.dead, schema=DEAD_SCHEMA)
        return judge(self.sent, stored, dead, replace(books, **self.spoil_books), alone=alone)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(ledger(tmp_path))


def names(verdict: Verdict) -> list[str]:
    return [problem.partition(":")[0] for problem in verdict.problems]


def test_an_honest_run_has_no_problem(case: Case) -> None:
    verdict = case.verdict()
    assert verdict.problems == []
    assert verdict.ok
    assert verdict.conserved
    assert (verdict.sent, verdict.acked, verdict.unknown) == (20, 20, 0)
    assert verdict.readings_promised == verdict.readings_stored == 19 * 9
    assert (verdict.anomalies, verdict.anomalies_expected) == (1, 1)
    assert (verdict.dead_lettered, verdict.dead_expected, verdict.dead_by_reason) == (1, 1, {"not_json": 1})


def test_one_lost_reading_is_found_and_named(case: Case) -> None:
    gone = case.rows.pop(17)
    verdict = case.verdict()
    assert names(verdict) == ["lost"]
    assert (verdict.lost, verdict.lost_messages) == (1, 1)
    assert f"{gone['device_id']} at {gone['timestamp_us']} us" in verdict.problems[0]


def test_one_lost_message_is_nine_lost_readings(case: Case) -> None:
    time_us = case.rows[0]["timestamp_us"]
    case.rows = [row for row in case.rows if row["timestamp_us"] != time_us]
    verdict = case.verdict()
    assert (verdict.lost, verdict.lost_messages) == (9, 1)


def test_everything_lost_is_found(case: Case) -> None:
    case.rows.clear()
    assert case.verdict().lost == 19 * 9


@pytest.mark.parametrize("value", [22.605, 22.600000000000005, float("nan"), None])
def test_one_wrong_value_is_found(case: Case, value: float | None) -> None:
    case.rows[0]["value"] = value
    verdict = case.verdict()
    assert names(verdict) == ["mismatched"]
    assert verdict.mismatched == 1


def test_minus_zero_is_zero(case: Case) -> None:
    minus = [row for row in case.rows if row["device_id"].endswith("acceleration_x")]
    minus[0]["value"], minus[1]["value"] = 0.0, -0.0
    assert case.verdict().ok


@pytest.mark.parametrize("gateway", ["gw-1-1", "", None])
def test_another_gateway_is_a_mismatch(case: Case, gateway: str | None) -> None:
    case.rows[0]["gateway_id"] = gateway
    assert names(case.verdict()) == ["mismatched"]


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp_us": FIRST_US + 1},
        {"timestamp_us": FIRST_US - 10**15},
        {"timestamp_us": FIRST_US + 10**15},
        {"device_id": "aa:bb:cc:dd:ee:ff_temperature"},
        {"device_id": f"{MACS[1]}_temperature"},
        {"device_id": None},
    ],
)
def test_one_foreign_row_is_found(case: Case, change: dict) -> None:
    case.rows.append(case.rows[0] | change)
    verdict = case.verdict()
    assert names(verdict) == ["foreign"]
    assert verdict.foreign == 1


def test_a_row_twice_is_a_duplicate(case: Case) -> None:
    case.rows += [case.rows[3], case.rows[3]]
    verdict = case.verdict()
    assert names(verdict) == ["duplicates"]
    assert verdict.duplicates == 2
    assert verdict.readings_stored == 19 * 9


def test_one_missing_anomaly_flag_is_found(case: Case) -> None:
    next(row for row in case.rows if row["is_anomaly"])["is_anomaly"] = False
    verdict = case.verdict()
    assert names(verdict) == ["anomalies"]
    assert (verdict.anomalies, verdict.anomalies_expected) == (0, 1)


def test_one_flag_too_many_is_found(case: Case) -> None:
    case.rows[0]["is_anomaly"] = True
    assert names(case.verdict()) == ["anomalies"]


def test_flags_swapped_between_rows_are_found(case: Case) -> None:
    next(row for row in case.rows if row["is_anomaly"])["is_anomaly"] = False
    case.rows[0]["is_anomaly"] = True
    verdict = case.verdict()
    assert verdict.anomalies == verdict.anomalies_expected
    assert verdict.anomalies_wrong == 2


def test_one_missing_dead_letter_is_found(case: Case) -> None:
    case.dead.clear()
    verdict = case.verdict()
    assert names(verdict) == ["dead_missing"]
    assert "seq 3" in verdict.problems[0]


def test_a_dead_letter_with_one_changed_byte_is_missing_and_foreign(case: Case) -> None:
    case.dead[0]["payload"] += b" "
    assert names(case.verdict()) == ["dead_missing", "dead_foreign"]
    assert names(case.verdict(alone=False)) == ["dead_missing"]


def test_a_good_message_among_the_dead_is_found_and_not_called_lost(case: Case) -> None:
    message = case.sent.messages.to_pylist()[0]
    case.rows = [row for row in case.rows if row["timestamp_us"] != message["timestamp_us"]]
    case.dead.append(case.dead[0] | {"payload": b"{}", "id": "t/x", "device": message["mac"], "timestamp_us": message["timestamp_us"]})
    verdict = case.verdict()
    assert names(verdict) == ["dead_wrong"]
    assert verdict.lost == 0


def test_a_promised_reading_among_the_dead_is_found_and_not_called_lost(case: Case) -> None:
    row = case.rows.pop(4)
    case.dead.append(
        {
            "payload": b"avro",
            "id": "t/0/7",
            "reason": "conflict",
            "stage": "write",
            "device": row["device_id"],
            "timestamp_us": row["timestamp_us"],
        }
    )
    verdict = case.verdict()
    assert names(verdict) == ["dead_wrong"]
    assert verdict.lost == 0


def test_copies_of_a_dead_letter_are_allowed_and_counted(case: Case) -> None:
    case.dead *= 3
    verdict = case.verdict()
    assert verdict.ok
    assert (verdict.dead_copies, verdict.dead_lettered, verdict.dead_by_reason) == (2, 1, {"not_json": 1})


@pytest.mark.parametrize("arrived", [True, False])
def test_an_unknown_message_may_be_either(tmp_path: Path, arrived: bool) -> None:
    case = Case(ledger(tmp_path, unacked=(0, 3)))
    if not arrived:
        case.rows = [row for row in case.rows if row["timestamp_us"] != FIRST_US]
        case.dead.clear()
    verdict = case.verdict()
    assert verdict.ok
    assert verdict.unknown == 2
    assert verdict.dead_expected == 0


def test_two_runs_are_told_apart(tmp_path: Path) -> None:
    case = Case(ledger(tmp_path, "warmup"), ledger(tmp_path, "measured", start_us=FIRST_US + 10**9))
    verdict = case.verdict()
    assert verdict.ok
    assert [int((verdict.run_of_row == run).sum()) for run in (0, 1)] == [171, 171]


@pytest.mark.parametrize(
    "books",
    [
        {"duplicate": 1},
        {"log": {0: (0, 172)}, "next_offsets": {0: 172}},
        {"next_offsets": {0: 170}},
        {"next_offsets": {}},
        {"table_rows": 170},
    ],
)
def test_a_broken_equation_of_the_ledger_is_found(case: Case, books: dict) -> None:
    case.spoil_books = books
    verdict = case.verdict()
    assert set(names(verdict)) == {"conservation"}
    assert not verdict.conserved


def test_runs_with_the_same_keys_cannot_be_judged(tmp_path: Path) -> None:
    case = Case(ledger(tmp_path, "a"), ledger(tmp_path, "b"))
    with pytest.raises(LedgerUnusable, match="seed"):
        case.verdict()


def test_a_missing_or_foreign_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnusable, match=r"sent\.csv"):
        read_sent([tmp_path / "none"])
    prefix = ledger(tmp_path)
    (tmp_path / "run.sent.csv").write_text("seq,what\n1,2\n")
    with pytest.raises(LedgerUnusable, match="not a simulator ledger"):
        read_sent([prefix])


def test_promises_are_nine_a_message_with_exact_doubles(tmp_path: Path) -> None:
    promised = promise(read_sent([ledger(tmp_path)]))
    assert len(promised) == 171
    temperature = [v for d, v in zip(promised.device, promised.value, strict=True) if promised.devices[d].endswith("_temperature")]
    assert temperature == [22.6] * 19
    assert [promised.devices[d] for d in promised.device[promised.anomaly]] == [f"{MACS[1]}_humidity"]


def test_a_dead_record_shows_its_key() -> None:
    codec = Codec(reading_schema())
    device, time_us = f"{MACS[0]}_temperature", FIRST_US
    message = {"device_id": MACS[0], "timestamp": "2026-11-24T06:37:23.442162Z"}
    assert key_of(json.dumps(message).encode(), codec) == (MACS[0], time_us)
    parsed = Parsed({"device_id": MACS[0], "temperature": 22.6}, time_us, own_time=True)
    batch = Exploder(PlaceSettings(), Thresholds(ThresholdSettings())).explode([parsed], time_us)
    assert key_of(codec.encode(batch, 1)[0], codec) == (device, time_us)
    for broken in (b"", b"not json", b"[]", b"{}", b"\x00\x00\x00\x00\x01zz", b'{"device_id": 1, "timestamp": "yesterday"}', b"\xff\xfe"):
        assert key_of(broken, codec)[1] is None


def test_the_table_column_types_survive_an_empty_table(case: Case) -> None:
    case.rows.clear()
    assert pc.sum(STORED_SCHEMA.empty_table()["is_anomaly"]).as_py() is None
    assert case.verdict().readings_stored == 0
