"""Letters go out again: records to the producer, every delivery report in, then the letter's state.

The state is written only after the reports of all its records, so a command
that is killed in between sends some letters again at its next run: the natural
key absorbs what they make twice. Asked to stop, it takes no more letters,
waits for the reports of those on their way and writes their states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from actors.adapters.kafka import LETTER_ID_HEADER, RecordProducer
from rayapp.errors import DeliveryFailed, KafkaUnavailable
from rayapp.letters.judge import Outgoing, Verdict
from rayapp.letters.letter import Letter

TOGETHER = 200
"""Letters between two writings of states."""
REPORTS_S = 60.0

Judgement = Callable[[Letter, bytes], Verdict]
Decide = Callable[[Sequence[Letter]], None]


@dataclass
class Tally:
    """What a run did.

    Attributes:
        refused: today's reason of each letter that stayed, by id.
    """

    letters: int = 0
    records: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    stopped: bool = False


class Replayer:
    """Send letters to the readings topic.

    Args:
        decide: writes down that letters were replayed, durably.
        rate: letters' records a second, None = as fast as they go.
        stop: asked between letters.
    """

    def __init__(
        self, producer: RecordProducer, topic: str, judge: Judgement, decide: Decide, *, rate: float | None, stop: Callable[[], bool]
    ) -> None:
        self._producer, self._topic, self._judge, self._decide = producer, topic, judge, decide
        self._rate, self._stop = rate, stop
        self._outstanding = 0
        self._failed: str | None = None
        self._due_s = 0.0

    def run(self, letters: Iterable[tuple[Letter, bytes]]) -> Tally:
        """Replay letters in their order.

        Raises:
            DeliveryFailed: Kafka refused a record for good; no state was written for the letters on their way.
            KafkaUnavailable: reports did not come in time; likewise.
            DependencyUnavailable: registry or database is away; letters of earlier rounds are done.
        """
        tally, sent = Tally(), list[Letter]()
        self._due_s = time.monotonic()
        for letter, value in letters:
            if self._stop():
                tally.stopped = True
                break
            verdict = self._judge(letter, value)
            if verdict.refused is not None:
                tally.refused[letter.id] = verdict.refused
                continue
            for record in verdict.records:
                self._send(letter, record)
            tally.records += len(verdict.records)
            sent.append(letter)
            if len(sent) >= TOGETHER:
                self._settle(sent, tally)
        self._settle(sent, tally)
        return tally

    def _send(self, letter: Letter, record: Outgoing) -> None:
        """Hand one record to the producer, in time and however full its queue is."""
        if self._rate is not None:
            while (wait_s := self._due_s - time.monotonic()) > 0:
                self._producer.poll(min(wait_s, 0.1))
            self._due_s = max(self._due_s, time.monotonic() - 1.0) + 1.0 / self._rate
        headers = {LETTER_ID_HEADER: letter.id.encode()}
        deadline_s = time.monotonic() + REPORTS_S
        while not self._producer.produce_one(
            self._topic, record.value, headers, self._reported, key=record.key, partition=record.partition
        ):
            self._producer.poll(0.1)
            if time.monotonic() > deadline_s:
                raise KafkaUnavailable(f"kafka: the producer's queue stayed full for {REPORTS_S:g} s; run the command again")
        self._outstanding += 1

    def _reported(self, error: object | None, _record: object) -> None:
        self._outstanding -= 1
        if error is not None:
            self._failed = str(error)

    def _settle(self, sent: list[Letter], tally: Tally) -> None:
        """Wait for every report, then write the states of the letters that went."""
        deadline_s = time.monotonic() + REPORTS_S
        while self._outstanding and self._failed is None:
            if time.monotonic() > deadline_s:
                raise KafkaUnavailable(f"kafka: {self._outstanding} records without a report for {REPORTS_S:g} s; run the command again")
            self._producer.poll(0.1)
        if self._failed is not None:
            raise DeliveryFailed(f"kafka refused a replayed record: {self._failed}; its letters stay as they were")
        if sent:
            self._decide(sent)
            tally.letters += len(sent)
            sent.clear()
