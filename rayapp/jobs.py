"""Submit and stop the pipeline through Ray's own command line, as its users do.

`ray job stop` sends SIGTERM and after 3 seconds SIGKILL. A drain takes longer,
so submit() sets RAY_JOB_STOP_WAIT_TIME_S for the job; correctness never needs
the drain, it only makes the next start quicker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from rayapp.config import Settings
from rayapp.errors import DependencyUnavailable, RayappError

_RAY = (sys.executable, "-m", "ray.scripts.scripts")
STOP_MARGIN_S = 15


class JobFailed(RayappError):
    """Ray refused a job command."""


def submit(settings: Settings, config: Path | None, address: str, job_id: str | None, environment: Mapping[str, str] | None = None) -> str:
    """Submit `python -m rayapp run` and return the submission id at once.

    Args:
        environment: further variables of the job; no secrets, Ray shows them.

    Raises:
        DependencyUnavailable: Ray does not answer at `address`.
        JobFailed: Ray refused the job.
    """
    job = job_id or f"{settings.pipeline}-{uuid.uuid4().hex[:8]}"
    wait_s = round(settings.fleet.drain_timeout_s * 2) + STOP_MARGIN_S
    runtime_environment = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s), **(environment or {})}}
    entrypoint = [sys.executable, "-m", "rayapp", "run", *(["--config", str(config.resolve())] if config else [])]
    _ray(
        "job",
        "submit",
        "--address",
        address,
        "--submission-id",
        job,
        "--no-wait",
        "--runtime-env-json",
        json.dumps(runtime_environment),
        "--",
        *entrypoint,
    )
    return job


def stop(job_id: str, address: str, timeout_s: float) -> str:
    """Stop a job and return its final state.

    Raises:
        DependencyUnavailable: Ray does not answer.
        JobFailed: no such job, or it did not end in time.
    """
    _ray("job", "stop", "--address", address, "--no-wait", job_id)
    return wait_for_end(job_id, address, timeout_s)


def wait_for_end(job_id: str, address: str, timeout_s: float) -> str:
    """Ask for a job's state until it is final.

    Raises:
        JobFailed: it did not end in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        state = job_state(job_id, address)
        if state in ("STOPPED", "SUCCEEDED", "FAILED"):
            return state
        if time.monotonic() > deadline:
            raise JobFailed(f"job {job_id} is still {state} after {timeout_s:g} s")


def job_state(job_id: str, address: str) -> str:
    """Return Ray's word for a job's state, e.g. RUNNING."""
    output = _ray("job", "status", "--address", address, job_id)
    for state in ("STOPPED", "SUCCEEDED", "FAILED", "RUNNING", "PENDING"):
        if state in output.upper().replace(job_id.upper(), ""):
            return state
    raise JobFailed(f"job {job_id}: Ray says {output.strip()!r}")


def _ray(*arguments: str) -> str:
    """Run Ray's command line and return what it printed."""
    done = subprocess.run([*_RAY, *arguments], capture_output=True, text=True, env={**os.environ, "RAY_COLOR_MODE": "false"}, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        kind = DependencyUnavailable if "Failed to connect" in output or "ConnectionError" in output else JobFailed
        raise kind(f"ray {' '.join(arguments[:2])}: {output[-2000:]}")
    return done.stdout + done.stderr
