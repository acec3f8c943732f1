"""The keeper's control socket: one JSON object a line in, one JSON object a line back.

    {"op":"status"}                                         what each component says, asked again now
    {"op":"kill","component":"kafka","signal":9,"process":"kafka-2"}
    {"op":"start","component":"kafka"}                      answers when it serves again
    {"op":"gateways","enabled":true}
    {"op":"stop","keep_data":false}                         answers at once; wait for the keeper's end

The socket lies in the stack's short folder, mode 0600. Each connection has a thread; operations on
components take turns under the keeper's lock. A request that fails answers {"ok":false,"error":...};
a client whose keeper is gone gets StackNotRunning.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rayapp.errors import RayappError
from rayapp.stack.errors import StackError, StackNotRunning

REQUEST_LIMIT_BYTES = 64 * 1024
CLIENT_TIMEOUT_S = 150.0


class ControlServer:
    """Listens and answers until closed."""

    def __init__(self, path: Path, handle: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self._handle = handle
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX)
        previous = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(previous)
        self._socket.listen(16)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw", encoding="utf-8") as stream:
            while line := stream.readline(REQUEST_LIMIT_BYTES):
                with contextlib.suppress(OSError):  # the client need not wait for its answer
                    stream.write(json.dumps(self._answer(line)) + "\n")
                    stream.flush()

    def _answer(self, line: str) -> Mapping[str, Any]:
        try:
            return {"ok": True, **self._handle(json.loads(line))}
        except (RayappError, OSError, ValueError, KeyError, TypeError) as error:
            return {"ok": False, "error": f"{type(error).__name__}: {error}"}


def ask_keeper(path: str, request: Mapping[str, Any], timeout_s: float = CLIENT_TIMEOUT_S) -> dict[str, Any]:
    """Send one request and return the answer.

    Raises:
        StackNotRunning: nobody listens.
        StackError: the keeper refused; the message is its own.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            with connection.makefile("rw", encoding="utf-8") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                line = stream.readline()
    except (FileNotFoundError, ConnectionError) as error:
        raise StackNotRunning(f"control_socket={path}: no keeper listens there ({error})") from error
    except TimeoutError as error:
        raise StackError(f"keeper: no answer to {request['op']} within {timeout_s:.0f} s") from error
    if not line:
        raise StackNotRunning(f"control_socket={path}: the keeper ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if not answer.pop("ok"):
        raise StackError(str(answer["error"]))
    return answer
