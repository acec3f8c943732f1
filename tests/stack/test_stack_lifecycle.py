"""The local stack as its users meet it: real servers, started, asked, killed, and nothing left behind.

One stack is shared by the tests that only ask; the tests that kill make their own. Every wait has a
deadline. Processes are compared by pid and start time, and a zombie counts as gone: reaping it is the
business of whoever inherited it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import psutil
import psycopg2
import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from rayapp.stack import (
    Stack,
    StackError,
    StackNotRunning,
    StackOptions,
    StackState,
    enable_gateways,
    kill_component,
    load_state,
    process_ids,
    read_password,
    restart_component,
    start_component,
    start_stack,
    stop_stack,
)
from rayapp.stack.cli import stack as command
from rayapp.stack.http_probe import ask_http
from rayapp.stack.kafka_probe import ask_kafka
from rayapp.stack.mqtt_probe import ACCEPTED, NOT_AUTHORISED, ask_mqtt
from rayapp.stack.options import split_address
from rayapp.stack.ports import is_listening
from rayapp.stack.rayhead import living_nodes
from rayapp.stack.rayworkers import QUICK_TO_NOTICE_A_DEAD_NODE

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

GONE_DEADLINE_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


def eventually(question: Callable[[], bool], deadline_s: float = GONE_DEADLINE_S) -> bool:
    """Ask until the answer is yes or the deadline has passed."""
    end = time.monotonic() + deadline_s
    while not question():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def processes_of(state: StackState) -> list[psutil.Process]:
    """Return every process of a stack, the keeper included."""
    pids = [pid for found in process_ids(state).values() for pid in found]
    return [psutil.Process(pid) for pid in pids]


def still_there(processes: list[psutil.Process], state: StackState) -> list[str]:
    """Name what is alive of these, and whatever else mentions the stack's folders."""
    left = []
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{one.pid} {one.name()}")
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.pid != os.getpid() and state.run_dir in " ".join((one.cwd(), *one.cmdline())):
                left.append(f"{one.pid} {one.name()}")
    return left


def ports_of(state: StackState) -> list[int]:
    """Return the ports clients use."""
    kafka = [split_address(one, 0)[1] for one in state.kafka.bootstrap_servers.split(",")]
    registry = int(state.registry.url.split("/")[2].rpartition(":")[2])
    return [*kafka, registry, state.mqtt.port, state.postgres.port]


