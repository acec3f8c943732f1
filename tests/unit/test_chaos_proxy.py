"""The proxy passes, delays, blackholes and cuts, on real sockets, as its commands say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from builders import eventually

from rayapp.chaos import proxy
from rayapp.stack.ports import free_ports

HOST = "127.0.0.1"


class Echo:
    """A server that answers every connection with what it says."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self.port = self._socket.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65_536):
                    connection.sendall(data)
            except OSError:
                return


class Proxy:
    """The program as the harness starts it."""

    def __init__(self, to: int) -> None:
        (self.port,) = free_ports(1)
        self.process = subprocess.Popen(
            [sys.executable, "-I", proxy.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        self.tell(name="link", listen=self.port, to=to)
        assert self.tell(start=True)["ready"]

    def tell(self, **command: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), 5)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(5)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def link(echo: Echo) -> Iterator[Proxy]:
    running = Proxy(echo.port)
    yield running
    running.close()


def exchange(connection: socket.socket, data: bytes = b"hello") -> float:
    """Send, require the same back, and return how long it took."""
    began = time.monotonic()
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        part = connection.recv(65_536)
        assert part, "closed before the answer was whole"
        answer += part
    assert answer == data
    return time.monotonic() - began


def test_bytes_pass_unchanged_in_both_directions(link: Proxy) -> None:
    """A megabyte there and back; nothing was held."""
    with link.connect() as connection:
        connection.settimeout(10)
        data = bytes(range(256)) * 4_096
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        answer = b""
        while len(answer) < len(data):
            answer += connection.recv(65_536)
        sender.join(5)
        assert answer == data
        assert link.tell(name="link", mode="pass") == {"connections": 1, "held_bytes": 0}


def test_a_delay_holds_each_direction_for_its_time_and_is_over_when_told(link: Proxy) -> None:
    """0.15 s there and as much back; then none."""
    with link.connect() as connection:
        exchange(connection)
        link.tell(name="link", mode="delay", delay_s=0.15)
        assert exchange(connection) >= 0.29
        assert link.tell(name="link", mode="pass")["held_bytes"] == 2 * len(b"hello")
        assert exchange(connection) < 0.25


def test_a_blackhole_keeps_connections_and_forwards_nothing_until_it_is_lifted(link: Proxy) -> None:
    """Nothing comes back, nothing is closed; afterwards what was sent arrives."""
    with link.connect() as connection:
        exchange(connection)
        link.tell(name="link", mode="blackhole")
        connection.sendall(b"held")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        assert link.tell(name="link", mode="pass")["held_bytes"] == len(b"held")
        connection.settimeout(5)
        assert connection.recv(10) == b"held"


def test_a_connection_made_during_a_blackhole_reaches_the_server_only_afterwards(link: Proxy, echo: Echo) -> None:
    """As a SYN that is answered, and then silence."""
    link.tell(name="link", mode="blackhole")
    with link.connect() as connection:
        connection.settimeout(0.2)
        connection.sendall(b"late")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        assert echo.accepted == 0
        link.tell(name="link", mode="pass")
        connection.settimeout(5)
        assert connection.recv(10) == b"late"


def test_a_cut_resets_every_connection_and_new_ones_work(link: Proxy) -> None:
    """The client sees a reset, not an orderly end; the number cut is answered."""
    connections = [link.connect() for _ in range(3)]
    for connection in connections:
        exchange(connection)
    assert link.tell(name="link", cut=True) == {"cut": 3}
    for connection in connections:
        with pytest.raises(ConnectionResetError):
            connection.recv(10)
        connection.close()
    assert eventually(lambda: link.tell(name="link", mode="pass")["connections"] == 0, 5)
    with link.connect() as connection:
        exchange(connection)


def test_a_server_that_is_away_closes_its_clients_and_is_reached_when_it_is_back(echo: Echo) -> None:
    """A dead upstream looks dead through the proxy, too."""
    (port,) = free_ports(1)
    running = Proxy(port)
    try:
        with running.connect() as connection:
            connection.settimeout(5)
            assert connection.recv(10) == b""
    finally:
        running.close()


def test_it_ends_with_whoever_started_it_and_without_a_word(link: Proxy) -> None:
    """Its standard input closed: no proxy outlives its harness, and connections still open are nothing to complain of."""
    with link.connect() as connection:
        exchange(connection)
        link.process.stdin.close()
        assert link.process.wait(5) == 0
        assert link.process.stderr.read() == ""
