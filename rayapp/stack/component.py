"""What the keeper asks of every component, so that it can treat them all alike.

Order of calls, all from the component's own worker thread: `prepare` (downloads, folders, one-time
initialisation; slow), `processes` (what to start; the keeper starts it from its main thread), `ask`
until it answers "" (a real question, never "the port is open"), `settle` (what needs a running server:
roles, compatibility level). After a kill in a chaos test only `processes`, `ask` and `settle` run again,
so those must not depend on the first start. Errors are `StackError`; an OSError from `ask` means "not yet".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rayapp.stack.layout import Layout
from rayapp.stack.options import StackOptions
from rayapp.stack.processes import ServerProcess, Spawner
from rayapp.stack.state import ComponentState


@dataclass(frozen=True)
class Workbench:
    """What a component works with."""

    layout: Layout
    options: StackOptions
    spawner: Spawner
    say: Callable[[str], None]

    def run(self, process: ServerProcess, deadline_s: float | None = None) -> None:
        """Run a command to its end; default deadline is the one for downloads."""
        self.spawner.run(process, self.options.download_deadline_s if deadline_s is None else deadline_s)


class Component(Protocol):
    """One server, or one group of like servers."""

    name: str

    def prepare(self) -> None:
        """Bring everything into the state in which `processes` can be started."""

    def processes(self) -> Sequence[ServerProcess]:
        """Return what to start."""

    def ask(self) -> str:
        """Return "" when it serves, else what is missing."""

    def settle(self) -> None:
        """Do what needs the running server; must be repeatable."""

    def state(self) -> ComponentState:
        """Return addresses and credentials for the state file."""
