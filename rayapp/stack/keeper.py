"""The process that is every server's parent: `python -m rayapp.stack.keeper`, started by `start_stack`.

It holds a lock on the folder, brings all components up side by side, writes the state file at every
change, answers the control socket, and stops everything when told to (stop request, SIGTERM), or when
its leash is gone (its starter died, or the pipe it was given closed). Its main thread starts all
processes, because the kernel's parent-death signal is bound to the thread; so kill -9 of the keeper
takes the servers with it. It never restarts a dead server. A failed start stops all, keeps the logs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from rayapp.errors import RayappError
from rayapp.log import Events, log_to_stderr
from rayapp.stack.component import Component, Workbench
from rayapp.stack.control import ControlServer
from rayapp.stack.errors import StackError, StackNotRunning
from rayapp.stack.event_pipe import EventPipe
from rayapp.stack.external import External
from rayapp.stack.kafka import Kafka
from rayapp.stack.layout import Layout, make_layout, remove_layout
from rayapp.stack.memory_disk import keep_mounts_to_ourselves, unmount_memory_disk
from rayapp.stack.mosquitto import Mosquitto
from rayapp.stack.options import StackOptions
from rayapp.stack.postgres import Postgres
from rayapp.stack.processes import Spawner, kill_all, wait_gone
from rayapp.stack.rayhead import RayHead
from rayapp.stack.rayworkers import RayWorkers
from rayapp.stack.registry import Registry
from rayapp.stack.running import RunningComponent
from rayapp.stack.state import StackState, load_state, write_state

TURN_S = 0.1
ORPHAN_DEADLINE_S = 5.0
SWEEP_S = 15.0
"""After a death orphans are looked for this long: grandchildren fall to us one generation after the other."""
GATEWAY_DEADLINE_S = 10.0
PR_SET_CHILD_SUBREAPER = 36
KINDS: Mapping[str, type] = {
    "postgres": Postgres,
    "kafka": Kafka,
    "registry": Registry,
    "mqtt": Mosquitto,
    "ray": RayHead,
    "ray_workers": RayWorkers,
}
# Clients before servers: Ray's jobs use all, the registry and the brokers use nothing of ours.
STOP_ORDER = (("ray", "ray_workers"), ("mqtt", "registry"), ("kafka",), ("postgres",))
EXIT_FAILED, EXIT_TAKEN = 3, 5
events = Events("rayapp.stack.keeper")


class Keeper:
    """Owns all components of one stack."""

    def __init__(self, options: StackOptions, layout: Layout, *, fresh: bool, progress: EventPipe) -> None:
        self._options = options
        self._layout = layout
        self._fresh = fresh
        self._progress = progress
        self._born = time.monotonic()
        self._spawner = Spawner()
        self._state_lock = threading.Lock()
        self._operation_lock = threading.Lock()
        self._stop = threading.Event()
        self._keep_data = not options.leash
        self._error = ""
        self._served = False
        self._me = psutil.Process()
        self._running: dict[str, RunningComponent] = {}
        self._mosquitto: Mosquitto | None = None

    def request_stop(self, *, keep_data: bool | None = None) -> None:
        """Make `run` leave its loop; callable from any thread and from a signal handler."""
        if keep_data is not None:
            self._keep_data = keep_data
        self._stop.set()

    def run(self) -> int:
        """Bring up, keep, stop; returns the exit code."""
        try:
            for name in self._options.wanted:
                self._add(name)
        except RayappError as error:
            self._fail(str(error))
        control = ControlServer(self._layout.control_socket, self.handle)
        self._write_state()
        workers = [threading.Thread(target=self._bring_up, args=(one,), name=one.name, daemon=True) for one in self._running.values()]
        announced, sweep_until_s = False, 0.0
        for worker in workers if not self._error else ():
            worker.start()
        while not self._stop.is_set():
            self._spawner.serve(TURN_S)
            if [one.name for one in self._running.values() if one.observe()]:
                sweep_until_s = time.monotonic() + SWEEP_S
            if time.monotonic() < sweep_until_s:
                self._end_orphans()
            if not announced and not any(worker.is_alive() for worker in workers):
                announced = True
                self._announce()
        self._spawner.close()
        self._stop_all()
        control.close()
        self._clear()
        if self._error:
            self._progress.tell(event="failed", error=self._error)
        self._progress.close()
        return EXIT_FAILED if self._error else 0

    def _announce(self) -> None:
        dead = [name for name, one in self._running.items() if one.phase != "ready"]
        if dead and not self._error:
            self._fail(f"{', '.join(dead)}: ended while the others started; see its log")
        if not self._error:
            self._served = True
            self._progress.tell(event="ready", seconds=self._seconds())
            self._progress.close()

    def handle(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one control request."""
        operation = request["op"]
        if operation == "status":
            return {"components": {name: one.ask() for name, one in self._running.items()}}
        if operation == "stop":
            self.request_stop(keep_data=bool(request.get("keep_data", False)))
            return {}
        with self._operation_lock:
            if operation == "gateways":
                return self._set_gateways(enabled=bool(request["enabled"]))
            one = self._find(str(request["component"]))
            if operation == "kill":
                return {"pids": one.kill(int(request["signal"]), request.get("process"))}
            if operation == "start":
                self._spawner.on_main(self._end_orphans)
                one.start()
                return {"pids": one.state().pids}
        raise StackError(f"op={operation!r}: must be status, stop, kill, start or gateways; correct it")

    def _add(self, name: str) -> None:
        box: list[RunningComponent] = []
        bench = Workbench(self._layout, self._options, self._spawner, lambda detail: box[0].say(detail) if box else None)
        component: Component = External(name, self._options.use[name]) if name in self._options.use else KINDS[name](bench)
        if isinstance(component, Mosquitto):
            self._mosquitto = component
        last: list[tuple[str, str]] = [("", "")]

        def changed() -> None:
            state = self._running[name].state()
            if (state.state, state.detail) != last[0]:
                last[0] = (state.state, state.detail)
                self._progress.tell(
                    event="component",
                    component=name,
                    state=state.state,
                    detail=state.detail,
                    seconds=self._seconds(),
                    address=state.where,
                )
                events.info("component", component=name, state=state.state, detail=state.detail)
            self._write_state()

        self._running[name] = RunningComponent(component, bench, changed)
        box.append(self._running[name])

    def _bring_up(self, one: RunningComponent) -> None:
        try:
            one.bring_up()
        except (RayappError, OSError) as error:
            self._fail(f"{error}")
        except Exception as error:  # a thread must not die unheard: the stack stops and says why
            events.error("component_crashed", component=one.name, exc_info=True)
            self._fail(f"{one.name}: {type(error).__name__}: {error}")

    def _fail(self, error: str) -> None:
        if not self._error and not self._stop.is_set():
            self._error = error
            events.error("start_failed", error=error)
        self._stop.set()

    def _find(self, name: str) -> RunningComponent:
        if name not in self._running:
            raise StackError(f"component={name!r}: must be one of {', '.join(self._running)}; correct the name")
        return self._running[name]

    def _set_gateways(self, *, enabled: bool) -> Mapping[str, Any]:
        if self._mosquitto is None:
            raise StackError("mqtt: this stack has no broker of its own; enable the gateways where it runs")
        self._mosquitto.write_accounts(gateway=enabled)
        self._find("mqtt").kill(signal.SIGHUP)
        end = time.monotonic() + GATEWAY_DEADLINE_S
        while self._mosquitto.gateway_is_let_in() != enabled:
            if time.monotonic() > end:
                raise StackError(f"mqtt: gateway_enabled={enabled} not in force after {GATEWAY_DEADLINE_S} s")
            time.sleep(TURN_S)
        self._write_state()
        return {"gateway_enabled": enabled}

    def _stop_all(self) -> None:
        for group in STOP_ORDER:
            members = [self._running[name] for name in group if name in self._running]
            for one in members:
                one.begin_stop()
            for one in members:
                one.finish_stop(self._options.stop_grace_s)
        self._end_orphans(spare_known=False)

    def _end_orphans(self, *, spare_known: bool = True) -> None:
        """End processes that fell to us because their own parent died, for example a killed warden's.

        Main thread only: between a fork and its entry among the known ones nobody may look.
        """
        known = self._spawner.pids if spare_known else set()
        orphans = [child for child in self._me.children() if child.pid not in known and not _is_our_own(child.pid)]
        tree = [each for orphan in orphans for each in (orphan, *_children(orphan))]
        kill_all(tree)
        wait_gone(tree, ORPHAN_DEADLINE_S)
        for each in tree:  # whose parent was killed with them has become our child
            with contextlib.suppress(ChildProcessError):
                os.waitpid(each.pid, os.WNOHANG)

    def _clear(self) -> None:
        if self._options.postgres_disk_mb:
            unmount_memory_disk(self._layout.run / "postgres")
        if self._fresh and not self._served:
            # A start that failed or was broken off: nothing to keep but the logs.
            shutil.rmtree(self._layout.run, ignore_errors=True)
            shutil.rmtree(self._layout.data, ignore_errors=True)
            shutil.rmtree(self._layout.root / "secrets", ignore_errors=True)
            self._layout.state_file.unlink(missing_ok=True)
        elif self._keep_data or self._error:
            self._layout.control_socket.unlink(missing_ok=True)
            self._write_state()
        else:
            remove_layout(self._layout)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._born, 2)

    def _write_state(self) -> None:
        with self._state_lock:
            write_state(
                self._layout.state_file,
                StackState(
                    keeper_pid=self._me.pid,
                    keeper_started=self._me.create_time(),
                    data_dir=str(self._layout.data),
                    run_dir=str(self._layout.run),
                    control_socket=str(self._layout.control_socket),
                    leash=self._options.leash,
                    components={name: one.state() for name, one in self._running.items()},
                ),
            )


