"""Dead letters of consume on their way: queued, taken by the producer, delivered.

A batch waits until each of its letters has a delivery report of its own: the
ledger must not move past a record whose letter is not durable. A letter that
Kafka refuses for good ends the actor, with nothing committed past its record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from actors import dead_letters
from actors.adapters.kafka import RecordProducer
from actors.consume.flow import UnderWay
from actors.dead_letters import DeadLetter
from rayapp.errors import DeliveryFailed


class OutgoingLetters:
    """The queue before one producer."""

    def __init__(self, producer: RecordProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._queue: deque[tuple[UnderWay, DeadLetter]] = deque()
        self._refused: str | None = None

    def queue(self, under_way: UnderWay, reasons: Mapping[int, str], stage: str, now_us: int) -> None:
        """Queue records of a batch as dead letters.

        Args:
            reasons: offset -> why the record is none.
        """
        claim = under_way.claim
        for offset, reason in sorted(reasons.items()):
            letter = dead_letters.of_record(
                claim.topic, claim.partition, offset, under_way.raw[offset], reason, stage, now_us,
                letter_id=under_way.letter_ids.get(offset),
            )  # fmt: skip
            self._queue.append((under_way, letter))
        under_way.dead_reasons.update(reasons.values())
        under_way.dead_outstanding += len(reasons)

    def forget(self, *batches: UnderWay | None) -> None:
        """Drop what the producer has not taken yet of batches that will be read again."""
        self._queue = deque(item for item in self._queue if item[0] not in batches)

    def send(self) -> None:
        """Hand letters to the producer as far as it has room, and take in delivery reports.

        Raises:
            DeliveryFailed: Kafka refused a letter for good.
        """
        while self._queue:
            under_way, letter = self._queue[0]

            def report(error: object | None, _record: object, under_way: UnderWay = under_way) -> None:
                if error is None:
                    under_way.dead_outstanding -= 1
                else:
                    self._refused = str(error)

            if not self._producer.produce_one(self._topic, letter.value, letter.headers(), report):
                break
            self._queue.popleft()
        self._producer.poll(0.0)
        if self._refused is not None:
            raise DeliveryFailed(f"dead letter refused: {self._refused}; nothing was committed past it")
