"""What can go wrong in the local stack, by what the person at the keyboard can do about it.

`StackError` (from `rayapp.errors`) means a server did not start, answer or stop: read the log tail
in the message. `ProgramMissing` means nothing was tried, because a program is not installed: the
message is the one line to run. `StackNotRunning` means there is nobody to talk to.
"""

from __future__ import annotations

from rayapp.errors import StackError

__all__ = ["ProgramMissing", "StackError", "StackNotRunning"]


class ProgramMissing(StackError):
    """A program that the stack starts is not installed; the message says what to run."""


class StackNotRunning(StackError):
    """No keeper answers for this folder."""
