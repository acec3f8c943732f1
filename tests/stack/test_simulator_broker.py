"""The simulator against a real Mosquitto: what arrives is what its ledger says.

Each test starts a broker of its own on a free loopback port, with a password file and no anonymous
access, as the pipeline's broker has it. The subscriber is paho, an MQTT client that shares no code
with the simulator.
"""

import csv
import getpass
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

SIM = Path(__file__).resolve().parents[2] / "firmware" / "sim"
USER, PASSWORD = "gateway", "not-a-secret"
VALUES = [
    "temperature",
    "humidity",
    "pressure",
    "acceleration_x",
    "acceleration_y",
    "acceleration_z",
    "battery_voltage",
    "tx_power",
    "movement_counter",
    "measurement_sequence",
    "rssi",
]
DEADLINE = 30.0


def _program(name: str) -> str | None:
    return shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin")


pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        _program("mosquitto") is None or _program("mosquitto_passwd") is None,
        reason="needs mosquitto and mosquitto_passwd",
    ),
    pytest.mark.skipif(
        shutil.which("make") is None or shutil.which("cc") is None,
        reason="needs make and a C compiler",
    ),
]


@pytest.fixture(scope="module")
def binary() -> str:
    """The simulator, built if its sources are newer."""
    subprocess.run(["make", "-s", "-C", str(SIM)], check=True, timeout=120)
    return str(SIM / "build" / "ruuvi-sim")


class Broker:
    """A Mosquitto without persistence, so that kill -9 makes it forget everything it had."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.passwords = folder / "passwords"
        subprocess.run(
            [_program("mosquitto_passwd") or "", "-b", "-c", self.passwords, USER, PASSWORD],
            check=True, capture_output=True,
        )  # fmt: skip
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\n"
            f"password_file {self.passwords}\npersistence false\nuser {getpass.getuser()}\n"
            "max_inflight_messages 200\nmax_queued_messages 100000\n"
        )
        self.log = (folder / "mosquitto.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [_program("mosquitto") or "", "-c", str(self.config)],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        until = time.monotonic() + DEADLINE
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, "mosquitto ended"
            assert time.monotonic() < until, "mosquitto does not listen"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(DEADLINE)

    def reload(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        self.kill()
        self.log.close()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A running broker, ended with the test."""
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


