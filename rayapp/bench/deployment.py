"""One pipeline on real servers: bring them up, submit the job, stop it, take everything down.

The servers are started here, leashed to this process, or given (a test suite
shares one set among many sessions). Whatever was started here ends here; what
was given stays, and only the job on it is stopped.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.adapters.postgres import connect
from rayapp import jobs
from rayapp.config import Settings
from rayapp.errors import RayappError
from rayapp.files import project_file
from rayapp.local import ray_environment, write_settings
from rayapp.migrate import migrate
from rayapp.stack import Stack, StackError, StackNotRunning, StackOptions, StackState, load_state, start_stack, stop_stack
from rayapp.stack.state import keeper_is_alive

STOP_DEADLINE_S = 150.0

Listener = Callable[[Mapping[str, Any]], None]


class SessionFailed(RayappError):
    """The pipeline did not get where it should in time; the message says what was seen last."""


class Deployment:
    """A pipeline and its servers.

    Args:
        folder: everything of this session lies here: `stack/` (when it starts one) and `runs/<time>/`.
        stack: servers that run already and stay; None starts some, leashed unless `keep`.
        options: shape of the servers to start; folder, ray and leash are ours.
        overrides: settings by section, e.g. `{"pipeline": "t1", "kafka": {"topic": "t1"}}`.
        keep: leave job and servers running at the end.
        job_environment: further environment variables of the job.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stack: StackState | None = None,
        options: StackOptions | None = None,
        overrides: Mapping[str, Any] | None = None,
        keep: bool = False,
        job_environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S") + f"-{secrets.token_hex(2)}"
        self.run_folder = self.folder / "runs" / self.stamp
        self.stack_folder = self.folder / "stack"
        self.config_path = self.run_folder / "rayapp.yaml"
        self.latency_folder = self.run_folder / "latency"
        self.job_id: str | None = None
        self.keep = keep
        self.job_environment = dict(job_environment or {})
        self._given = stack
        self._options = replace(options or StackOptions(), folder=self.stack_folder, ray=True, leash=not keep)
        self._overrides = dict(overrides or {})
        self._stack: Stack | None = None
        self._settings: Settings | None = None
        self.since_us = 0

    @property
    def state(self) -> StackState:
        """The servers' state file, read now."""
        if self._given is not None:
            return self._given
        if self._stack is None:
            raise SessionFailed("the session has no servers yet: call start() first")
        return self._stack.state

    @property
    def settings(self) -> Settings:
        """The pipeline's settings."""
        if self._settings is None:
            raise SessionFailed("the session has no settings yet: call start() first")
        return self._settings

    def start_servers(self, listen: Listener = lambda _: None) -> None:
        """Start the servers, unless they were given; `listen` gets the keeper's progress events."""
        if self._given is not None:
            return
        try:
            running = start_stack(self._options, listen)
        except KeyboardInterrupt:
            # The keeper has ended everything; after a failure its logs would be wanted, after Ctrl-C nothing is.
            self._remove_dead_stack()
            raise
        if running.already_running:
            raise StackError(
                f"dir={self.stack_folder}: a stack already runs there; stop it with `rayapp stack down --dir {self.stack_folder}`"
                " or name another --dir"
            )
        self._stack = running

    def _remove_dead_stack(self) -> None:
        """Delete what a start left in the folder, unless somebody's stack lives there."""
        try:
            if not keeper_is_alive(load_state(self.stack_folder)):
                stop_stack(self.stack_folder)
        except StackNotRunning:
            # A keeper that was broken off while starting takes it for a failure and leaves its logs.
            shutil.rmtree(self.stack_folder / "logs", ignore_errors=True)
            with contextlib.suppress(OSError):
                self.stack_folder.rmdir()

    def prepare(self) -> None:
        """Bring the database to the current schema and write the settings."""
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.latency_folder.mkdir(exist_ok=True)
        self._settings = write_settings(self.state, self.config_path, {"latency_dir": str(self.latency_folder), **self._overrides})
        connection = connect(self._settings.database, "owner", application="rayapp bench migrate")
        try:
            migrate(connection, project_file("sql/migrations"))
        finally:
            connection.close()
        self.since_us = time.time_ns() // 1000

    def submit(self) -> str:
        """Submit the job and return its id."""
        with self._ray() as address:
            self.job_id = jobs.submit(self.settings, self.config_path, address, None, self.job_environment)
        return self.job_id

    def resubmit(self) -> str:
        """Submit a new job, whatever became of the last one; it takes the pipeline over."""
        return self.submit()

    def require_job(self) -> None:
        """Raise SessionFailed when the job has ended; costs some seconds of CPU."""
        if self.job_id is None:
            return
        with self._ray() as address:
            state = jobs.job_state(self.job_id, address)
        if state in {"FAILED", "STOPPED", "SUCCEEDED"}:
            raise SessionFailed(f"job {self.job_id} is {state}; its output: `ray job logs {self.job_id}`, or logs/ in {self.stack_folder}")

    def stop_job(self, timeout_s: float = STOP_DEADLINE_S) -> str:
        """Stop the job by `ray job stop`, wait for its drain, and return Ray's word: STOPPED when all is well."""
        if self.job_id is None:
            raise SessionFailed("no job was submitted: call start() first")
        with self._ray() as address:
            ended = jobs.stop(self.job_id, address, timeout_s)
        self.job_id = None
        return ended

    def discard(self) -> None:
        """Delete this session's ledgers, latency files and settings; the figures are saved elsewhere."""
        shutil.rmtree(self.run_folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.run_folder.parent.rmdir()

    def close(self) -> None:
        """End the job, and the servers if they were started here; `keep` leaves both."""
        if self.keep:
            return
        if self._stack is not None:
            # A job ends with its servers; to drain it first is stop_job()'s business.
            stack, self._stack = self._stack, None
            stack.stop()
        elif self._given is not None and self.job_id is not None:
            self.stop_job()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What is kept is a pipeline that works: after an error or Ctrl-C nothing stays.
        self.keep = self.keep and error is None
        self.close()
        if isinstance(error, KeyboardInterrupt):
            self.discard()

    @contextlib.contextmanager
    def _ray(self) -> Iterator[str]:
        """Give `ray` commands the environment that reaches this stack's Ray; yields its address."""
        before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH")}
        after = ray_environment(self.state)
        os.environ.update({name: after[name] for name in before if name in after})
        try:
            yield self.state.ray.dashboard_url
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