def _is_our_own(pid: int) -> bool:
    """Say whether a child shares our session, as a psql does with which a component's thread asks its server; each server has its own."""
    try:
        return os.getsid(pid) == os.getsid(0)
    except ProcessLookupError:
        return True


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def watch_leash(descriptor: int, keeper: Keeper) -> None:
    """Ask for a stop when the other end of the pipe is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(descriptor, 1):
                pass
        events.warning("leash_gone", next="stopping everything")
        keeper.request_stop()

    threading.Thread(target=watch, name="leash", daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    """Run one keeper to its end."""
    parser = argparse.ArgumentParser(prog="rayapp.stack.keeper", description=__doc__)
    parser.add_argument("--options", required=True)
    parser.add_argument("--events-fd", type=int)
    parser.add_argument("--leash-fd", type=int)
    chosen = parser.parse_args(arguments)
    os.umask(0o077)
    log_to_stderr()
    options = StackOptions.from_json(chosen.options)
    progress = EventPipe(chosen.events_fd)
    options.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (options.folder / "keeper.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.tell(event="taken")
            return EXIT_TAKEN
        previous = _previous_run(options.folder)
        layout = make_layout(options.folder, previous)
        keeper = Keeper(options, layout, fresh=layout.run != previous, progress=progress)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if options.postgres_disk_mb:
            keep_mounts_to_ourselves()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: keeper.request_stop())
        if chosen.leash_fd is not None:
            watch_leash(chosen.leash_fd, keeper)
        code = keeper.run()
    (options.folder / "keeper.lock").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        options.folder.rmdir()  # only when nothing is left in it
    return code


def _previous_run(folder: Path) -> Path | None:
    """Return the short folder of an earlier run whose data is still there."""
    with contextlib.suppress(StackNotRunning, RayappError, ValueError):
        found = Path(load_state(folder).run_dir)
        return found if found.is_dir() else None
    return None


if __name__ == "__main__":
    sys.exit(main())
