"""Which slot serves which partition: sticky, balanced by count, with as few moves as possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def assign(partitions: Sequence[int], slots: Sequence[int], current: Mapping[int, int]) -> dict[int, int]:
    """Return partition -> slot.

    A partition stays where it is unless its slot is gone or holds more than its
    share. Same input, same output.

    Args:
        partitions: partitions of the topic.
        slots: numbers of the slots of one role; at least one.
        current: where partitions are now; may name slots that are gone.
    """
    if not slots:
        raise ValueError("assign needs at least one slot")
    share, extra = divmod(len(partitions), len(slots))
    held: dict[int, list[int]] = {slot: [] for slot in sorted(slots)}
    homeless: list[int] = []
    for partition in sorted(partitions):
        slot = current.get(partition)
        if slot in held and len(held[slot]) < share + (1 if extra else 0):
            held[slot].append(partition)
        else:
            homeless.append(partition)
    # Only `extra` slots may hold one more than the share; the others give theirs up.
    over = [slot for slot in held if len(held[slot]) > share]
    for slot in over[extra:]:
        homeless.append(held[slot].pop())  # noqa: PERF401 - pops, so no comprehension
    for partition in sorted(homeless):
        slot = min(held, key=lambda name: (len(held[name]), name))
        held[slot].append(partition)
    return {partition: slot for slot, members in held.items() for partition in members}
