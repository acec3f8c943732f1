"""One component's life under the keeper: bring up, notice death, kill and start again on request, stop.

`bring_up` runs in a worker thread of its own, so that all components start side by side; processes are
started through the spawner, hence from the main thread. `observe` is called by the main thread and only
looks. A dead server stays dead, with its exit code in the state: whoever killed it (a chaos test, the
kernel) must be able to see that, and only `start` brings it back, on the same ports and data.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psutil

from rayapp.stack.component import Component, Workbench
from rayapp.stack.errors import StackError
from rayapp.stack.processes import POLL_S, ServerProcess, kill_all, log_tail, tree_of, wait_gone
from rayapp.stack.state import ComponentState

KILL_DEADLINE_S = 5.0


class RunningComponent:
    """A component, its processes, and where it is in its life."""

    def __init__(self, component: Component, bench: Workbench, changed: Callable[[], None]) -> None:
        self.component = component
        self._bench = bench
        self._changed = changed
        self._lock = threading.Lock()
        self._running: dict[str, tuple[ServerProcess, subprocess.Popen[bytes], float]] = {}
        self._phase = "pending"
        self._detail = ""
        self._exit_code: int | None = None
        self._born_s = time.monotonic()
        self._ready_s: float | None = None

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    @property
    def phase(self) -> str:
        """Where it is in its life; the words of `ComponentState.state`."""
        return self._phase

    def bring_up(self) -> None:
        """Prepare, start, wait and settle.

        Raises:
            StackError: with the log's tail when the server ended or did not answer in time.
        """
        self._enter("preparing")
        self.component.prepare()
        self.start()

    def start(self) -> None:
        """Start what is not running, and wait until it serves."""
        self._enter("starting")
        for process in self.component.processes():
            with self._lock:
                current = self._running.get(process.name)
            if current and current[1].poll() is None:
                continue
            started = self._bench.spawner.start(process)
            with self._lock:
                self._running[process.name] = (process, started, psutil.Process(started.pid).create_time())
        self._exit_code = None
        self._changed()
        self._await_ready()
        self.component.settle()
        self._ready_s = round(time.monotonic() - self._born_s, 2)
        self._enter("ready")

    def _await_ready(self) -> None:
        deadline_s = self._bench.options.ready_deadline_s
        end = time.monotonic() + deadline_s
        while True:
            try:
                missing = self.component.ask()
            except OSError as error:
                missing = str(error)
            if not missing:
                return
            for process, started, _ in self._entries():
                if started.poll() is not None:
                    raise StackError(
                        f"{process.name}: ended with {started.returncode} before it served; log {process.log}\n{log_tail(process.log)}"
                    )
            if time.monotonic() > end or self._phase == "stopping":
                tails = "\n".join(log_tail(process.log) for process, _, _ in self._entries())
                raise StackError(f"{self.name}: not ready after {deadline_s:.0f} s, last answer: {missing}\n{tails}")
            time.sleep(POLL_S)

    def observe(self) -> bool:
        """Notice processes that ended by themselves; True when one newly did."""
        if self._phase != "ready":
            return False
        for process, started, _ in self._entries():
            code = started.poll()
            if code is not None:
                self._exit_code = code
                self._enter("dead", f"{process.name} ended with {code}")
                return True
        return False

    def kill(self, number: int, process_name: str | None = None) -> list[int]:
        """Send a signal to the component's processes, or to one of them; returns the pids."""
        hit = []
        for process, started, _ in self._entries():
            if process_name in (None, process.name) and started.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    started.send_signal(number)
                    hit.append(started.pid)
                if number == signal.SIGKILL:
                    # So that a `start` right behind it finds the process gone, not going.
                    started.wait(KILL_DEADLINE_S)
        if not hit:
            names = ", ".join(process.name for process, _, _ in self._entries())
            raise StackError(f"{process_name or self.name}: no living process to signal; there are: {names}")
        return hit

    def ask(self) -> str:
        """Ask the server again, for `status`."""
        if self._phase == "ready":
            try:
                return self.component.ask()
            except (OSError, StackError) as error:
                return str(error)
        return self._detail or self._phase

    def begin_stop(self) -> None:
        """Ask all processes to end in order."""
        self._enter("stopping")
        for process, started, _ in self._entries():
            if started.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    started.send_signal(process.stop_signal)

    def finish_stop(self, grace_s: float) -> None:
        """Wait for them, then kill their trees."""
        end = time.monotonic() + grace_s
        entries = self._entries()
        while any(started.poll() is None for _, started, _ in entries) and time.monotonic() < end:
            time.sleep(POLL_S)
        for _process, started, _ in entries:
            if started.poll() is None:
                tree = tree_of(started.pid)
                kill_all(tree)
                wait_gone(tree, KILL_DEADLINE_S)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(KILL_DEADLINE_S)
        self._enter("stopped")

    def state(self) -> ComponentState:
        """Return what goes into the state file."""
        alive = [(started.pid, born) for _, started, born in self._entries() if started.poll() is None]
        return replace(
            self.component.state(),
            state=self._phase,
            pids=tuple(pid for pid, _ in alive),
            pid_starts=tuple(born for _, born in alive),
            exit_code=self._exit_code,
            ready_s=self._ready_s,
            detail=self._detail,
        )

    def say(self, detail: str) -> None:
        """Keep the last word about what is going on."""
        self._detail = detail
        self._changed()

    def _entries(self) -> list[tuple[ServerProcess, subprocess.Popen[bytes], float]]:
        with self._lock:
            return list(self._running.values())

    def _enter(self, phase: str, detail: str = "") -> None:
        if self._phase == "stopping" and phase != "stopped":
            raise StackError(f"{self.name}: the stack is stopping")
        self._phase = phase
        self._detail = detail
        self._changed()
