"""Real servers for the tests here: one stack a session, one database schema, fresh names for every module.

RUUVI_TEST_STACK_DIR names the folder of a stack that already runs (`rayapp
stack up --dir …`), for quick development; without it one is started for the
session on a leash, so that it cannot outlive the tests.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from builders import eventually
from gate import Gate
from partition import Partition

from actors.adapters.kafka import Topics
from actors.adapters.postgres import Connection, connect
from actors.write.actor import Write
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import KafkaUnavailable
from rayapp.files import project_file
from rayapp.local import write_settings
from rayapp.migrate import migrate
from rayapp.stack import StackOptions, StackState, load_state, start_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackState]:
    """The session's servers, without Ray."""
    given = os.environ.get("RUUVI_TEST_STACK_DIR")
    if given:
        yield load_state(Path(given))
        return
    with start_stack(StackOptions(folder=tmp_path_factory.mktemp("servers") / "stack", leash=True)) as running:
        yield running.state


@pytest.fixture(scope="session")
def migrated(stack: StackState, tmp_path_factory: pytest.TempPathFactory) -> StackState:
    """The same servers with our tables and the day partitions around today."""
    settings = write_settings(stack, tmp_path_factory.mktemp("migrate") / "rayapp.yaml")
    connection = connect(settings.database, "owner", application="tests migrate")
    migrate(connection, project_file("sql/migrations"))
    today = datetime.now(UTC).date()
    for ahead in range(-1, 3):
        connection.execute("SELECT ensure_day(%s)", (today + timedelta(days=ahead),))
    connection.commit()
    connection.close()
    return stack


@pytest.fixture(scope="module")
def settings(migrated: StackState, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a pipeline that nobody else uses: its own name, topics and group."""
    name = f"test-{secrets.token_hex(4)}"
    return write_settings(
        migrated,
        tmp_path_factory.mktemp(name) / "rayapp.yaml",
        {
            "pipeline": name,
            "kafka": {"topic": name, "dead_letter_topic": f"{name}-dlq", "group": name, "partitions": 3},
        },
    )


@pytest.fixture(scope="module")
def topics(settings: Settings) -> Topics:
    """The module's topics, made, with a leader for every partition."""
    made = Topics(settings.kafka)

    def led() -> bool:
        try:
            made.ensure()
            return len(made.offsets(settings.kafka.topic, 3)) == 3
        except KafkaUnavailable:  # the brokers need a moment to know a new topic and who leads it
            return False

    assert eventually(led)
    return made


@pytest.fixture
def connections(settings: Settings) -> Iterator[list[Connection]]:
    """Connections that a test opened, closed with it."""
    opened: list[Connection] = []
    yield opened
    for connection in opened:
        connection.close()


@pytest.fixture
def owner(settings: Settings, connections: list[Connection]) -> Connection:
    """A connection that sees everything, outside any transaction of the code under test."""
    connection = connect(settings.database, "owner", application="tests owner", autocommit=True)
    connections.append(connection)
    return connection


@pytest.fixture
def claims(settings: Settings, connections: list[Connection]) -> Claims:
    """The driver's claims."""
    connection = connect(settings.database, "driver", application="tests driver")
    connections.append(connection)
    made = Claims(connection, settings.pipeline, "tests")
    made.become_driver()
    return made


@pytest.fixture
def make(settings: Settings, claims: Claims, owner: Connection, connections: list[Connection]) -> Callable[[], Partition]:
    """A function that makes a fresh partition."""
    return lambda: Partition(settings, claims, owner, connections)


@pytest.fixture
def one(make: Callable[[], Partition]) -> Partition:
    """A fresh partition."""
    return make()


@pytest.fixture
def write(settings: Settings) -> Iterator[Callable[..., Write]]:
    """A function that makes a write actor; database settings may differ, e.g. `port=gate.port`."""
    made: list[Write] = []

    def actor(**database: Any) -> Write:
        made.append(Write(f"write/0#{len(made)}", settings.model_copy(update={"database": settings.database.model_copy(update=database)})))
        return made[-1]

    yield actor
    for each in made:
        for _, writer in each._writers.values():
            writer.connection.close()


@pytest.fixture
def gate(settings: Settings) -> Iterator[Gate]:
    """A proxy before the database."""
    with Gate(settings.database.port) as made:
        yield made
