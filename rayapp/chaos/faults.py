"""How each kind of fault is done to a running pipeline, and what proves that it met work.

do() blocks until the cause is over: a blow at once, a stopped process when it
goes on, a server when it serves again. What cannot be done (the process is just
being replaced) raises, and the run counts it as not done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation
from rayapp.chaos.network import Network
from rayapp.chaos.plan import KINDS, Fault
from rayapp.chaos.recovery import Done
from rayapp.errors import RayappError
from rayapp.stack import kill_component, load_state, start_component

POSTGRES_RISES_S = 40.0
DELAY_S = (0.05, 0.3)


class NotDone(RayappError):
    """A fault could not be injected; the run is not what it claims."""


class Faults:
    """Injects faults.

    Args:
        run: the traffic that must be under way.
        network: proxied links, None when there is no proxy (kinds of the network are refused).
        wait: sleeps, or raises when the run is broken off.
    """

    def __init__(self, session: PipelineSession, run: Simulation, network: Network | None, wait: Callable[[float], None]) -> None:
        self._session = session
        self._run = run
        self._network = network
        self._wait = wait
        self._ways: dict[str, Callable[[Fault], None]] = {
            "actor_kill": lambda fault: self._actor(fault, signal.SIGKILL),
            "actor_term": lambda fault: self._actor(fault, signal.SIGTERM),
            "actor_stop": lambda fault: self._stopped(self._session.kill_actor(fault.target, signal.SIGSTOP), fault.seconds),
            "driver_kill": self._driver_killed,
            "driver_stop": lambda fault: self._stopped(self._signal_driver(signal.SIGSTOP), fault.seconds),
            "mqtt_term": lambda fault: self._server("mqtt", signal.SIGTERM, fault.seconds),
            "mqtt_kill": lambda fault: self._server("mqtt", signal.SIGKILL, fault.seconds),
            "kafka_kill": lambda fault: self._server("kafka", signal.SIGKILL, fault.seconds, fault.target),
            "database_kill": lambda fault: self._server("postgres", signal.SIGKILL, fault.seconds),
            "database_restart": lambda fault: self._server("postgres", signal.SIGINT, fault.seconds),
            "registry_kill": lambda fault: self._server("registry", signal.SIGKILL, fault.seconds),
            "cut": self._cut,
            "delay": lambda fault: self._link(fault, "delay", DELAY_S[0] + fault.strength * (DELAY_S[1] - DELAY_S[0])),
            "blackhole": lambda fault: self._link(fault, "blackhole"),
            "disk_full": self._disk_full,
        }

    def do(self, fault: Fault) -> Done:
        """Inject one fault and return what happened, when its cause is over.

        Raises:
            NotDone: it could not be injected.
        """
        hit = self._work_under_way()
        began_s = time.time()
        error = ""
        try:
            self._ways[fault.kind](fault)
        except (RayappError, OSError, psutil.Error) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Done(fault.kind, fault.target, KINDS[fault.kind].group, began_s, time.time(), hit, error)

    def _work_under_way(self) -> str:
        """Return what is in flight just now, in words; empty when nothing is."""
        unacknowledged = int(self._run.progress().get("unacked", 0))
        with contextlib.suppress(RayappError):
            lag = self._session.look().lag
            return f"{unacknowledged} unacknowledged, {lag} in Kafka" if unacknowledged or lag else ""
        return f"{unacknowledged} unacknowledged" if unacknowledged else ""

    def _actor(self, fault: Fault, number: int) -> None:
        self._session.kill_actor(fault.target, number)

    def _stopped(self, pid: int, seconds: float) -> None:
        """Let a stopped process go on after a while; it may have been killed and replaced in between."""
        try:
            self._wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _signal_driver(self, number: int) -> int:
        pid = self._session.look().driver_pid
        if pid is None or not psutil.pid_exists(pid):
            raise NotDone("the driver has no living process")
        os.kill(pid, number)
        return pid

    def _driver_killed(self, _fault: Fault) -> None:
        self._signal_driver(signal.SIGKILL)
        self._session.resubmit()

    def _server(self, component: str, number: int, seconds: float, process: str | None = None) -> None:
        state = self._session.state
        pids = kill_component(state, component, number, process)
        deadline_s = time.monotonic() + POSTGRES_RISES_S
        while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            if time.monotonic() > deadline_s:
                raise NotDone(f"{component} did not end by signal {number}")
            self._wait(0.05)
        self._wait(seconds)
        start_component(state, component)

    def _cut(self, fault: Fault) -> None:
        if self._links().cut(fault.target) == 0:
            raise NotDone(f"no connection to {fault.target} goes through the proxy")

    def _link(self, fault: Fault, mode: str, delay_s: float = 0.0) -> None:
        network = self._links()
        network.behave(fault.target, mode, delay_s)
        try:
            self._wait(fault.seconds)
        finally:
            network.behave(fault.target, "pass")

    def _links(self) -> Network:
        if self._network is None:
            raise NotDone("there is no proxy between actors and servers")
        return self._network

    def _disk_full(self, fault: Fault) -> None:
        """Fill the database's disk to the last byte, free it after a while, and see that the server is up again."""
        state = self._session.state
        (pid,) = state.postgres.pids[:1]
        ballast = Path(f"/proc/{pid}/root{state.run_dir}/postgres/ballast")
        space = os.statvfs(ballast.parent)
        with ballast.open("wb") as file:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize)
            try:
                self._wait(fault.seconds)
            finally:
                os.ftruncate(file.fileno(), 0)
        with contextlib.suppress(OSError):
            ballast.unlink()
        # Writing the log without room is a panic: the server ends its sessions and recovers, or ends itself.
        if not psutil.pid_exists(pid) or load_state(self._session.stack_folder).postgres.state == "dead":
            start_component(self._session.state, "postgres")
