"""A TCP proxy inside the test's process: requests and answers can be held back or swallowed, each by itself.

with Gate(port) as gate:
    connect(..., port=gate.port)
    gate.answers.hold()         what the server says waits; so do the client's calls
    gate.cut()                  both sides are closed; new connections work
    gate.abandon()              the client is cut off, the server is not told
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Self

CHUNK_BYTES = 64 * 1024


class Way:
    """One direction of all connections."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._open.set()
        self._swallows = False
        self._left: int | None = None
        self._lock = threading.Lock()

    def hold(self, after_bytes: int = 0) -> None:
        """Forward nothing, or so many bytes more, and read nothing once one chunk is in hand."""
        self._left = after_bytes or None
        if not after_bytes:
            self._open.clear()

    def swallow(self) -> None:
        """Read everything and forward nothing."""
        self._swallows = True

    def let_go(self) -> None:
        """Forward again, first what was held."""
        self._swallows = False
        with self._lock:
            self._left = None
            self._open.set()

    @property
    def holds(self) -> bool:
        """True while something may be held back."""
        return not self._open.is_set()

    def _sent(self, count: int, rest: bytes) -> bytes:
        """Count bytes sent before a hold; it begins when there are more, unless everything was let go meanwhile."""
        with self._lock:
            if self._left is not None:
                self._left -= count
                if rest:
                    self._left = None
                    self._open.clear()
        return rest

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        """Carry bytes until a side ends."""
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                self._open.wait()
                left = self._left
                if left is not None:
                    sink.sendall(chunk[:left])
                    chunk = self._sent(len(chunk[:left]), chunk[left:])
                    self._open.wait()
                if not self._swallows:
                    sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class Gate:
    """The proxy before one port of loopback."""

    def __init__(self, to_port: int) -> None:
        self.requests, self.answers = Way(), Way()
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._listener)
        self.requests.let_go()
        self.answers.let_go()
        self.cut()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to_port))
                except OSError:
                    client.close()
                    continue
                for each in (client, server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._pairs.append((client, server))
                threading.Thread(target=self.requests.pump, args=(client, server), daemon=True).start()
                threading.Thread(target=self.answers.pump, args=(server, client), daemon=True).start()

    def cut(self) -> None:
        """Close every connection on both sides."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                _close(each)

    def abandon(self) -> None:
        """Reset the clients' sides; the server hears nothing of it."""
        with self._lock:
            for client, _ in self._pairs:
                with contextlib.suppress(OSError):
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.shutdown(socket.SHUT_RD)
                _close(client)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
