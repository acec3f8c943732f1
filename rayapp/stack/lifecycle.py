"""Starting, finding and stopping a stack from any program of this project.

`start_stack` spawns the keeper, relays its progress, and returns when every server answered a real
question. With `leash=True` (demo, bench, tests) the stack cannot outlive the caller: the keeper ends
when a pipe held here closes, which the kernel does for us even after kill -9; when the caller is on
its main thread the keeper also gets the parent-death signal, in case a forked child keeps the pipe.
A stack that already runs on the folder is returned as it is. Failures are StackError with a log tail.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

import rayapp
from rayapp.stack.control import ask_keeper
from rayapp.stack.errors import StackError, StackNotRunning
from rayapp.stack.layout import Layout, remove_layout
from rayapp.stack.operate import process_ids
from rayapp.stack.options import StackOptions
from rayapp.stack.processes import die_with_parent, kill_all, log_tail, tree_of, wait_gone
from rayapp.stack.programs import require_programs
from rayapp.stack.state import StackState, keeper_is_alive, load_state

POLL_S = 0.1
STOP_DEADLINE_S = 120.0
# Keepers that outlive the Stack object that started them; kept so that their exit status can be taken.
_DETACHED: list[subprocess.Popen[bytes]] = []
Listener = Callable[[Mapping[str, Any]], None]


class Stack:
    """A running stack; as a context manager it is stopped at the end, data and all."""

    def __init__(
        self,
        folder: Path,
        *,
        already_running: bool,
        keeper: subprocess.Popen[bytes] | None,
        leash: int | None,
    ) -> None:
        self.folder = folder
        self.already_running = already_running
        self._keeper = keeper
        self._leash = leash

    @property
    def state(self) -> StackState:
        """The state file, read now."""
        return load_state(self.folder)

    def stop(self, *, keep_data: bool = False) -> None:
        """Stop all servers; nothing happens when they are stopped already."""
        try:
            stop_stack(self.folder, keep_data=keep_data)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._leash is not None:
            os.close(self._leash)
            self._leash = None
        if self._keeper is not None:
            self._keeper.wait(STOP_DEADLINE_S)
            self._keeper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def start_stack(options: StackOptions, listen: Listener = lambda _event: None) -> Stack:
    """Start a stack and wait until it serves.

    Args:
        options: its shape; `options.leash` ties its life to this process.
        listen: gets every progress event of the keeper.

    Raises:
        ProgramMissing: something is not installed; nothing was started.
        StackError: a server did not come up; everything was stopped again.
    """
    options = replace(options, folder=options.folder.absolute())
    if running := _find_running(options, listen):
        return running
    require_programs(options)
    _end_leftovers(options.folder)
    for _attempt in range(2):
        keeper, events, leash = _spawn_keeper(options)
        try:
            outcome = _relay(keeper, events, options, listen)
        except BaseException:
            if leash is not None:
                os.close(leash)
            with contextlib.suppress(ProcessLookupError):
                keeper.terminate()
            # Broken off (Ctrl-C) or failed: come back only when nothing runs any more.
            keeper.wait(STOP_DEADLINE_S)
            raise
        finally:
            os.close(events)
        if outcome == "ready":
            if leash is None:
                _DETACHED.append(keeper)
            return Stack(options.folder, already_running=False, keeper=keeper, leash=leash)
        # Another start won the folder's lock in the meantime: use its stack.
        if leash is not None:
            os.close(leash)
        keeper.wait(STOP_DEADLINE_S)
        if running := _find_running(options, listen, wait_for_state_s=options.ready_deadline_s):
            return running
    raise StackError(f"dir={options.folder}: another stack there is stopping; try again")


def stop_stack(folder: Path, *, keep_data: bool = False) -> bool:
    """Stop the stack of a folder and wait until it is gone; False when there was none.

    Raises:
        StackError: it did not end in time even after SIGKILL of its keeper.
    """
    folder = folder.absolute()
    try:
        state = load_state(folder)
    except StackNotRunning:
        return False
    was_alive = keeper_is_alive(state)
    if was_alive:
        processes = [each for found in process_ids(state).values() for each in _processes(found)]
        keeper = psutil.Process(state.keeper_pid)
        try:
            ask_keeper(state.control_socket, {"op": "stop", "keep_data": keep_data})
        except StackError:
            with contextlib.suppress(psutil.NoSuchProcess):
                keeper.terminate()
        if wait_gone([keeper], STOP_DEADLINE_S):
            kill_all([keeper])
        left = wait_gone([keeper, *processes], 10.0)
        kill_all(left)
        if wait_gone(left, 5.0):
            raise StackError(f"pids={[one.pid for one in left]}: alive after SIGKILL; look at the machine")
    _DETACHED[:] = [one for one in _DETACHED if one.poll() is None]
    _end_leftovers(folder)
    if not keep_data:
        with contextlib.suppress(FileNotFoundError):
            remove_layout(Layout(folder, Path(state.run_dir)))
            (folder / "keeper.lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    return was_alive


def _processes(pids: list[int]) -> Iterator[psutil.Process]:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield psutil.Process(pid)


def _find_running(options: StackOptions, listen: Listener, wait_for_state_s: float = 0.0) -> Stack | None:
    end = time.monotonic() + wait_for_state_s
    while True:
        with contextlib.suppress(StackNotRunning):
            state = load_state(options.folder)
            if keeper_is_alive(state):
                break
        if time.monotonic() >= end:
            return None
        time.sleep(POLL_S)
    end = time.monotonic() + options.ready_deadline_s + options.download_deadline_s
    while any(one.state in ("pending", "preparing", "starting") for one in state.components.values()):
        # Another process is just starting it.
        if time.monotonic() > end or not keeper_is_alive(state):
            return None
        time.sleep(POLL_S)
        state = load_state(options.folder)
    lacking = [name for name in options.wanted if name not in state.components]
    if lacking:
        raise StackError(
            f"dir={options.folder}: a stack without {', '.join(lacking)} already runs there; "
            "stop it with `rayapp stack down` or name another --dir"
        )
    listen({"event": "running"})
    return Stack(options.folder, already_running=True, keeper=None, leash=None)


def _spawn_keeper(options: StackOptions) -> tuple[subprocess.Popen[bytes], int, int | None]:
    """Start the keeper; returns it, the end of the pipe that tells progress, and the leash."""
    logs = options.folder / "logs"
    options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    logs.mkdir(mode=0o700, exist_ok=True)
    events_read, events_write = os.pipe()
    leash_read, leash_write = os.pipe() if options.leash else (None, None)
    command = [sys.executable, "-m", "rayapp.stack.keeper", "--options", options.to_json(), "--events-fd", str(events_write)]
    passed = [events_write]
    if leash_read is not None:
        command += ["--leash-fd", str(leash_read)]
        passed.append(leash_read)
    parent_pid = os.getpid()
    # The signal follows the thread that forks: from a worker thread it would come too early.
    on_main = threading.current_thread() is threading.main_thread()
    tie = (lambda: die_with_parent(signal.SIGTERM, parent_pid)) if options.leash and on_main else None
    # `-m` looks in the working folder first: ours is where this very package lies, installed or not.
    source = Path(rayapp.__file__).parent.parent
    descriptor = os.open(logs / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        keeper = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd=source,
            pass_fds=passed,
            start_new_session=True,
            preexec_fn=tie,  # noqa: PLW1509 - one prctl call, and it must be this thread
        )
    finally:
        os.close(descriptor)
        for one in passed:
            os.close(one)
    return keeper, events_read, leash_write


def _relay(keeper: subprocess.Popen[bytes], descriptor: int, options: StackOptions, listen: Listener) -> str:
    """Hand the keeper's events on until it is ready or the folder turns out to be taken."""
    end = time.monotonic() + options.download_deadline_s + options.ready_deadline_s + STOP_DEADLINE_S
    waiting = b""
    while time.monotonic() < end:
        if not select.select([descriptor], [], [], POLL_S)[0]:
            continue
        part = os.read(descriptor, 65536)
        if not part:
            tail = log_tail(options.folder / "logs" / "keeper.log")
            raise StackError(f"keeper: ended with {keeper.wait(STOP_DEADLINE_S)}\n{tail}")
        *lines, waiting = (waiting + part).split(b"\n")
        for line in lines:
            event = json.loads(line)
            listen(event)
            if event["event"] in ("ready", "taken"):
                return str(event["event"])
            if event["event"] == "failed":
                keeper.wait(STOP_DEADLINE_S)
                raise StackError(event["error"])
    raise StackError("keeper: neither ready nor failed within all deadlines; see logs/keeper.log")


def _end_leftovers(folder: Path) -> None:
    """Kill what a killed keeper may have left, recognised by pid and start time."""
    with contextlib.suppress(StackNotRunning):
        state = load_state(folder)
        if not keeper_is_alive(state):
            left = [one for _name, pid in state.live_pids() for one in tree_of(pid)]
            kill_all(left)
            wait_gone(left, 5.0)
