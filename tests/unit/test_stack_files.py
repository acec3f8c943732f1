"""The stack's pure parts: state file, options, rendered configuration, ports, passwords, downloads."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rayapp import capacity
from rayapp.errors import ConfigurationError
from rayapp.stack.downloads import cache_root, obtain
from rayapp.stack.errors import StackNotRunning
from rayapp.stack.kafka import BrokerPlace, new_cluster_id, render_pom, render_server
from rayapp.stack.kafka_probe import parse_metadata
from rayapp.stack.mosquitto import ACL, render_configuration
from rayapp.stack.mqtt_probe import connect_packet
from rayapp.stack.options import COMPONENTS, StackOptions, parse_use, split_address
from rayapp.stack.passwords import mosquitto_entry
from rayapp.stack.ports import ephemeral_start, free_ports
from rayapp.stack.postgres import render_roles, render_settings
from rayapp.stack.programs import install_line, parse_java_version
from rayapp.stack.rayhead import PORT_FLAGS, render_arguments, render_environment
from rayapp.stack.rayworkers import render_arguments as render_node_arguments
from rayapp.stack.state import (
    STATE_TYPES,
    KafkaState,
    MqttState,
    StackState,
    is_same_process,
    keeper_is_alive,
    load_state,
    write_state,
)
from rayapp.stack.warden import HELD, holds

ROOT = Path(__file__).resolve().parents[2]


def some_state() -> StackState:
    """Return a state with every kind of component."""
    return StackState(
        keeper_pid=12,
        keeper_started=3.5,
        data_dir="d",
        run_dir="r",
        control_socket="c",
        components={name: kind(state="ready", pids=(1, 2), pid_starts=(0.5, 0.6)) for name, kind in STATE_TYPES.items()},
    )


def test_state_round_trip(tmp_path: Path) -> None:
    """What the keeper writes is what everybody reads, tuples and all, in a private file."""
    path = tmp_path / "stack.json"
    write_state(path, some_state())
    assert load_state(tmp_path) == some_state()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["stack.json"]


def test_state_of_another_version_is_refused() -> None:
    """A file of another layout is an error that names the version."""
    text = some_state().to_json().replace('"version": 1', '"version": 9')
    with pytest.raises(ConfigurationError, match="version=9"):
        StackState.from_json(text)


def test_state_is_missing(tmp_path: Path) -> None:
    """No file means not running."""
    with pytest.raises(StackNotRunning):
        load_state(tmp_path)


def test_unknown_component_is_named() -> None:
    """Asking a stack for a part it was started without says so."""
    state = StackState(
        keeper_pid=1,
        keeper_started=1.0,
        data_dir="",
        run_dir="",
        control_socket="",
        components={"kafka": KafkaState(bootstrap_servers="a:1")},
    )
    assert state.kafka.where == "a:1"
    with pytest.raises(ConfigurationError, match="component=ray"):
        _ = state.ray


def test_a_reused_pid_is_not_the_process() -> None:
    """Pid and start time must both fit."""
    me = psutil.Process()
    assert is_same_process(me.pid, me.create_time())
    assert not is_same_process(me.pid, me.create_time() - 100)
    assert not keeper_is_alive(some_state())


def test_mqtt_where() -> None:
    """The printable address of a host and port component."""
    assert MqttState(host="127.0.0.1", port=1883).where == "127.0.0.1:1883"


def test_options_round_trip() -> None:
    """The keeper sees exactly the caller's options."""
    options = StackOptions(folder=Path("x"), brokers=3, ray=True, ray_workers=1, use={"kafka": "h:1"}, leash=True)
    assert StackOptions.from_json(options.to_json()) == options
    assert options.wanted == COMPONENTS
    assert StackOptions(components=("mqtt",), use={"kafka": "h:1"}).wanted == ("kafka", "mqtt")
    assert StackOptions(components=(), ray=True).wanted == ("ray",)


@pytest.mark.parametrize("wrong", [{"brokers": 2}, {"components": ("zookeeper",)}, {"ray_object_store_bytes": 1}])
def test_options_are_checked(wrong: dict[str, object]) -> None:
    """A wrong option is refused before anything starts, and the message names it."""
    with pytest.raises(ConfigurationError, match="="):
        StackOptions(**wrong)  # type: ignore[arg-type]


def test_use_flags() -> None:
    """The variable comes first, a flag overrides it, nothing else in the environment counts."""
    environment = {"RUUVI_STACK_USE": "kafka=a:1,mqtt=b:2", "KAFKA_BOOTSTRAP_SERVERS": "production:9092"}
    assert parse_use([], {"KAFKA_BOOTSTRAP_SERVERS": "production:9092"}) == {}
    assert parse_use(["kafka=c:3"], environment) == {"kafka": "c:3", "mqtt": "b:2"}
    for wrong in ("kafka", "kafka=", "zookeeper=a:1"):
        with pytest.raises(ConfigurationError, match="use="):
            parse_use([wrong], {})


