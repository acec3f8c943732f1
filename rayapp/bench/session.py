"""One pipeline on real servers, from nothing to nothing: what bench, demo and end-to-end tests share.

    with PipelineSession(Path(".bench")) as session:   # or PipelineSession(tmp, stack=load_state(...)) to share servers
        session.start()                                # simulator, servers, schema, settings, `ray job submit`
        session.wait_running()                         # every slot runs, gateways are let in
        run = session.simulate(rate=500, seconds=10)   # as many as you like, also at the same time
        session.kill_actor("write/0")                  # SIGKILL of the actor's process
        run.wait()
        session.quiesce()                              # nothing under way any more
        verdict = session.judge()                      # of all runs so far
        assert verdict.ok, verdict.problems
        assert session.stop_job() == "STOPPED"

Leaving the block ends simulators and job, and the servers if the session
started them. When this process is killed the servers go with it (`leash`).
Sessions that share servers need a pipeline name, topics and an MQTT topic of
their own (overrides); the judge then looks at the rows of its own tags alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from actors.readings import SENSORS
from rayapp.bench.deployment import Deployment, Listener, SessionFailed
from rayapp.bench.evidence import Evidence, collect
from rayapp.bench.judge import judge
from rayapp.bench.latency import LatencyFiles
from rayapp.bench.processes import Roots
from rayapp.bench.sent import Sent, read_sent
from rayapp.bench.simulator import Simulation, build_simulator
from rayapp.bench.verdict import Verdict
from rayapp.bench.watch import View, Watch, is_actor, is_alive
from rayapp.errors import DependencyUnavailable, RayappError
from rayapp.stack import StackState, enable_gateways, process_ids

POLL_S = 0.25
SETTLED_S = 1.5
"""Everything promised has arrived and nothing moved for this long: quiet."""
STILL_S = 15.0
"""Less than promised has arrived, but nothing moved for this long: quiet, and the judge will say what is missing."""
BROKEN_SHARE = 0.01
COMPONENT_NAMES = {"mqtt": "mosquitto"}


@dataclass(frozen=True)
class Quiet:
    """How a wait for quiescence ended.

    Attributes:
        quiet: nothing is under way any more.
        reason: for people.
    """

    quiet: bool
    reason: str
    seconds: float


class PipelineSession(Deployment):
    """A deployment with traffic, trouble and a judge.

    Args:
        alone: judge all rows of the table; default: only when the servers are ours.
        others: as for Deployment.
    """

    def __init__(self, folder: Path, *, alone: bool | None = None, stack: StackState | None = None, **others: Any) -> None:
        super().__init__(folder, stack=stack, **others)
        self.latency = LatencyFiles(self.latency_folder)
        self.simulations: list[Simulation] = []
        self._alone = stack is None if alone is None else alone
        self._watch: Watch | None = None
        self._program: Path | None = None
        self._before = View("never started", {}, None, 0, 0, 0, {})

    def start(self) -> None:
        """Bring everything up and submit the job; returns as soon as Ray has taken it.

        Raises:
            ProgramMissing, StackError, SimulatorFailed, JobFailed, DependencyUnavailable: nothing is left running by close().
        """
        self.start_servers()
        self.prepare()
        self.submit()

    def start_servers(self, listen: Listener = lambda _: None) -> None:
        """Build the simulator and start the servers, unless they were given; `listen` gets the keeper's progress events."""
        self._program = build_simulator()
        super().start_servers(listen)

    def wait_running(self, timeout_s: float = 90.0) -> View:
        """Wait until the driver says that every slot runs, then let the gateways in.

        Raises:
            SessionFailed: not in time, or the job has ended.
        """
        # The row outlives its driver, and a new driver's row shows the last words of the old one: look for the processes.
        view = self._wait(lambda seen: seen.state == "running" and is_alive(seen), timeout_s, "running")
        if not self._before.ends:
            self._before = view
        enable_gateways(self.state)
        return view

    def simulate(
        self,
        *,
        rate: float,
        seconds: float,
        prefix: str | None = None,
        seed: int | None = None,
        tags: int = 200,
        malformed_share: float = BROKEN_SHARE,
        fault_share: float = BROKEN_SHARE,
        gateways: int = 1,
        **options: Any,
    ) -> Simulation:
        """Start a run of the simulator; it is judged with the others.

        Args:
            prefix: name of its ledger files; default run<n>.
            seed: decides values and MACs; default: one that no run had.
            options: further options of the simulator, e.g. `replay_seconds=30, topic="t1/data"`.
        """
        if self._program is None:
            self._program = build_simulator()
        name = prefix or f"run{len(self.simulations)}"
        run = Simulation(
            self._program,
            self.state.mqtt,
            self.run_folder / name,
            {
                "rate": rate,
                "seconds": seconds,
                "seed": seed if seed is not None else secrets.randbelow(2**31 - 1) + 1,
                "tags": tags,
                "malformed_share": malformed_share,
                "fault_share": fault_share,
                "gateways": gateways,
                **options,
            },
        )
        self.simulations.append(run)
        return run

    def look(self) -> View:
        """Return how far the pipeline is; raises DependencyUnavailable when a server is away."""
        if self._watch is None:
            self._watch = Watch(self.settings)
        return self._watch.look()

    def kill_actor(self, slot: str, number: int = signal.SIGKILL, timeout_s: float = 30.0) -> int:
        """Send a signal to the process of a slot's actor ("write/0") and return its pid.

        Raises:
            SessionFailed: the slot had no living process within the time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(DependencyUnavailable, psutil.NoSuchProcess):
                pid = self.look().pids().get(slot)
                # The status is up to two seconds old: be sure that this is an actor of Ray's, not a pid used again.
                if pid is not None and is_actor(pid):
                    os.kill(pid, number)
                    return pid
            if time.monotonic() > deadline:
                raise SessionFailed(f"{slot}: no living process within {timeout_s:g} s; the slots are {sorted(self.look().slots)}")
            time.sleep(POLL_S)

    def wait_replaced(self, slot: str, old_pid: int, timeout_s: float = 60.0) -> int:
        """Wait until a slot runs in another process than `old_pid` and return that one's pid."""
        view = self._wait(
            lambda seen: seen.slots.get(slot, {}).get("state") == "running" and seen.pids().get(slot, old_pid) != old_pid,
            timeout_s,
            f"{slot} replaced",
        )
        return view.pids()[slot]

    def quiesce(self, timeout_s: float = 60.0) -> Quiet:
        """Wait until nothing is under way: gateways done, slots running, ledger at Kafka's end, nothing moving.

        It is enough for that to last 1.5 s when as much has arrived as the
        gateways were promised, and 15 s when not (then the judge says what is missing).
        """
        began = time.monotonic()
        last: tuple[int, int, int, int] | None = None
        still_since, seen = began, "nothing seen"
        while True:
            now = time.monotonic()
            try:
                view = self.look()
                position = (view.records, sum(view.ends.values()), view.dead_letters, view.counter("mqtt_adapter_messages_received_total"))
                calm = view.caught_up and view.state == "running" and not any(run.running for run in self.simulations)
                if position != last or not calm:
                    last, still_since = position, now
                expected_records, expected_dead = self._acknowledged()
                records, dead = view.records - self._before.records, view.dead_letters - self._before.dead_letters
                arrived = records >= expected_records and dead >= expected_dead
                seen = f"{view.state}, lag {view.lag}, {records} of {expected_records} readings, {dead} of {expected_dead} dead letters"
                if now - still_since >= (SETTLED_S if arrived else STILL_S):
                    return Quiet(quiet=True, reason=seen, seconds=round(now - began, 1))
            except DependencyUnavailable as error:
                still_since, seen = now, str(error)
            if now - began > timeout_s:
                return Quiet(quiet=False, reason=seen, seconds=round(now - began, 1))
            time.sleep(POLL_S)

    def sent(self, runs: Sequence[Simulation] | None = None) -> Sent:
        """Read the ledgers of some runs; default: all."""
        return read_sent([run.prefix for run in (self.simulations if runs is None else runs)])

    def collect(self, sent: Sent) -> Evidence:
        """Read what the servers hold for these runs."""
        return collect(
            self.settings,
            macs=None if self._alone else sent.macs,
            since_us=self.since_us,
            absorbed_before=self._before.duplicate,
        )

    def judge(self, runs: Sequence[Simulation] | None = None) -> Verdict:
        """Judge some runs; default: all. Call quiesce() first.

        On servers of its own, rows of runs left out count as foreign: leave none out there.
        """
        sent = self.sent(runs)
        found = self.collect(sent)
        return judge(sent, found.stored, found.dead, found.books, alone=self._alone)

    def close(self) -> None:
        """End what the session started, at once; a job on servers of ours ends with them. `keep` leaves job and servers."""
        for run in self.simulations:
            run.kill()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        super().close()

    def roots(self, view: View) -> Roots:
        """Return whose process is whose, for a Sampler; actors go by the name of their slot."""
        state = self.state
        trees = {pid: COMPONENT_NAMES.get(name, name) for name, component in state.components.items() for pid in component.pids}
        trees |= {pid: slot for slot, pid in view.pids().items()}
        trees |= {run.pid: "simulator" for run in self.simulations}
        if view.driver_pid is not None:
            trees[view.driver_pid] = "driver"
        # The keeper and Ray's warden are ours, but what lives below them is not theirs.
        return Roots(trees, dict.fromkeys((state.keeper_pid, *state.ray.pids), "stack") | {os.getpid(): "bench"})

    def component_pids(self) -> dict[str, list[int]]:
        """Return all processes of the servers (rayapp.stack.process_ids)."""
        return process_ids(self.state)

    def _acknowledged(self) -> tuple[int, int]:
        """Return how many readings and dead letters the acknowledged messages so far must have brought, at least."""
        readings = dead = 0
        for run in self.simulations:
            if run.running:
                continue
            with contextlib.suppress(RayappError):
                summary = run.wait(1.0)
                readings += max(0, summary["acked"] - summary["malformed"]) * len(SENSORS)
                dead += max(0, summary["malformed"] - summary["unknown"])
        return readings, dead

    def _wait(self, question: Callable[[View], bool], timeout_s: float, wish: str) -> View:
        deadline = time.monotonic() + timeout_s
        seen = "nothing seen"
        asked_job_s = time.monotonic()
        while True:
            try:
                view = self.look()
                if question(view):
                    return view
                seen = f"{view.state}: " + ", ".join(
                    f"{name} {slot['state']} ({slot['last_end']})" for name, slot in sorted(view.slots.items())
                )
            except DependencyUnavailable as error:
                seen = str(error)
            now = time.monotonic()
            if now > deadline:
                raise SessionFailed(f"{wish}: not within {timeout_s:g} s; last seen: {seen}")
            # Asking Ray costs seconds of CPU, so rarely.
            if now - asked_job_s > 15.0:
                asked_job_s = now
                self.require_job()
            time.sleep(POLL_S)