class Subscriber:
    """Everything that arrives at `ruuvitag/data`, subscribed anew after every connection."""

    def __init__(self, port: int) -> None:
        self.payloads: list[bytes] = []
        self.ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="subscriber", protocol=mqtt.MQTTv5)
        self.client.username_pw_set(USER, PASSWORD)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = lambda client, *_: client.subscribe("ruuvitag/data", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_disconnect = lambda *_: self.ready.clear()
        self.client.on_message = lambda _c, _u, message: self.payloads.append(bytes(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert self.ready.wait(DEADLINE)

    def wait_for(self, condition: Callable[[list[bytes]], bool]) -> None:
        """Waits until the condition holds, or the deadline: the assertion after it says which."""
        until = time.monotonic() + DEADLINE
        while not condition(self.payloads) and time.monotonic() < until:
            threading.Event().wait(0.05)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def subscribers() -> Iterator[list[Subscriber]]:
    """The test's subscribers, closed with it."""
    started: list[Subscriber] = []
    yield started
    for one in started:
        one.close()


class Run:
    """One run of the simulator; progress lines are read as they come."""

    def __init__(self, binary: str, broker: Broker, folder: Path, options: tuple[str, ...]) -> None:
        secret = folder / "gateway.pw"
        secret.write_text(PASSWORD + "\n")
        self.out = folder / "run"
        self.process = subprocess.Popen(
            [binary, "--port", str(broker.port), "--username", USER,
             "--password-file", str(secret), "--out", str(self.out), "--progress", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def progress_until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Reads progress lines (one a second) until one satisfies the condition."""
        assert self.process.stderr is not None
        until = time.monotonic() + DEADLINE
        for line in self.process.stderr:
            state: dict[str, Any] = json.loads(line)
            if condition(state):
                return state
            assert time.monotonic() < until, f"never reached, last was {line}"
        raise AssertionError("the simulator ended first")

    def finish(self) -> dict[str, Any]:
        """Waits for the end and returns the summary, checked against itself."""
        out, errors = self.process.communicate(timeout=90)
        assert self.process.returncode == 0, errors
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert summary == json.loads(Path(f"{self.out}.summary.json").read_text())
        assert summary["unsent"] == summary["messages_due"] - summary["messages_sent"]
        assert summary["unknown"] == summary["messages_sent"] - summary["acked"]
        assert len(self.sent()) == summary["messages_due"]
        assert len(self.acked()) == summary["acked"]
        assert summary["slip_p50_ms"] <= summary["slip_p99_ms"] <= summary["slip_max_ms"]
        return summary

    def _rows(self, kind: str) -> list[dict[str, str]]:
        with Path(f"{self.out}.{kind}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def sent(self) -> list[dict[str, str]]:
        return self._rows("sent")

    def acked(self) -> list[dict[str, str]]:
        return self._rows("acked")


Start = Callable[..., Run]


@pytest.fixture
def start(binary: str, broker: Broker, tmp_path: Path) -> Iterator[Start]:
    """Starts runs with the given options against the broker; none outlives its test."""
    started: list[Run] = []

    def start(*options: str) -> Run:
        started.append(Run(binary, broker, tmp_path, options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def as_payload(row: dict[str, str]) -> bytes:
    """The bytes that a ledger row says were sent."""
    if row["kind"].startswith("bad:"):
        return row["payload"].encode()
    micros = int(row["timestamp_us"])
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // 1_000_000))
    values = "".join(f'"{name}":{row[name]},' for name in VALUES)
    return (
        f'{{"device_id":"{row["device_id"]}","timestamp":"{stamp}.{micros % 1_000_000:06d}Z",{values}"gateway_id":"{row["gateway_id"]}"}}'
    ).encode()


def outside(values: dict[str, float]) -> set[str]:
    """The fields beyond the pipeline's anomaly thresholds."""
    limits = {
        "temperature": (-50, 50), "humidity": (15, 100), "pressure": (87000, 108500),
        "battery_voltage": (2.0, 99),
    }  # fmt: skip
    return {name for name, (low, high) in limits.items() if not low <= values[name] <= high}


def test_what_arrives_is_what_the_ledger_says(start: Start, broker: Broker, subscribers: list[Subscriber]) -> None:
    """Two seconds at 500/s through two gateways arrive once each, byte for byte as listed."""
    subscribers.append(Subscriber(broker.port))
    run = start(
        "--rate", "500", "--seconds", "2", "--gateways", "2",
        "--malformed-share", "0.05", "--fault-share", "0.1", "--seed", "11",
    )  # fmt: skip
    summary = run.finish()
    rows = run.sent()
    expected = Counter(as_payload(row) for row in rows)
    subscribers[0].wait_for(lambda payloads: len(payloads) >= len(rows))
    assert Counter(subscribers[0].payloads) == expected
    assert max(expected.values()) == 1

    assert summary["messages_sent"] == summary["acked"] == 1000
    assert (summary["resent"], summary["replayed"], summary["reconnects"]) == (0, 0, 0)
    kinds = Counter(row["kind"] for row in rows)
    assert summary["faults"] == kinds["fault"] == pytest.approx(100, abs=1)
    bad = {kind: n for kind, n in kinds.items() if kind.startswith("bad:")}
    assert summary["malformed"] == sum(bad.values()) == pytest.approx(50, abs=1)
    assert set(bad) == {f"bad:{name}" for name in ["not_json", "truncated", "wrong_type", "nan", "no_device", "bad_mac", "bad_time"]}
    assert len({(row["device_id"], row["timestamp_us"]) for row in rows}) == 1000
    for row in rows:
        if not row["kind"].startswith("bad:"):
            values = json.loads(as_payload(row))
            assert outside(values) == ({row["field"]} if row["field"] else set())
            assert (row["kind"] == "fault") == (row["field"] != "")


def test_no_subscriber_is_not_success(start: Start, broker: Broker, subscribers: list[Subscriber]) -> None:
    """PUBACK 0x10 acknowledges nothing; once somebody subscribes, each message arrives once."""
    run = start("--rate", "50", "--seconds", "1")
    run.progress_until(lambda state: state["sent"] == 50 and state["t"] > 1.5)
    assert run.acked() == []
    subscribers.append(Subscriber(broker.port))
    summary = run.finish()
    assert summary["acked"] == 50
    assert summary["puback_no_subscriber"] >= 50
    assert summary["resent"] == summary["puback_no_subscriber"]
    assert all(int(row["sends"]) > 1 for row in run.acked())
    subscribers[0].wait_for(lambda payloads: len(payloads) >= 50)
    assert Counter(subscribers[0].payloads) == Counter(as_payload(row) for row in run.sent())


def test_killed_broker_gets_everything_again(start: Start, broker: Broker, subscribers: list[Subscriber]) -> None:
    """After kill -9 of the broker nothing that was sent is missing, acknowledged or not."""
    subscribers.append(Subscriber(broker.port))
    run = start("--rate", "500", "--seconds", "4")
    before = run.progress_until(lambda state: state["acked"] > 600)
    broker.kill()
    broker.start()
    summary = run.finish()
    rows = run.sent()
    assert (summary["messages_sent"], summary["unknown"], summary["unsent"]) == (2000, 0, 0)
    assert summary["reconnects"] >= 1
    # Everything acknowledged before the kill was younger than --replay-seconds.
    assert summary["replayed"] >= before["acked"]
    expected = {as_payload(row) for row in rows}
    subscribers[0].wait_for(lambda payloads: set(payloads) == expected)
    assert set(subscribers[0].payloads) == expected
    assert max(Counter(subscribers[0].payloads).values()) > 1


def test_refused_until_the_account_is_enabled(start: Start, broker: Broker, subscribers: list[Subscriber]) -> None:
    """Gateways that come before their account is enabled are refused, wait, and lose nothing."""
    subscribers.append(Subscriber(broker.port))
    passwords = broker.passwords.read_text()
    broker.passwords.write_text("")
    broker.reload()
    run = start("--rate", "100", "--seconds", "2")
    run.progress_until(lambda state: state["t"] > 0)
    broker.passwords.write_text(passwords)
    broker.reload()
    summary = run.finish()
    assert summary["connect_refused"] > 0
    assert summary["acked"] == 200
    assert summary["slip_max_ms"] > 500  # the schedule went on while nobody could connect


def test_ended_by_signal_leaves_a_whole_ledger(start: Start, broker: Broker, subscribers: list[Subscriber]) -> None:
    """SIGINT stops the schedule, waits for acknowledgements and exits with status 0."""
    subscribers.append(Subscriber(broker.port))
    run = start("--rate", "200", "--seconds", "600")
    run.progress_until(lambda state: state["acked"] > 100)
    run.process.send_signal(signal.SIGINT)
    summary = run.finish()
    assert summary["unknown"] == summary["unsent"] == 0
    assert 100 < summary["acked"] < 2000
