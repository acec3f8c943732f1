"""A thread that ends the wait for servers that do not answer.

libpq waits for an answer without end. The kernel gives up a connection whose
peer is gone, but not one whose peer merely says nothing: a stopped server, a
proxy or firewall that swallows bytes and acknowledges them. So whoever sends a
statement says here until when an answer must be there; when it is not, the
socket is shut down and the waiting call fails as if the peer had hung up.

A duplicate of the socket's descriptor is watched: libpq may close its own at
any moment, and the number could be another connection's by then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator

LOOK_EVERY_S = 0.25


class AnswerWatch:
    """Deadlines of one process's connections, and the thread that keeps them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due_s: dict[int, float] = {}
        self._thread: threading.Thread | None = None

    def begin(self, descriptor: int, due_s: float) -> None:
        """Expect an answer on a socket until `due_s` (time.monotonic)."""
        with self._lock:
            self._due_s[descriptor] = due_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="answer-watch", daemon=True)
                self._thread.start()

    def end(self, descriptor: int) -> bool:
        """Expect nothing more; False when the socket was shut down meanwhile."""
        with self._lock:
            return self._due_s.pop(descriptor, None) is not None

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            self.shut_down_due(time.monotonic())

    def shut_down_due(self, now_s: float) -> None:
        """Shut down the sockets whose answer is late."""
        with self._lock:
            for descriptor in [descriptor for descriptor, due_s in self._due_s.items() if due_s < now_s]:
                del self._due_s[descriptor]
                _shut_down(descriptor)


class WatchedSocket:
    """One connection's socket, as far as waiting on it goes.

    Args:
        descriptor: of the connected socket; it is duplicated.
        timeout_s: longest wait for an answer.
    """

    def __init__(self, watch: AnswerWatch, descriptor: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._watch = watch
        self._descriptor = os.dup(descriptor)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for an answer within the block.

        Raises:
            TimeoutError: the block failed because the answer was late and the socket was shut down.
        """
        if not self._close.alive:  # closed: whatever the block does fails at once
            yield
            return
        self._watch.begin(self._descriptor, time.monotonic() + self.timeout_s)
        try:
            yield
        except Exception as error:
            if not self._watch.end(self._descriptor):
                raise TimeoutError(f"no answer within {self.timeout_s:g} s") from error
            raise
        finally:
            self._watch.end(self._descriptor)

    def close(self) -> None:
        """Let the socket go."""
        self._watch.end(self._descriptor)
        self._close()


def _shut_down(descriptor: int) -> None:
    handle = socket.socket(fileno=descriptor)
    try:
        with contextlib.suppress(OSError):  # it is broken already
            handle.shutdown(socket.SHUT_RDWR)
    finally:
        handle.detach()
