"""Calls to detect and write that have no answer yet, each with the flow it belongs to and who takes the answer.

A flow that failed meanwhile is told nothing: its answer only counts down
`outstanding`, and the flow is recovered once that is 0.
"""

from __future__ import annotations

from collections.abc import Callable

from actors.consume.flow import PartitionFlow
from actors.consume.port import Answer, Downstream

Handle = Callable[[PartitionFlow, Answer], None]


class Calls:
    """The calls under way through one Downstream."""

    def __init__(self, downstream: Downstream) -> None:
        self._downstream = downstream
        self._waiting: dict[int, tuple[PartitionFlow, Handle]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def expect(self, flow: PartitionFlow, token: int, handle: Handle) -> None:
        """Give the answer to a call to `handle` when it comes."""
        flow.outstanding += 1
        self._waiting[token] = (flow, handle)

    def answer(self, timeout_s: float) -> None:
        """Hand out the answers that have come, waiting at most `timeout_s` for the first; what the handles raise comes through."""
        for answer in self._downstream.poll(timeout_s):
            flow, handle = self._waiting.pop(answer.token)
            flow.outstanding -= 1
            if not flow.recovering:
                handle(flow, answer)
