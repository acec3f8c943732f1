"""The dead-letter topic, read from its start to the end it has now: first small facts of all letters, then the bytes of some.

Memory grows with the number of distinct letters (some hundred bytes each),
never with their sizes. A letter's bytes are read a second time, in the topic's
order, only where a command needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from actors.adapters.kafka_read import RangeReader, Record
from rayapp.config import KafkaSettings
from rayapp.errors import ConfigurationError
from rayapp.letters.letter import Letter, add_copy, copy_of

Progress = Callable[[int, int], None]
"""Called with records read and records there (offsets, where compaction left gaps)."""


def scan(settings: KafkaSettings, progress: Progress) -> dict[str, Letter]:
    """Return all letters by id, in the order in which they first came.

    Raises:
        ConfigurationError: there is no such topic.
        KafkaUnavailable: no broker answers.
    """
    letters: dict[str, Letter] = {}
    with RangeReader(settings, settings.dead_letter_topic) as reader:
        ranges = reader.bounds(_partitions(reader, settings))
        total, read = sum(high - low for low, high in ranges.values()), 0
        for chunk in reader.read(ranges):
            for record in chunk.records:
                add_copy(letters, copy_of((record.partition, record.offset), record.value or b"", record.headers))
            read += len(chunk.records)
            progress(read, total)
    return letters


def read_copies(settings: KafkaSettings, letter: Letter) -> list[Record]:
    """Return every copy of one letter, with its bytes."""
    with RangeReader(settings, settings.dead_letter_topic) as reader:
        ranges = reader.bounds(_partitions(reader, settings))
        partition, offset = letter.first.place
        ranges[partition] = (offset, ranges[partition][1])
        return [
            record
            for chunk in reader.read(ranges)
            for record in chunk.records
            if copy_of((record.partition, record.offset), record.value or b"", record.headers).id == letter.id
        ]


def read_values(settings: KafkaSettings, letters: Sequence[Letter]) -> Iterator[tuple[Letter, bytes]]:
    """Bring letters with the bytes of their first copies, a partition of the topic after the other, in its order."""
    by_place = {letter.first.place: letter for letter in letters}
    with RangeReader(settings, settings.dead_letter_topic) as reader:
        for partition in sorted({place[0] for place in by_place}):
            offsets = [place[1] for place in by_place if place[0] == partition]
            for chunk in reader.read({partition: (min(offsets), max(offsets) + 1)}):
                for record in chunk.records:
                    letter = by_place.get((record.partition, record.offset))
                    if letter is not None:
                        yield letter, record.value or b""


def _partitions(reader: RangeReader, settings: KafkaSettings) -> list[int]:
    found = reader.partitions()
    if not found:
        raise ConfigurationError(
            f"kafka.dead_letter_topic = {settings.dead_letter_topic}: Kafka has no such topic; the driver makes it at its first start, "
            "or name the right one with --config"
        )
    return found