def test_split_address() -> None:
    """Host and port, with a default for the port."""
    assert split_address("h:5", 1) == ("h", 5)
    assert split_address("h", 1) == ("h", 1)
    with pytest.raises(ConfigurationError):
        split_address("h:x", 1)


def test_ports_are_distinct() -> None:
    """Ports chosen together never collide."""
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < ephemeral_start()  # an outgoing connection cannot take one before the server binds


def test_broker_properties() -> None:
    """Three brokers: RF 3, two in sync, no anonymous client, every voter named, loopback only."""
    places = [BrokerPlace(i, 9000 + i, 9100 + i, Path(f"/data/{i}")) for i in (1, 2, 3)]
    text = render_server(places[1], places, {"pipeline": "p1", "broker": "p2"})
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert lines["listeners"] == "CLIENT://127.0.0.1:9002,CONTROLLER://127.0.0.1:9102"
    assert lines["controller.quorum.voters"] == "1@127.0.0.1:9101,2@127.0.0.1:9102,3@127.0.0.1:9103"
    assert lines["listener.security.protocol.map"].startswith("CLIENT:SASL_PLAINTEXT")
    assert (lines["default.replication.factor"], lines["min.insync.replicas"]) == ("3", "2")
    assert lines["auto.create.topics.enable"] == "false"
    assert 'user_pipeline="p1"' in lines["listener.name.client.plain.sasl.jaas.config"]
    single = render_server(places[0], places[:1], {"pipeline": "p1", "broker": "p2"})
    assert "min.insync.replicas=1\n" in single


def test_cluster_ids_are_usable() -> None:
    """A Kafka uuid has 22 characters and does not look like an option."""
    ids = {new_cluster_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(one) == 22 and not one.startswith("-") for one in ids)


def test_pom_names_the_binding() -> None:
    """Kafka brings no slf4j binding, so the project must."""
    assert "log4j-slf4j-impl" in render_pom()
    assert render_pom().count("<exclusions>") == 1


def test_metadata_is_read() -> None:
    """A Metadata v1 answer with two brokers, one with a rack."""
    body = b"\0\0\0\2\0\0\0\1\0\1a\0\0\0\5\xff\xff\0\0\0\2\0\1b\0\0\0\6\0\1r\0\0\0\2\0\0\0\0"
    view = parse_metadata(body)
    assert view.brokers == ("a:5", "b:6")
    assert view.controller_id == 2


def test_mosquitto_configuration(tmp_path: Path) -> None:
    """The limits that decide whether a long pause loses messages are set."""
    lines = render_configuration(1883, tmp_path).splitlines()
    for line in (
        "listener 1883 127.0.0.1",
        "allow_anonymous false",
        "message_size_limit 131072",
        f"max_queued_messages {capacity.max_queued_messages(capacity.Load())}",
        "max_queued_bytes 0",
        "persistence true",
        "set_tcp_nodelay true",
        "autosave_interval 60",
    ):
        assert line in lines
    assert "pattern write ruuvi/%u/#" in ACL
    assert "topic write" not in ACL.split("user gateway")[0]


def test_mosquitto_password_entry() -> None:
    """The hash is what Mosquitto computes: PBKDF2-SHA512 over salt and password."""
    entry = mosquitto_entry("u", "secret", b"0123456789ab")
    user, _, rest = entry.partition(":")
    _, marker, iterations, salt, digest = rest.split("$")
    expected = hashlib.pbkdf2_hmac("sha512", b"secret", base64.b64decode(salt), int(iterations))
    assert (user, marker) == ("u", "7")
    assert base64.b64decode(digest) == expected
    assert "secret" not in entry


def test_connect_packet() -> None:
    """An MQTT 3.1.1 CONNECT with and without credentials, byte for byte."""
    assert connect_packet("c", None, None) == b"\x10\x0d\0\4MQTT\4\2\0\x1e\0\1c"
    assert connect_packet("c", "u", "p") == b"\x10\x13\0\4MQTT\4\xc2\0\x1e\0\1c\0\1u\0\1p"


def test_postgres_settings() -> None:
    """Durability is stated, and TimescaleDB is loaded only when it is there."""
    plain = render_settings(5432, "64MB", timescaledb=False)
    assert "fsync = on\n" in plain
    assert "synchronous_commit = on\n" in plain
    assert "timescaledb" not in plain
    assert "shared_preload_libraries = 'timescaledb'" in render_settings(1, "1MB", timescaledb=True)


