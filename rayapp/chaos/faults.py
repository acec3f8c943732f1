"""How each kind of fault is done to a running pipeline, and what proves that it met work.

do() blocks until the cause is over: a blow at once, a stopped process when it
goes on, a server when it serves again. What cannot be done (the process is just
being replaced), or fails in any other way, is noted in what do() returns, and
what may have been left broken is mended: a run must always come to a verdict.

A fault strikes when a counter of those who work there has just moved, with
records under way: the actor's own, the writers' for the database, ingest's for
the MQTT broker. A link's faults must also have held bytes back or ended
connections. What waits in vain for work is done all the same, and met none.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from rayapp.bench.session import PipelineSession
from rayapp.bench.simulator import Simulation
from rayapp.chaos.disk import filled
from rayapp.chaos.network import LINKS, Network
from rayapp.chaos.plan import KINDS, Fault, role_of
from rayapp.chaos.recovery import Done
from rayapp.errors import DependencyUnavailable, RayappError
from rayapp.log import Events
from rayapp.stack import kill_component, process_ids, start_component
from rayapp.stack.operate import ask_components

SERVER_ENDS_S = 40.0
SERVER_RISES_S = 60.0
DRIVER_RISES_S = 60.0
WORK_DEADLINE_S = 90.0
LOOK_EVERY_S = 0.1
DELAY_S = (0.05, 0.3)
SERVERS = ("postgres", "kafka", "registry", "mqtt", "ray_workers")
NODE = "ray-worker-1"
WORKERS = {
    "ingest": ("ingest", "mqtt_adapter_messages_received_total"),
    "consume": ("consume", "kafka_consumer_messages_consumed_total"),
    "detect": ("detect", "rows_total"),
    "write": ("write", "batches_total"),
    "mqtt": ("ingest", "mqtt_adapter_messages_received_total"),
    "kafka": ("consume", "kafka_consumer_messages_consumed_total"),
    "postgres": ("write", "batches_total"),
    "database": ("write", "batches_total"),
    "registry": ("write", "batches_total"),
    "driver": ("write", "batches_total"),
    "node": ("write", "batches_total"),
}
"""Role of a target -> who works with it, and the counter that moves meanwhile."""

_events = Events(__name__)


class NotDone(RayappError):
    """A fault could not be injected; the run is not what it claims."""


class Faults:
    """Injects faults.

    Args:
        run: the traffic that must be under way.
        network: proxied links, None when there is no proxy (kinds of the network are refused).
        wait: sleeps, or raises when the run is broken off.

    Attributes:
        troubles: what went wrong that no fault is expected to do.
    """

    def __init__(self, session: PipelineSession, run: Simulation, network: Network | None, wait: Callable[[float], None]) -> None:
        self._session = session
        self._run = run
        self._network = network
        self._wait = wait
        self._began_s = 0.0
        self._hit = ""
        self._resubmitted_s = -math.inf
        self.troubles: list[str] = []
        self._ways: dict[str, Callable[[Fault], object]] = {
            "actor_kill": lambda fault: self._actor(fault, signal.SIGKILL),
            "actor_term": lambda fault: self._actor(fault, signal.SIGTERM),
            "actor_stop": self._actor_stopped,
            "driver_kill": self._driver_killed,
            "driver_stop": lambda fault: self._stopped(self._signal_driver(signal.SIGSTOP), fault.seconds),
            "node_kill": self._node_killed,
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
        """Inject one fault and return what happened, when its cause is over; never raises for what goes wrong with it."""
        self._hit, self._began_s = "", time.time()
        error = ""
        try:
            self._await_work(fault.target)
            self._strike()
            self._ways[fault.kind](fault)
        except (RayappError, OSError, psutil.Error) as failure:
            error = f"{type(failure).__name__}: {failure}"
        except Exception as failure:  # an error of ours: the run goes on to its verdict, which says "invalid"
            _events.error("fault_failed", kind=fault.kind, target=fault.target, exc_info=True)
            error = f"{type(failure).__name__}: {failure}"
            self.troubles.append(f"{fault.kind} of {fault.target}: {error}")
        ended_s = time.time()
        if error:
            self.mend()
        return Done(fault.kind, fault.target, KINDS[fault.kind].group, self._began_s, ended_s, self._hit, error)

    def mend(self) -> None:
        """Make links pass, start what is dead of the servers, and a driver when there is none; what fails is logged."""
        for link in LINKS if self._network is not None else ():
            self._try(f"link {link}", lambda link=link: self._links().behave(link, "pass"))  # type: ignore[misc]
        for component in set(SERVERS) & set(self._session.state.components):
            self._try(component, lambda component=component: start_component(self._session.state, component))  # type: ignore[misc]
        self._try("driver", self._replace_driver)

    def _try(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except (RayappError, OSError, psutil.Error) as failure:
            _events.error("not_mended", what=what, error=str(failure))
            self.troubles.append(f"{what} was not mended: {failure}")

    def _replace_driver(self) -> None:
        pid = self._session.look().driver_pid
        # The row names the dead one until the new one has come up; a third would only be in its way.
        coming = time.monotonic() - self._resubmitted_s < DRIVER_RISES_S
        if not coming and (pid is None or not psutil.pid_exists(pid)):
            self._resubmit()

    def _resubmit(self) -> None:
        self._session.resubmit()
        self._resubmitted_s = time.monotonic()

    def _strike(self) -> None:
        """Note that the blow falls now."""
        self._began_s = time.time()

    def _await_work(self, target: str) -> None:
        """Wait until a counter of those who work there has just moved with records under way: the hit; none after half a minute."""
        role, counter = WORKERS[role_of(target)]
        before: dict[str, int] = {}
        deadline = time.monotonic() + WORK_DEADLINE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(DependencyUnavailable):
                view = self._session.look()
                unacknowledged = int(self._run.progress().get("unacked", 0))
                now = {
                    slot["name"]: int(slot.get("counters", {}).get(counter, 0))
                    for name, slot in view.slots.items()
                    if role_of(name) == role and (name == target or "/" not in target)
                }
                moved = {name: (before[name], count) for name, count in now.items() if name in before and before[name] < count}
                if moved and (unacknowledged if role == "ingest" else view.lag):
                    moves = ", ".join(f"{name} {counter} {old} -> {new}" for name, (old, new) in moved.items())
                    self._hit = f"{moves}; {unacknowledged} unacknowledged, {view.lag} in Kafka"
                    return
                before = now
            self._wait(LOOK_EVERY_S)

    def _actor(self, fault: Fault, number: int) -> int:
        pid = self._session.kill_actor(fault.target, number)
        self._strike()
        return pid

    def _actor_stopped(self, fault: Fault) -> None:
        """Stop an actor; one that stays stopped beyond the driver's patience must have been replaced."""
        pid = self._actor(fault, signal.SIGSTOP)
        self._stopped(pid, fault.seconds)
        long = KINDS[fault.kind].long
        if long is not None and fault.seconds >= long[0]:
            if self._session.look().pids().get(fault.target) == pid:
                raise NotDone(f"{fault.target} was stopped for {fault.seconds:g} s and nobody replaced it")
            self._hit += "; replaced meanwhile"

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
        self._strike()
        os.kill(pid, number)
        return pid

    def _driver_killed(self, _fault: Fault) -> None:
        self._signal_driver(signal.SIGKILL)
        self._resubmit()

    def _node_killed(self, fault: Fault) -> None:
        """End a Ray node with all that is on it; what lived there waits for a place on the others or for its return."""
        there = set(process_ids(self._session.state).get("ray_workers", []))
        slots = sorted(slot for slot, pid in self._session.look().pids().items() if pid in there)
        if not slots:
            raise NotDone("no actor lives on that node")
        self._hit = self._hit and f"{', '.join(slots)} lived there, {self._hit}"
        self._server("ray_workers", signal.SIGKILL, fault.seconds, NODE)

    def _server(self, component: str, number: int, seconds: float, process: str | None = None) -> None:
        state = self._session.state
        self._strike()
        pids = kill_component(state, component, number, process)
        if not pids:
            raise NotDone(f"{process or component} has no living process")
        deadline_s = time.monotonic() + SERVER_ENDS_S
        while any(map(_is_alive, pids)):
            if time.monotonic() > deadline_s:
                raise NotDone(f"{component} did not end by signal {number}")
            self._wait(0.05)
        self._wait(seconds)
        start_component(state, component)

    def _cut(self, fault: Fault) -> None:
        self._strike()
        cut = self._links().cut(fault.target)
        if cut == 0:
            raise NotDone(f"no connection to {fault.target} goes through the proxy")
        self._hit = self._hit and f"{cut} connections, {self._hit}"

    def _link(self, fault: Fault, mode: str, delay_s: float = 0.0) -> None:
        network = self._links()
        self._strike()
        connections, _ = network.behave(fault.target, mode, delay_s)
        held_bytes = 0
        try:
            self._wait(fault.seconds)
        finally:
            _, held_bytes = network.behave(fault.target, "pass")
        # A link that nobody used in the time was not troubled.
        self._hit = f"{connections} connections, {held_bytes} bytes held back, {self._hit}" if held_bytes and self._hit else ""

    def _links(self) -> Network:
        if self._network is None:
            raise NotDone("there is no proxy between actors and servers")
        return self._network

    def _disk_full(self, fault: Fault) -> None:
        """Fill the database's disk to the last block, free it after a while, and see that the server is up again."""
        state = self._session.state
        if not state.postgres.pids:
            raise NotDone("postgres has no living process, so its disk cannot be reached")
        folder = Path(f"/proc/{state.postgres.pids[0]}/root{state.run_dir}/postgres")
        with filled(folder / "ballast") as disk:
            self._strike()
            if not disk.is_full:
                raise NotDone(f"{disk.free_bytes} bytes of the disk were still free")
            self._hit += f"; {disk.used_bytes / 2**20:.0f} of {disk.size_bytes / 2**20:.0f} MB were in use"
            self._wait(fault.seconds)
        self._await_postgres()

    def _await_postgres(self) -> None:
        """Wait until the server answers. Writing its log without room is a panic: it recovers by itself, or has ended itself."""
        deadline = time.monotonic() + SERVER_RISES_S
        while True:
            state = self._session.state
            if not any(map(_is_alive, state.postgres.pids)):
                start_component(state, "postgres")
            if not ask_components(state)["postgres"]:
                return
            if time.monotonic() > deadline:
                raise NotDone(f"postgres does not serve {SERVER_RISES_S:g} s after its disk had room again")
            self._wait(LOOK_EVERY_S)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