def kafka_settings(state: StackState, password: str) -> dict[str, object]:
    """Return a Kafka client's settings."""
    return {
        "bootstrap.servers": state.kafka.bootstrap_servers,
        "security.protocol": state.kafka.security_protocol,
        "sasl.mechanism": state.kafka.sasl_mechanism,
        "sasl.username": state.kafka.username,
        "sasl.password": password,
        "log_level": 0,
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack without Ray that no test may kill."""
    with start_stack(StackOptions(folder=tmp_path_factory.mktemp("shared"), leash=True)) as running:
        yield running


def test_second_up_finds_the_running_stack(shared: Stack) -> None:
    """Starting again on the same folder changes nothing and says so."""
    before = shared.state.to_json()
    result = CliRunner().invoke(command, ["up", "--dir", str(shared.folder)])
    assert result.exit_code == 0, result.output
    assert "already running" in result.output
    assert shared.state.to_json() == before


def test_status_asks_every_server(shared: Stack) -> None:
    """`status --json` gives one object with state, pid, address and memory of each component."""
    result = CliRunner().invoke(command, ["status", "--json", "--dir", str(shared.folder)])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["components"]
    assert set(rows) == {"kafka", "registry", "mqtt", "postgres"}
    assert all(row["state"] == "ready" and row["pid"] and row["rss_mb"] > 1 for row in rows.values())


def test_everything_listens_on_the_loopback_address_only(shared: Stack) -> None:
    """No server of the stack can be reached from another machine."""
    pids = {pid for found in process_ids(shared.state).values() for pid in found}
    listening = [one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.pid in pids]
    assert len(listening) >= 4
    assert {one.laddr.ip for one in listening} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_secrets_are_private(shared: Stack) -> None:
    """State file and passwords are readable by their owner only, and no password is on a command line."""
    files = [shared.folder / "stack.json", *(shared.folder / "secrets").iterdir()]
    assert all(one.stat().st_mode & 0o077 == 0 for one in files)
    assert shared.folder.stat().st_mode & 0o777 == 0o700
    lines = " ".join(" ".join(one.cmdline()) for one in processes_of(shared.state))
    passwords = [read_password(one) for one in (shared.folder / "secrets").glob("*.password")]
    assert len(passwords) >= 8
    assert not [one for one in passwords if one in lines]


def test_kafka_refuses_wrong_and_missing_passwords(shared: Stack) -> None:
    """Only the account with its password sees the cluster."""
    state = shared.state
    host, port = split_address(state.kafka.bootstrap_servers, 0)
    right = read_password(state.kafka.password_file)
    assert len(ask_kafka(host, port, state.kafka.username, right).brokers) == 1
    with pytest.raises(StackError):
        ask_kafka(host, port, state.kafka.username, "wrong")
    with pytest.raises(OSError, match=r"closed|reset"):
        ask_kafka(host, port)
    assert AdminClient(kafka_settings(state, right)).list_topics(timeout=10).cluster_id == state.kafka.cluster_id
    with pytest.raises(KafkaException):
        AdminClient(kafka_settings(state, "wrong")).list_topics(timeout=3)


def test_kafka_creates_no_topic_by_itself(shared: Stack) -> None:
    """A misspelt topic must be an error, not a new topic."""
    admin = AdminClient(kafka_settings(shared.state, read_password(shared.state.kafka.password_file)))
    topics = admin.list_topics("never-created", timeout=10).topics
    assert topics["never-created"].error is not None


def test_postgres_refuses_wrong_and_missing_passwords(shared: Stack) -> None:
    """Every role needs its own password, over TCP too."""
    state = shared.state.postgres

    def connect(user: str, password: str) -> str:
        with (
            contextlib.closing(
                psycopg2.connect(host=state.host, port=state.port, dbname=state.database, user=user, password=password, passfile=os.devnull)
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT current_user")
            return str(cursor.fetchone()[0])

    for user, file in (
        (state.owner_user, state.owner_password_file),
        (state.driver_user, state.driver_password_file),
        (state.writer_user, state.writer_password_file),
        (state.reader_user, state.reader_password_file),
        (state.superuser, state.superuser_password_file),
    ):
        assert connect(user, read_password(file)) == user
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            connect(user, "wrong")
    with pytest.raises(psycopg2.OperationalError):
        connect(state.owner_user, "")


def test_driver_may_end_a_writers_backend(shared: Stack) -> None:
    """The driver's role is a member of the writer's, so it can free a stuck writer; a writer cannot."""
    state = shared.state.postgres

    def connect(user: str, file: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(host=state.host, port=state.port, dbname=state.database, user=user, password=read_password(file))

    with (
        contextlib.closing(connect(state.driver_user, state.driver_password_file)) as driver,
        contextlib.closing(connect(state.writer_user, state.writer_password_file)) as writer,
        driver.cursor() as cursor,
    ):
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", (writer.info.backend_pid,))
        assert cursor.fetchone() == (True,)


def test_postgres_is_durable(shared: Stack) -> None:
    """What the promise rests on is not switched off to look fast."""
    state = shared.state.postgres
    with (
        contextlib.closing(
            psycopg2.connect(
                host=state.host,
                port=state.port,
                dbname=state.database,
                user=state.owner_user,
                password=read_password(state.owner_password_file),
            )
        ) as connection,
        connection.cursor() as cursor,
    ):
        for name, value in (
            ("fsync", "on"),
            ("synchronous_commit", "on"),
            ("track_commit_timestamp", "on"),
            ("server_encoding", "UTF8"),
            ("jit", "off"),
            ("max_connections", "60"),
        ):
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == (value,), name


def test_registry_refuses_an_incompatible_schema(shared: Stack) -> None:
    """The global level is BACKWARD: a new field without a default is a conflict."""
    url = f"{shared.state.registry.url}/subjects/stack-test-value/versions"

    def register(fields: list[dict[str, str]]) -> int:
        schema = {"type": "record", "name": "Probe", "fields": fields}
        return ask_http(url, method="POST", body={"schema": json.dumps(schema)})[0]

    first = {"name": "a", "type": "long"}
    assert register([first]) == 200
    assert register([first, {"name": "b", "type": "long"}]) == 409


def test_mqtt_accounts(shared: Stack) -> None:
    """Anonymous and wrong passwords are refused; the gateways' account works only once enabled."""
    state = shared.state.mqtt
    pipeline, gateway = read_password(state.password_file), read_password(state.gateway_password_file)

    def ask(user: str | None, password: str | None) -> int:
        return ask_mqtt(state.host, state.port, user, password)

    assert ask(state.username, pipeline) == ACCEPTED
    assert ask(state.username, "wrong") == NOT_AUTHORISED
    assert ask(None, None) == NOT_AUTHORISED
    enable_gateways(shared.state, enabled=False)
    assert ask(state.gateway_username, gateway) == NOT_AUTHORISED
    enable_gateways(shared.state)
    assert shared.state.mqtt.gateway_enabled
    assert ask(state.gateway_username, gateway) == ACCEPTED


def test_mqtt_access_list(shared: Stack) -> None:
    """A gateway publishes under its own name only, and the pipeline receives that through $share."""
    state = shared.state.mqtt
    enable_gateways(shared.state)
    received: list[str] = []
    subscribed: list[int] = []
    pipeline = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    pipeline.username_pw_set(state.username, read_password(state.password_file))
    pipeline.on_message = lambda _client, _data, message: received.append(message.topic)
    pipeline.on_subscribe = lambda *arguments: subscribed.append(1)
    gateway = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    gateway.username_pw_set(state.gateway_username, read_password(state.gateway_password_file))
    for client in (pipeline, gateway):
        client.connect(state.host, state.port)
        client.loop_start()
    try:
        pipeline.subscribe([("$share/test/ruuvitag/data", 1), ("$share/test/ruuvi/#", 1)])
        assert eventually(lambda: bool(subscribed))
        own = f"ruuvi/{state.gateway_username}/AA"
        for topic in ("ruuvi/somebody-else/AA", own, "ruuvitag/other", "ruuvitag/data"):
            gateway.publish(topic, b"x", qos=1)
        assert eventually(lambda: len(received) >= 2)
        assert received == [own, "ruuvitag/data"]
    finally:
        for client in (pipeline, gateway):
            client.disconnect()
            client.loop_stop()


def test_a_stopped_stack_leaves_nothing(tmp_path: Path) -> None:
    """After `down` no process, port or file is left, and a second `down` is no error."""
    folder = tmp_path / "stack"
    runner = CliRunner()
    result = runner.invoke(command, ["up", "--json", "--dir", str(folder)])
    assert result.exit_code == 0, result.output
    state = load_state(folder)
    processes, ports = processes_of(state), ports_of(state)
    assert all(is_listening(port) for port in ports)
    gateway = read_password(state.mqtt.gateway_password_file)
    assert not state.mqtt.gateway_enabled
    refused = ask_mqtt(state.mqtt.host, state.mqtt.port, state.mqtt.gateway_username, gateway)
    assert refused == NOT_AUTHORISED  # nobody has subscribed yet
    assert runner.invoke(command, ["down", "--dir", str(folder)]).exit_code == 0
    assert still_there(processes, state) == []
    assert not any(is_listening(port) for port in ports)
    assert not folder.exists()
    assert not Path(state.run_dir).exists()
    again = runner.invoke(command, ["down", "--dir", str(folder)])
    assert (again.exit_code, again.output.strip()) == (0, "not running")
    assert runner.invoke(command, ["status", "--dir", str(folder)]).exit_code == 1


def test_killing_the_keeper_takes_everything_along(tmp_path: Path) -> None:
    """kill -9 of the keeper leaves no server, Ray's agents and workers included; the data stays."""
    folder = tmp_path / "stack"
    with contextlib.ExitStack() as undo:
        undo.callback(stop_stack, folder)
        start_stack(StackOptions(folder=folder, ray=True))
        state = load_state(folder)
        token = read_password(state.ray.token_file)
        assert ask_http(f"{state.ray.dashboard_url}/api/jobs/")[0] == 401
        assert ask_http(f"{state.ray.dashboard_url}/api/jobs/", token=token)[0] == 200
        processes = processes_of(state)
        assert len(processes) > 20
        os.kill(state.keeper_pid, signal.SIGKILL)
        assert eventually(lambda: not still_there(processes, state)), still_there(processes, state)
        assert Path(state.data_dir).exists()
    assert not Path(state.run_dir).exists()
    with pytest.raises(StackNotRunning):
        load_state(folder)


@pytest.mark.parametrize("starter", ["in a thread", "with a fork"])
def test_killing_the_leashing_parent_takes_everything_along(tmp_path: Path, starter: str) -> None:
    """kill -9 of a program that started a leashed stack ends the stack and deletes its data.

    From a thread only the pipe can tell; with a forked child that holds the pipe only the kernel's signal.
    """
    folder = tmp_path / "stack"
    begin = "threading.Thread(target=start).start()" if starter == "in a thread" else "start(); fork()"
    program = (
        "import os, sys, threading, time; from pathlib import Path\n"
        "from rayapp.stack import StackOptions, start_stack\n"
        "def start():\n"
        "    global stack\n"
        "    options = StackOptions(folder=Path(sys.argv[1]), components=('mqtt', 'postgres'), leash=True)\n"
        "    stack = start_stack(options)\n"
        "    print('up', flush=True)\n"
        "def fork():\n"
        "    child = os.fork()\n"
        "    if not child: time.sleep(60); os._exit(0)\n"
        "    print(child, flush=True)\n"
        f"{begin}; time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    with parent, contextlib.ExitStack() as undo:
        undo.callback(parent.kill)
        assert parent.stdout.readline().strip() == "up"
        if starter == "with a fork":
            child = psutil.Process(int(parent.stdout.readline()))
            undo.callback(child.kill)
        state = load_state(folder)
        processes = processes_of(state)
        parent.kill()
        assert eventually(lambda: not still_there(processes, state)), still_there(processes, state)
        assert eventually(lambda: not folder.exists())
        assert not Path(state.run_dir).exists()
        if starter == "with a fork":
            assert child.is_running()


def test_a_killed_server_stays_dead_until_started(tmp_path: Path) -> None:
    """A chaos test can kill a broker, see it dead, and start it again with its data and address."""
    with start_stack(StackOptions(folder=tmp_path / "stack", leash=True)) as running:
        state = running.state
        admin = AdminClient(kafka_settings(state, read_password(state.kafka.password_file)))
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(10)
        kill_component(state, "kafka")
        assert eventually(lambda: running.state.kafka.state == "dead")
        assert running.state.kafka.exit_code == -signal.SIGKILL
        result = CliRunner().invoke(command, ["status", "--json", "--dir", str(running.folder)])
        assert result.exit_code == 3, result.output
        start_component(state, "kafka")
        assert running.state.kafka.bootstrap_servers == state.kafka.bootstrap_servers
        assert eventually(lambda: "kept" in admin.list_topics(timeout=10).topics)
        for name in ("postgres", "mqtt", "registry"):
            assert restart_component(state, name) != list(state.components[name].pids)
        assert all(one.state == "ready" for one in running.state.components.values())


def test_kept_data_is_found_again(tmp_path: Path) -> None:
    """`down --keep-data` and `up` give the same cluster, passwords and database."""
    folder = tmp_path / "stack"
    options = StackOptions(folder=folder, components=("kafka", "postgres"))
    with contextlib.ExitStack() as undo:
        undo.callback(stop_stack, folder)
        first = start_stack(options).state
        password = read_password(first.postgres.owner_password_file)
        stop_stack(folder, keep_data=True)
        assert load_state(folder).kafka.state == "stopped"
        second = start_stack(options).state
        assert second.kafka.cluster_id == first.kafka.cluster_id
        assert read_password(second.postgres.owner_password_file) == password


def test_a_failed_start_names_the_server_and_leaves_nothing(tmp_path: Path) -> None:
    """A server that refuses its settings is named with its log, exit code 3, and the others are stopped."""
    folder = tmp_path / "stack"
    result = CliRunner().invoke(command, ["up", "--shared-buffers", "nonsense", "--dir", str(folder)])
    assert result.exit_code == 3, result.output
    assert "postgres" in result.output
    assert "nonsense" in result.output
    assert not (folder / "stack.json").exists()
    mentions = [one for one in psutil.process_iter(["cmdline"]) if str(folder) in str(one.info["cmdline"])]
    assert mentions == []


def test_a_server_of_the_user_is_used_and_left_alone(shared: Stack, tmp_path: Path) -> None:
    """`--use` records the address of a server that runs already, and `down` does not touch it."""
    theirs = shared.state
    use = {
        "kafka": theirs.kafka.bootstrap_servers,
        "registry": theirs.registry.url,
        "mqtt": theirs.mqtt.where,
        "postgres": theirs.postgres.where,
    }
    with start_stack(StackOptions(folder=tmp_path / "stack", components=(), use=use, leash=True)) as running:
        assert all(one.external and not one.pids for one in running.state.components.values())
        assert running.state.kafka.bootstrap_servers == theirs.kafka.bootstrap_servers
    assert all(is_listening(port) for port in ports_of(theirs))


def test_ray_without_its_raylet_is_dead_as_a_whole(tmp_path: Path) -> None:
    """A dead raylet ends all of Ray, agents included, and the state says so; another start brings it back."""
    options = StackOptions(folder=tmp_path / "stack", components=(), ray=True, leash=True)
    with start_stack(options) as running:
        processes = [psutil.Process(pid) for pid in process_ids(running.state)["ray"]]
        (raylet,) = [one for one in processes if one.name() == "raylet"]
        agents = [one for one in processes if "Agent" in one.name()]
        assert len(agents) == 2
        raylet.kill()
        assert eventually(lambda: running.state.ray.state == "dead")
        assert eventually(lambda: not psutil.wait_procs(processes, timeout=0)[1])
        start_component(running.state, "ray")
        assert running.state.ray.state == "ready"


def test_a_ray_node_beside_the_head_dies_alone_and_comes_again(tmp_path: Path) -> None:
    """kill -9 of a worker node ends all its processes and leaves the head at work; `start` returns when its successor is there."""

    def node() -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in process_ids(running.state)["ray_workers"]]

    options = StackOptions(
        folder=tmp_path / "stack", components=(), ray=True, ray_workers=1, ray_environment=QUICK_TO_NOTICE_A_DEAD_NODE, leash=True
    )
    with start_stack(options) as running:
        token = read_password(running.state.ray.token_file)
        head = [psutil.Process(pid) for pid in process_ids(running.state)["ray"]]
        first = node()
        assert [one.name() for one in first].count("raylet") == 1
        assert living_nodes(running.state.ray.dashboard_url, token) == 2

        kill_component(running.state, "ray_workers", signal.SIGKILL, "ray-worker-1")

        # Gone, reaped by the keeper, and not just zombies.
        assert eventually(lambda: not any(one.is_running() for one in first), 60.0)
        assert running.state.ray.state == "ready"
        assert all(one.is_running() for one in head if one.name() in ("raylet", "gcs_server"))

        start_component(running.state, "ray_workers")

        assert [one.name() for one in node()].count("raylet") == 1
        assert eventually(lambda: living_nodes(running.state.ray.dashboard_url, token) == 2, 60.0)