def test_roles() -> None:
    """The driver is a member of the writer's role; nobody connects by default."""
    names = ("ruuvi_owner", "ruuvi_writer", "ruuvi_driver", "ruuvi_reader")
    sql = render_roles(dict.fromkeys(names, "x"))
    assert "GRANT ruuvi_writer TO ruuvi_driver;" in sql
    assert "REVOKE ALL ON DATABASE ruuvi FROM PUBLIC;" in sql


def test_ray_arguments(tmp_path: Path) -> None:
    """Every port is ours, the address is the loopback one, and the token mode is explicit either way."""
    ports = dict(zip(PORT_FLAGS, range(7000, 7100), strict=False))
    arguments = render_arguments(ports, 8, 10**8, tmp_path)
    assert arguments[arguments.index("--node-ip-address") + 1] == "127.0.0.1"
    assert all(flag in arguments for flag in PORT_FLAGS)
    assert "--block" not in arguments
    assert "RAY_AUTH_TOKEN_PATH" not in render_environment("disabled", tmp_path, 1)
    assert render_environment("token", tmp_path / "t", 1)["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "t")


def test_a_ray_node_joins_the_head_on_the_loopback_address(tmp_path: Path) -> None:
    """The second node names head and address, and no port that a second stack would take too."""
    arguments = render_node_arguments("127.0.0.1:6400", (6401, 6402), 2, 10**8, tmp_path)
    assert arguments[:3] == ["start", "--address", "127.0.0.1:6400"]
    assert arguments[arguments.index("--node-ip-address") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--metrics-export-port") + 1] == "6401"
    assert arguments[arguments.index("--dashboard-agent-listen-port") + 1] == "6402"
    assert "--head" not in arguments
    assert "--block" not in arguments


def test_a_file_left_by_a_killed_warden_is_not_taken_for_a_started_ray(tmp_path: Path) -> None:
    """Only a file with the pid of a living process says that Ray is held; so a node started again is waited for."""
    assert not holds(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for content in (str(ended.pid), "", "no pid"):
        (tmp_path / HELD).write_text(content)
        assert not holds(tmp_path)
    (tmp_path / HELD).write_text(str(os.getpid()))
    assert holds(tmp_path)


def test_java_versions() -> None:
    """Old and new ways of writing Java's version."""
    assert parse_java_version('openjdk version "17.0.15" 2025-04-15') == 17
    assert parse_java_version('java version "1.8.0_392"') == 8
    assert parse_java_version("nonsense") == 0


def test_install_line() -> None:
    """One line that can be pasted."""
    line = install_line(["postgres", "mosquitto"])
    assert line.endswith("--no-install-recommends mosquitto postgresql")
    assert "\n" not in line


def test_a_finished_download_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second caller gets the folder without filling it again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = obtain("thing-1", lambda folder: (folder / "a").touch())  # type: ignore[arg-type, return-value]
    second = obtain("thing-1", lambda folder: pytest.fail("filled twice"))
    assert first == second == cache_root() / "thing-1"


def test_a_failed_download_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception leaves neither the entry nor its half."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("network is gone")

    with pytest.raises(OSError, match="network"):
        obtain("thing-1", fail)
    assert sorted(one.name for one in cache_root().iterdir()) == ["thing-1.lock"]


def test_a_killed_download_does_not_count(tmp_path: Path) -> None:
    """After kill -9 in the middle the next caller fills the entry anew and removes the half."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    program = (
        "import sys, time; from rayapp.stack.downloads import obtain\n"
        "def fill(folder):\n"
        "    (folder / sys.argv[1]).touch()\n"
        "    if sys.argv[1] == 'half':\n"
        "        print('half', flush=True); time.sleep(600)\n"
        "print(obtain('thing-1', fill))"
    )
    with subprocess.Popen([sys.executable, "-c", program, "half"], env=environment, text=True, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "half"
        second = subprocess.Popen([sys.executable, "-c", program, "whole"], env=environment, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.0)  # it waits for the first one's lock
        first.send_signal(signal.SIGKILL)
    with second:
        output, _ = second.communicate(timeout=20)
    folder = Path(output.strip())
    assert [one.name for one in folder.iterdir()] == ["whole"]
    assert not list(folder.parent.glob(".*partial"))


def test_waiting_for_a_download_has_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is never released is an error that names the file, not a hang."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begin = time.monotonic()

    def fill(_folder: Path) -> None:
        with pytest.raises(Exception, match="another process holds"):
            obtain("thing-1", lambda folder: None, deadline_s=0.3)

    obtain("thing-1", fill)
    assert time.monotonic() - begin < 10
