"""The errors by which Ray says that an actor's process is no more."""

from __future__ import annotations

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

GONE = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError)
