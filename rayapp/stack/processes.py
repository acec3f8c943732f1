"""Starting and ending child processes so that none outlives its keeper.

Linux sends a child its parent-death signal when the *thread* that forked it ends, so everything here
is started from the keeper's main thread: worker threads hand their starts to `Spawner`, the main
thread performs them in `serve`. A child whose parent is already gone when it asks for the signal would
wait for ever, hence the check of the parent's pid after asking. Ending is by pid with the start time
compared, never by name; a tree is listed before its root is killed, as orphans cannot be found later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from rayapp.stack.errors import StackError
from rayapp.stack.layout import ServiceUser

PR_SET_PDEATHSIG = 1
POLL_S = 0.05
Result = TypeVar("Result")
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ServerProcess:
    """One process to start.

    Attributes:
        stop_signal: asks it to end in order.
        death_signal: the kernel's message to it when the keeper is gone.
    """

    name: str
    argv: Sequence[str]
    log: Path
    cwd: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: ServiceUser | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL


def die_with_parent(death_signal: signal.Signals, parent_pid: int) -> None:
    """Ask the kernel for `death_signal` when the calling thread's parent thread ends."""
    _LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def start_process(process: ServerProcess) -> subprocess.Popen[bytes]:
    """Start one server in its own session, its output appended to its log."""
    parent_pid = os.getpid()
    user = process.user
    descriptor = os.open(process.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            list(process.argv),
            cwd=process.cwd,
            env={**base_environment(), **process.environment},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[user.gid] if user else None,
            # Runs after the change of user, which would clear the signal again.
            preexec_fn=lambda: die_with_parent(process.death_signal, parent_pid),  # noqa: PLW1509 - one prctl call, and it must be this thread
        )
    except OSError as error:
        raise StackError(f"{process.name}: cannot start {process.argv[0]}: {error}") from error
    finally:
        os.close(descriptor)


def base_environment() -> dict[str, str]:
    """Return our environment without what would change a server's behaviour behind our back."""
    dropped = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
    return {key: value for key, value in os.environ.items() if key not in dropped and not key.startswith(("PG", "RAY_", "KAFKA_"))}


class Spawner:
    """Hands process starts from any thread to the main thread."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._owner = threading.get_ident()
        self._closed = threading.Event()
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def pids(self) -> set[int]:
        """Processes that were started here and whose exit status nobody has taken yet."""
        return {one.pid for one in self._started if one.returncode is None}

    def _perform(self, process: ServerProcess) -> subprocess.Popen[bytes]:
        started = start_process(process)
        self._started = [one for one in self._started if one.returncode is None] + [started]
        return started

    def start(self, process: ServerProcess) -> subprocess.Popen[bytes]:
        """Start a process from the main thread, wherever the caller runs."""
        return self.on_main(lambda: self._perform(process))

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Have the main thread do something, and return what came of it.

        Raises:
            StackError: the stack is stopping.
        """
        if threading.get_ident() == self._owner:
            return action()
        done = threading.Event()
        results: list[Result] = []
        errors: list[BaseException] = []

        def perform() -> None:
            try:
                results.append(action())
            except BaseException as error:  # handed to the thread that asked
                errors.append(error)
            done.set()

        self._requests.put(perform)
        while not done.wait(POLL_S * 4):
            if self._closed.is_set():
                raise StackError("nothing is started any more, the stack is stopping")
        if errors:
            raise errors[0]
        return results[0]

    def run(self, process: ServerProcess, deadline_s: float) -> None:
        """Run a command to its end.

        Raises:
            StackError: it failed, took longer than the deadline, or the stack is stopping.
        """
        running = self.start(process)
        end = time.monotonic() + deadline_s
        while running.poll() is None:
            if time.monotonic() > end or self._closed.is_set():
                end_tree(running.pid)
                raise StackError(f"{process.name}: {process.argv[0]} not done after {deadline_s:.0f} s\n{log_tail(process.log)}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(POLL_S)
        if running.returncode != 0:
            raise StackError(f"{process.name}: {process.argv[0]} exited {running.returncode}\n{log_tail(process.log)}")

    def serve(self, timeout_s: float) -> None:
        """Perform waiting starts; returns after one, or when nothing came for `timeout_s`."""
        with contextlib.suppress(queue.Empty):
            self._requests.get(timeout=timeout_s)()

    def close(self) -> None:
        """Refuse further starts, so that nothing appears while the stack stops."""
        self._closed.set()


def tree_of(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants that are alive now."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_tree(pid: int) -> None:
    """SIGKILL a process and its descendants."""
    kill_all(tree_of(pid))


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL exactly these processes; psutil compares start times, a reused pid is spared."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_gone(processes: Iterable[psutil.Process], deadline_s: float) -> list[psutil.Process]:
    """Wait until they are gone (or zombies of another parent) and return those that are not."""
    end = time.monotonic() + deadline_s
    left = list(processes)
    while True:
        left = [one for one in left if _still_runs(one)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(POLL_S)


def _still_runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_tail(path: Path, lines: int = 25) -> str:
    """Return the end of a log for an error message."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"(no log: {error})"
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])
