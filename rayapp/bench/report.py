"""Figures for people and programs: tables on a terminal, plain lines elsewhere, one JSON object as the last line.

While something runs, a terminal shows one live line and a log gets a line every
few seconds, so that a CI run stays readable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayapp.bench.verdict import Verdict


class Ticker:
    """Shows what is going on: a live view on a terminal, a plain line every `every_s` elsewhere."""

    def __init__(self, console: Console, every_s: float = 1.0) -> None:
        self._console = console
        self._every_s = every_s
        self._live: Live | None = None
        self._printed_s = float("-inf")

    @contextmanager
    def running(self) -> Iterator[Ticker]:
        """Show until the block ends."""
        if not self._console.is_terminal:
            yield self
            return
        with Live(console=self._console, refresh_per_second=4, transient=True) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    def show(self, figures: Mapping[str, object], view: RenderableType | None = None) -> None:
        """Show figures; `view` replaces the line on a terminal."""
        line = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self._live is not None:
            self._live.update(view if view is not None else Text(line, no_wrap=True))
        elif time.monotonic() - self._printed_s >= self._every_s * 0.9:
            self._printed_s = time.monotonic()
            say(self._console, line)


def say(console: Console, text: str) -> None:
    """Print one line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a small table: first column left, figures right."""
    console.print(title, style="bold", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if at == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)
    say(console, "")


def verdict_rows(verdict: Verdict) -> list[tuple[str, object, str]]:
    """Return the judge's findings as rows: what, how many, and what it should be."""
    books = verdict.books
    return [
        ("messages sent", verdict.sent, ""),
        ("acknowledged", verdict.acked, f"{verdict.unknown} unknown"),
        ("readings promised", verdict.readings_promised, ""),
        ("readings stored", verdict.readings_stored, ""),
        ("lost", verdict.lost, "0"),
        ("duplicates", verdict.duplicates, "0"),
        ("foreign", verdict.foreign, "0"),
        ("mismatched", verdict.mismatched, "0"),
        ("copies absorbed", verdict.absorbed, "any"),
        ("dead-lettered", verdict.dead_lettered, f"{verdict.dead_expected} at least"),
        ("dead letters missing", verdict.dead_missing, "0"),
        ("wrongly dead-lettered", verdict.dead_wrong + verdict.dead_foreign, "0"),
        ("anomalies", verdict.anomalies, str(verdict.anomalies_expected)),
        ("wrong anomaly flags", verdict.anomalies_wrong, "0"),
        ("Kafka records", sum(end - start for start, end in books.log.values()), "= ledger records"),
        ("ledger records", books.records, f"= {books.stored} stored + {books.duplicate} duplicate + {books.dead} dead"),
    ]


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Print the judge's table and, below it, each broken promise."""
    print_table(console, "judge", ("", "found", "expected"), verdict_rows(verdict))
    for problem in verdict.problems:
        say(console, f"BROKEN {problem}")


def save(path: Path, figures: Mapping[str, Any], details: Mapping[str, Any]) -> None:
    """Keep the figures, and what the tables showed, as one JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**figures, "details": details}, indent=2, default=str) + "\n", encoding="utf-8")
