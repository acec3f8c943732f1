"""The only package that calls Ray for the supervisor: actors, consume's port to other actors, spare processes."""

from rayapp.runtime.actors import Ended, Runtime, connect
from rayapp.runtime.downstream import RayDownstream

__all__ = ["Ended", "RayDownstream", "Runtime", "connect"]
