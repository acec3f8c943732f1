"""An ingest actor in a thread between a Mosquitto of its own and the session's Kafka: what the tests of outages and restarts share.

The broker is each test's own, because it is killed; it has the accounts, the ACL and the configuration of the local
stack. Kafka and the database are the session's. What arrived is read from the Kafka topic.
"""

from __future__ import annotations

import csv
import json
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builders import SCHEMA, SCHEMA_ID, codec, eventually

from actors.adapters.kafka import Topics, read_all
from actors.adapters.mqtt import MqttSession
from actors.adapters.postgres import connect
from actors.base import Report
from actors.ingest.actor import Ingest
from rayapp.config import Settings
from rayapp.local import write_settings
from rayapp.stack import StackState, programs
from rayapp.stack.mosquitto import ACL, GATEWAY, PIPELINE, render_configuration
from rayapp.stack.passwords import mosquitto_entry

SIM = Path(__file__).resolve().parents[2] / "firmware" / "sim"
DEADLINE_S = 30.0


def until(question: Callable[[], bool], deadline_s: float = DEADLINE_S) -> bool:
    """Ask every 20 ms until the answer is yes: a busy question would take the interpreter from the actor's thread."""
    return eventually(lambda: question() or threading.Event().wait(0.02), deadline_s)


class Mosquitto:
    """One broker on a folder that survives it."""

    def __init__(self, folder: Path, **replaced: object) -> None:
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder = folder
        self.passwords = {user: secrets.token_urlsafe(12) for user in (PIPELINE, GATEWAY)}
        for user, password in self.passwords.items():
            (folder / f"{user}.pw").write_text(password + "\n", encoding="utf-8")
        (folder / "accounts").write_text("".join(mosquitto_entry(*each) + "\n" for each in self.passwords.items()), encoding="utf-8")
        (folder / "acl").write_text(ACL, encoding="utf-8")
        lines = render_configuration(self.port, folder).splitlines()
        kept = [line for line in lines if line.split(" ")[0] not in replaced]
        lines = [*kept, *(f"{key} {value}" for key, value in replaced.items()), f"user {folder.owner()}"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.log = (folder / "mosquitto.log").open("ab")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(programs.program("mosquitto")), "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        assert until(self._listens), (self.folder / "mosquitto.log").read_text()

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self, number: int) -> None:
        """Send SIGTERM or SIGKILL and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)

    def save(self) -> None:
        """Write the snapshot that autosave_interval would write some time."""
        assert self.process is not None
        snapshot = self.folder / "mosquitto.db"
        before = snapshot.stat().st_mtime_ns if snapshot.exists() else 0
        self.process.send_signal(signal.SIGUSR1)
        assert until(lambda: snapshot.exists() and snapshot.stat().st_mtime_ns != before)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGKILL)
        self.log.close()


class Killed(BaseException):
    """What ends an actor as kill -9 would: no goodbye, no cleaning up."""


class Running:
    """One incarnation in its thread; the highest it ever held is kept."""

    def __init__(self, name: str, settings: Settings, slot: int, retire: bool) -> None:
        self.actor = Ingest(name, settings, slot, SCHEMA, SCHEMA_ID, retire)
        self.peak_messages = self.peak_bytes = 0.0
        self.report: Report | None = None
        self.error: BaseException | None = None
        self.kill_when: Callable[[], bool] = lambda: False
        self._tick, self.actor.tick = self.actor.tick, self._watch  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self._run, name=name)
        self.thread.start()

    @property
    def session(self) -> MqttSession:
        return self.actor._session

    def _watch(self) -> None:
        self._tick()
        self.peak_messages = max(self.peak_messages, self.actor.gauges.get("iot_queue_size", 0))
        self.peak_bytes = max(self.peak_bytes, self.actor.gauges.get("ingest_held_bytes", 0))
        if self.kill_when():
            client = self.session._client
            sock = client.socket() if client else None
            if client is not None and sock is not None:
                sock.close()
                client.on_disconnect = None
            self.session._client = None
            raise Killed

    def _run(self) -> None:
        try:
            self.report = self.actor.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def wait(self) -> Report | None:
        """Wait for the end of run(); its error is kept, not raised."""
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the actor does not end"
        return self.report

    def drain(self) -> Report | None:
        self.actor.drain()
        return self.wait()

    def kill(self) -> None:
        self.kill_when = lambda: True
        self.wait()
        assert isinstance(self.error, Killed), self.error


class Simulation:
    """One run of the gateways' simulator with its ledger."""

    def __init__(self, broker: Mosquitto, out: Path, rate: int, seconds: float, *options: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [
                str(SIM / "build" / "ruuvi-sim"), "--port", str(broker.port), "--username", GATEWAY,
                "--password-file", str(broker.folder / f"{GATEWAY}.pw"), "--out", str(out), "--rate", str(rate),
                "--seconds", str(seconds), "--drain-seconds", "10", *options,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def finish(self) -> dict[str, Any]:
        """Wait for the end and return the summary."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, out
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    def _rows(self, kind: str) -> list[dict[str, str]]:
        with Path(f"{self.out}.{kind}.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def acknowledged_now(self) -> int:
        """Return how many messages have their PUBACK as far as the ledger is written."""
        path = Path(f"{self.out}.acked.csv")
        return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0

    def acknowledged(self) -> set[tuple[str, str]]:
        """Return (tag, time) of the messages with a PUBACK."""
        acked = {row["seq"] for row in self._rows("acked")}
        return {self._key(row) for row in self._rows("sent") if row["seq"] in acked}

    def sent(self) -> set[tuple[str, str]]:
        """Return (tag, time) of all messages."""
        return {self._key(row) for row in self._rows("sent")}

    @staticmethod
    def _key(row: dict[str, str]) -> tuple[str, str]:
        micros = int(row["timestamp_us"])
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(micros // 1_000_000))
        return row["device_id"].lower(), f"{stamp}.{micros % 1_000_000:06d}+00:00"


class IngestWorld:
    """A broker, a pipeline with a topic of one partition, and the actors and simulators that a test starts."""

    def __init__(self, stack: StackState, folder: Path, mqtt: dict[str, Any], broker: dict[str, Any]) -> None:
        self.stack, self.folder = stack, folder
        self.broker = Mosquitto(folder / "broker", **broker)
        self.broker.start()
        name = f"test-{secrets.token_hex(4)}"
        self.settings = write_settings(
            stack,
            folder / "rayapp.yaml",
            {
                "pipeline": name,
                "kafka": {"topic": name, "dead_letter_topic": f"{name}-dlq", "group": name, "partitions": 1},
                "mqtt": {"port": self.broker.port, "password_file": str(self.broker.folder / f"{PIPELINE}.pw"), **mqtt},
            },
        )
        Topics(self.settings.kafka).ensure()
        self.database = connect(self.settings.database, "owner", application="tests ingest", autocommit=True)
        self.database.execute("INSERT INTO pipelines (pipeline) VALUES (%s)", (name,))
        self.running: list[Running] = []
        self.simulations: list[Simulation] = []

    def claim(self, slot: int, owner: str) -> None:
        """Give a slot to an incarnation, as the driver does."""
        self.database.execute(
            "INSERT INTO slots (pipeline, role, slot, owner) VALUES (%s, 'ingest', %s, %s)"
            " ON CONFLICT (pipeline, role, slot) DO UPDATE SET owner = excluded.owner",
            (self.settings.pipeline, slot, owner),
        )

    def start(self, slot: int = 0, *, retire: bool = False, settings: Settings | None = None, wait: bool = True) -> Running:
        """Start the next incarnation of a slot and wait until it serves."""
        name = f"ingest/{slot}#{len(self.running) + 1}"
        self.claim(slot, name)
        made = Running(name, settings or self.settings, slot, retire)
        self.running.append(made)
        if wait and not retire:
            assert until(lambda: made.session.subscribed or made.error is not None)
            assert made.error is None, made.error
        return made

    def simulate(self, rate: int, seconds: float, *options: str) -> Simulation:
        """Start gateways; the seed is each simulation's own."""
        seed = len(self.simulations) + 1
        made = Simulation(self.broker, self.folder / f"sim-{seed}", rate, seconds, "--seed", str(seed), *options)
        self.simulations.append(made)
        return made

    def in_kafka(self) -> Counter[tuple[str, str]]:
        """Return how often each message's temperature is in Kafka, by (tag, time)."""
        bodies = [value[5:] for value, _ in read_all(self.settings.kafka, self.settings.kafka.topic)]
        batch = codec().decode(bodies) if bodies else None
        if batch is None:
            assert not bodies
            return Counter()
        ids = batch.column(batch.schema.get_field_index("device_id")).to_pylist()
        times = batch.column(batch.schema.get_field_index("timestamp")).to_pylist()
        return Counter(
            (name.removesuffix("_temperature"), at) for name, at in zip(ids, times, strict=True) if name.endswith("_temperature")
        )

    def session_is_left(self, slot: int) -> bool:
        """Ask the broker whether it has a session of the slot; asking ends it."""
        settings = self.settings.mqtt.model_copy(update={"session_expiry_s": 0})
        session = MqttSession(settings, f"{self.settings.pipeline}-ingest-{slot}", "nobody")
        session.connect(subscribe=False)
        session.close()
        return session.session_present

    def close(self) -> None:
        for simulation in self.simulations:
            simulation.process.kill()
            simulation.process.communicate()
        for running in self.running:
            if running.thread.is_alive():
                running.kill_when = lambda: True
                running.wait()
        self.broker.close()
        self.database.close()


@contextmanager
def ingest_worlds(stack: StackState, folder: Path) -> Iterator[Callable[..., IngestWorld]]:
    """Yield a function that makes worlds from MQTT settings (a dictionary) and broker options; everything in them ends with the block."""
    subprocess.run(["make", "-s", "-C", str(SIM)], check=True, timeout=120)
    made: list[IngestWorld] = []

    def make(mqtt: dict[str, Any] | None = None, **broker: Any) -> IngestWorld:
        made.append(IngestWorld(stack, folder, mqtt or {}, broker))
        return made[-1]

    try:
        yield make
    finally:
        for each in made:
            each.close()
