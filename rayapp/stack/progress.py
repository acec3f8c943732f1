"""Shows a start as it happens: a live table on a terminal, one plain line per change elsewhere.

Gets the keeper's events through `start_stack(options, listen)`. A log file of a CI run gets lines that
can be searched (component, state, seconds); a person gets the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

COLOURS = {"ready": "green", "dead": "red", "starting": "yellow", "preparing": "yellow"}


class StartProgress:
    """A listener for `start_stack`; a context manager, as the live table must be taken down."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._live = Live(console=console, refresh_per_second=8) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if event["event"] != "component":
            return
        self._rows[event["component"]] = event
        if self._live:
            self._live.update(self._table())
        else:
            text = f"{event['component']:<9} {event['state']:<10} {event['seconds']:7.1f} s  {_note(event)}"
            self._console.print(text.rstrip(), highlight=False, markup=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table("component", "state", "seconds", "", box=None, pad_edge=False)
        for name, event in self._rows.items():
            colour = COLOURS.get(event["state"], "white")
            table.add_row(name, f"[{colour}]{event['state']}[/]", f"{event['seconds']:.1f}", _note(event))
        return table


def _note(event: Mapping[str, Any]) -> str:
    return str(event["detail"] or (event["address"] if event["state"] == "ready" else ""))
