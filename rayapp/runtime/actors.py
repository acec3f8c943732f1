"""Make actors, call them, watch them end.

Actors are plain classes; here they become threaded Ray actors with
max_restarts=0 (the supervisor is the only restarter), names that are never
used again, and three groups of threads: `loop` for the one long run(), `work`
for batches, `control` for status(). The ref of run() is the death watch.
Nothing here blocks and nothing here decides.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.base import Actor, Report, Status
from rayapp.runtime.downstream import RayDownstream
from rayapp.runtime.gone import GONE
from rayapp.runtime.spares import Spares

GROUPS = {"loop": 1, "work": 1, "control": 2}
STATUS_EVERY_S = 1.0


@dataclass(frozen=True)
class Ended:
    """An actor's run() is over.

    Attributes:
        reason: for people; the report's reason or the error.
        error: None after a drain.
    """

    name: str
    reason: str
    error: Exception | None


def connect(namespace: str) -> None:
    """Join the cluster that `ray job submit` (or RAY_ADDRESS) names; worker processes log events as we do.

    Install signal handlers after this: Ray replaces earlier ones.
    """
    ray.init(
        namespace=namespace,
        log_to_driver=False,
        runtime_env={"worker_process_setup_hook": "rayapp.worker_setup.set_up"},
    )


class Runtime:
    """The actors of one driver."""

    def __init__(self, cpus_per_actor: float, spare_processes: int = 0) -> None:
        self._cpus = cpus_per_actor
        self._spares = Spares(spare_processes)
        self._handles: dict[str, Any] = {}
        self._runs: dict[Any, str] = {}
        self._status_refs: dict[Any, str] = {}
        self._status_asked_s: dict[str, float] = {}

    def create(self, name: str, actor: type[Actor], *args: object) -> None:
        """Make an actor; its constructor touches no server."""
        remote: Any = ray.remote(concurrency_groups=GROUPS)(actor)  # type: ignore[call-overload]  # Ray's stubs lack the argument
        options = remote.options(
            name=name,
            num_cpus=self._cpus,
            max_restarts=0,
            max_task_retries=0,
            enable_task_events=False,
            max_pending_calls=1000,
            runtime_env=self._spares.environment(time.monotonic()),
        )
        self._handles[name] = options.remote(name, *args)

    def run(self, name: str, *args: object) -> None:
        """Call an actor's run(); finished() tells when it is over."""
        ref = self._handles[name].run.options(concurrency_group="loop").remote(*args)
        self._runs[ref] = name

    def downstream(self, detectors: dict[int, str], writers: dict[int, str]) -> RayDownstream:
        """Return the port through which a consume actor reaches these detectors and writers (slot -> name)."""
        return RayDownstream(
            {slot: self._handles[name] for slot, name in detectors.items()},
            {slot: self._handles[name] for slot, name in writers.items()},
        )

    def finished(self, timeout_s: float) -> list[Ended]:
        """Return the actors whose run() ended, waiting at most `timeout_s` for the first."""
        if not self._runs:
            return []
        done, _ = ray.wait(list(self._runs), num_returns=1, timeout=timeout_s)
        if done:
            done, _ = ray.wait(list(self._runs), num_returns=len(self._runs), timeout=0)
        return [self._end(ref, self._runs.pop(ref)) for ref in done]

    def statuses(self) -> dict[str, Status]:
        """Return the statuses that have come since the last call and ask for new ones."""
        arrived: dict[str, Status] = {}
        if self._status_refs:
            done, _ = ray.wait(list(self._status_refs), num_returns=len(self._status_refs), timeout=0)
            for ref in done:
                name = self._status_refs.pop(ref)
                try:
                    arrived[name] = ray.get(ref)
                except (*GONE, RayTaskError):
                    continue  # its run() ref tells what happened
        now = time.monotonic()
        waiting = set(self._status_refs.values())
        for name, handle in self._handles.items():
            if name not in waiting and now - self._status_asked_s.get(name, 0.0) >= STATUS_EVERY_S:
                self._status_asked_s[name] = now
                self._status_refs[handle.status.options(concurrency_group="control").remote()] = name
        return arrived

    def tend_spares(self, now_s: float) -> None:
        """Keep processes ready for replacements."""
        self._spares.tend(now_s)

    def drain(self, name: str) -> None:
        """Ask an actor to finish; finished() tells when it has."""
        self._handles[name].drain.options(concurrency_group="control").remote()

    def kill(self, name: str) -> None:
        """End an actor's process at once; finished() tells when it is over."""
        ray.kill(self._handles[name], no_restart=True)

    def _end(self, ref: Any, name: str) -> Ended:
        handle = self._handles.pop(name)
        self._status_asked_s.pop(name, None)
        try:
            report: Report = ray.get(ref)
        except RayTaskError as error:
            ray.kill(handle, no_restart=True)
            cause: Exception = error.as_instanceof_cause()  # type: ignore[no-untyped-call]
            return Ended(name, f"{type(error.cause).__name__}: {error.cause}", cause)
        except GONE as error:
            return Ended(name, f"process gone: {type(error).__name__}", error)
        # The run is over; what is left is a process that would wait for ever.
        ray.kill(handle, no_restart=True)
        return Ended(name, report.reason, None)
