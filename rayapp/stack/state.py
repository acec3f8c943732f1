"""The one file that says where everything is: `<dir>/stack.json`, mode 0600, replaced atomically.

The keeper writes it at every change; commands, demo, bench and tests read it and never guess a port.
It holds paths of password files, not passwords. A pid alone proves nothing after a reboot, so each
one is stored with its start time, and `keeper_is_alive` compares both. A component the user runs
himself is `external`: it has an address and no pids, and nobody here stops it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import psutil

from rayapp.errors import ConfigurationError
from rayapp.stack.errors import StackNotRunning
from rayapp.stack.layout import write_private

STATE_VERSION = 1
# psutil derives start times from clock ticks; two reads of one process may differ by rounding.
START_TOLERANCE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ComponentState:
    """What all components have in common.

    Attributes:
        state: pending, preparing, starting, ready, dead, stopping or stopped.
        pids: processes the keeper itself started for it, and `pid_starts` when each began.
        exit_code: of the first process that ended by itself; negative is a signal.
        ready_s: seconds from the keeper's start until it answered.
    """

    state: str = "pending"
    pids: tuple[int, ...] = ()
    pid_starts: tuple[float, ...] = ()
    log: str = ""
    external: bool = False
    exit_code: int | None = None
    ready_s: float | None = None
    detail: str = ""

    address_field: ClassVar[str] = ""

    @property
    def where(self) -> str:
        """One printable address."""
        return str(getattr(self, self.address_field)) if self.address_field else ""


@dataclass(frozen=True, kw_only=True)
class KafkaState(ComponentState):
    """How clients reach the brokers: SASL/PLAIN over plain TCP on the loopback address."""

    address_field: ClassVar[str] = "bootstrap_servers"
    bootstrap_servers: str = ""
    username: str = ""
    password_file: str = ""
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    replication_factor: int = 1
    min_insync_replicas: int = 1
    cluster_id: str = ""
    proxied: tuple[tuple[int, int], ...] = ()
    """(port a proxy must listen on, the broker's port behind it), a broker each."""


@dataclass(frozen=True, kw_only=True)
class RegistryState(ComponentState):
    """The Confluent-compatible API of the schema registry."""

    address_field: ClassVar[str] = "url"
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class MqttState(ComponentState):
    """The broker and its two accounts; the gateway's works only once `gateway_enabled`."""

    host: str = ""
    port: int = 0
    username: str = ""
    password_file: str = ""
    gateway_username: str = ""
    gateway_password_file: str = ""
    gateway_enabled: bool = False

    @property
    def where(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class PostgresState(ComponentState):
    """The database and its accounts: who owns, who drives, who writes, who reads."""

    host: str = ""
    port: int = 0
    database: str = ""
    superuser: str = ""
    superuser_password_file: str = ""
    owner_user: str = ""
    owner_password_file: str = ""
    driver_user: str = ""
    driver_password_file: str = ""
    writer_user: str = ""
    writer_password_file: str = ""
    reader_user: str = ""
    reader_password_file: str = ""
    timescaledb: bool = False
    server_version: str = ""

    @property
    def where(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class RayState(ComponentState):
    """The Ray head: GCS address, dashboard, metrics port and its token."""

    address_field: ClassVar[str] = "dashboard_url"
    address: str = ""
    dashboard_url: str = ""
    metrics_url: str = ""
    auth_mode: str = "disabled"
    token_file: str = ""
    num_cpus: int = 0


STATE_TYPES: Mapping[str, type[ComponentState]] = {
    "postgres": PostgresState,
    "kafka": KafkaState,
    "registry": RegistryState,
    "mqtt": MqttState,
    "ray": RayState,
    "ray_workers": ComponentState,
}


@dataclass(frozen=True, kw_only=True)
class StackState:
    """One stack: who keeps it, where its data is, and each component (None = not part of it)."""

    keeper_pid: int
    keeper_started: float
    data_dir: str
    run_dir: str
    control_socket: str
    leash: bool = False
    version: int = STATE_VERSION
    components: Mapping[str, ComponentState] = field(default_factory=dict)

    def _component(self, name: str) -> Any:
        try:
            return self.components[name]
        except KeyError:
            raise ConfigurationError(f"component={name}: not part of this stack ({', '.join(self.components)}); start it with it") from None

    @property
    def kafka(self) -> KafkaState:
        """The brokers."""
        found: KafkaState = self._component("kafka")
        return found

    @property
    def registry(self) -> RegistryState:
        """The schema registry."""
        found: RegistryState = self._component("registry")
        return found

    @property
    def mqtt(self) -> MqttState:
        """The MQTT broker."""
        found: MqttState = self._component("mqtt")
        return found

    @property
    def postgres(self) -> PostgresState:
        """The database."""
        found: PostgresState = self._component("postgres")
        return found

    @property
    def ray(self) -> RayState:
        """The Ray head."""
        found: RayState = self._component("ray")
        return found

    def live_pids(self) -> Iterator[tuple[str, int]]:
        """Yield (component, pid) of recorded processes that still are the same processes."""
        for name, component in self.components.items():
            for pid, started in zip(component.pids, component.pid_starts, strict=True):
                if is_same_process(pid, started):
                    yield name, pid

    def to_json(self) -> str:
        """Render the file's text."""
        return json.dumps(asdict(self), indent=2, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> StackState:
        """Read the file's text; unknown keys of a newer minor writer are ignored."""
        raw = json.loads(text)
        if raw.get("version") != STATE_VERSION:
            raise ConfigurationError(
                f"version={raw.get('version')} in stack.json: this program reads {STATE_VERSION}; "
                "stop that stack with the program that started it"
            )
        components = {name: _from_mapping(STATE_TYPES[name], value) for name, value in raw["components"].items()}
        known = {one.name for one in fields(cls)}
        return cls(**{**{k: v for k, v in raw.items() if k in known}, "components": components})


def _from_mapping(kind: type[ComponentState], raw: Mapping[str, Any]) -> ComponentState:
    known = {one.name for one in fields(kind)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items() if k in known}
    return kind(**values)


def load_state(folder: Path) -> StackState:
    """Read the state file of a folder.

    Raises:
        StackNotRunning: there is none.
    """
    path = folder / "stack.json"
    try:
        return StackState.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StackNotRunning(f"dir={folder}: no stack.json there; start one with `rayapp stack up`") from None


def write_state(path: Path, state: StackState) -> None:
    """Replace the state file in one step."""
    write_private(path, state.to_json())


def keeper_is_alive(state: StackState) -> bool:
    """Say whether the recorded keeper is still that process."""
    return is_same_process(state.keeper_pid, state.keeper_started)


def is_same_process(pid: int, started: float) -> bool:
    """Say whether `pid` is alive (a zombie is not) and began when recorded."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < START_TOLERANCE_S and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
