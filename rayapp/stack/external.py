"""Servers the user already runs: asked whether they answer, never started, never stopped.

Named with `--use`. The question is one that needs no password of theirs: Kafka's ApiVersions, an MQTT
CONNECT (any CONNACK proves a broker), PostgreSQL's SSLRequest, the registry's subject list, Ray's
version (401 proves a dashboard with a token). Credentials stay where the user has them: the pipeline
reads its own settings for a server that is not ours.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

from rayapp.errors import ConfigurationError
from rayapp.stack.http_probe import ask_http
from rayapp.stack.kafka_probe import ask_versions
from rayapp.stack.mqtt_probe import ask_mqtt
from rayapp.stack.options import split_address
from rayapp.stack.processes import ServerProcess
from rayapp.stack.state import (
    ComponentState,
    KafkaState,
    MqttState,
    PostgresState,
    RayState,
    RegistryState,
)

SSL_REQUEST = struct.pack(">ii", 8, 80877103)


class External:
    """A component at a given address."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self._address = address
        describe: dict[str, Callable[[str], tuple[ComponentState, Callable[[], str]]]] = {
            "kafka": _kafka,
            "registry": _registry,
            "mqtt": _mqtt,
            "postgres": _postgres,
            "ray": _ray,
        }
        if name not in describe:
            raise ConfigurationError(f"use={name}: must be one of {', '.join(describe)}; correct the name")
        state, self._question = describe[name](address)
        self._state = replace(state, external=True)

    def prepare(self) -> None:
        """Nothing."""

    def processes(self) -> Sequence[ServerProcess]:
        """None of ours."""
        return []

    def ask(self) -> str:
        """Ask it."""
        return self._question()

    def settle(self) -> None:
        """Nothing: its settings are the user's."""

    def state(self) -> ComponentState:
        """Return the address."""
        return self._state


def _kafka(address: str) -> tuple[ComponentState, Callable[[], str]]:
    hosts = [split_address(one, 9092) for one in address.split(",")]

    def ask() -> str:
        for host, port in hosts:
            ask_versions(host, port)
        return ""

    return KafkaState(bootstrap_servers=",".join(f"{host}:{port}" for host, port in hosts)), ask


def _registry(address: str) -> tuple[ComponentState, Callable[[], str]]:
    url = address if "://" in address else f"http://{address}"

    def ask() -> str:
        status, _ = ask_http(f"{url.rstrip('/')}/subjects")
        return "" if status in (200, 401, 403) else f"HTTP {status}"

    return RegistryState(url=url), ask


def _mqtt(address: str) -> tuple[ComponentState, Callable[[], str]]:
    host, port = split_address(address, 1883)

    def ask() -> str:
        ask_mqtt(host, port, None, None)
        return ""

    return MqttState(host=host, port=port, gateway_enabled=True), ask


def _postgres(address: str) -> tuple[ComponentState, Callable[[], str]]:
    host, port = split_address(address, 5432)

    def ask() -> str:
        with socket.create_connection((host, port), 3.0) as connection:
            connection.sendall(SSL_REQUEST)
            answer = connection.recv(1)
        return "" if answer in (b"S", b"N") else f"answered {answer!r}, not PostgreSQL"

    return PostgresState(host=host, port=port), ask


def _ray(address: str) -> tuple[ComponentState, Callable[[], str]]:
    url = address if "://" in address else f"http://{address}"

    def ask() -> str:
        status, _ = ask_http(f"{url.rstrip('/')}/api/version")
        return "" if status in (200, 401, 403) else f"HTTP {status}"

    return RayState(dashboard_url=url), ask
