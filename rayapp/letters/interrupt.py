"""Ctrl-C and SIGTERM as an answer to "shall I go on?", so that what is on its way is finished first."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import click


@contextlib.contextmanager
def stop_asked(words: str) -> Iterator[Callable[[], bool]]:
    """Bring a question that is answered True once somebody asked to stop; a second Ctrl-C ends at once.

    Args:
        words: said on standard error at the first one.
    """
    asked: list[int] = []

    def note(number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        click.echo(words, err=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
