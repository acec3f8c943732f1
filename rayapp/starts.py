"""How a slot gets its actor: claim what it owns, make the actor, call run().

Claims come first, so that whoever held it before finds out before the new one
begins. An error leaves nothing behind but a raised epoch, and the next try
raises it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.adapters.kafka import Topics
from actors.base import Actor
from actors.batch import PartitionClaim
from actors.consume.actor import Consume
from actors.detect.actor import Detect
from actors.ingest.actor import Ingest
from actors.write.actor import Write
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.model import Role, Slot, SlotKey
from rayapp.plan.assign import assign
from rayapp.runtime import Runtime


@dataclass(frozen=True)
class Wire:
    """What actors need to speak on the topic: schema text and its id in the registry."""

    schema: str
    schema_id: int


class Starts:
    """Starts actors and knows which slot serves which partition.

    Args:
        claims: returns a live Claims; may raise DatabaseUnavailable.
        counts: slots a role.
    """

    def __init__(
        self, settings: Settings, runtime: Runtime, claims: Callable[[], Claims], topics: Topics, wire: Wire, counts: dict[Role, int]
    ) -> None:
        self._settings = settings
        self._runtime = runtime
        self._claims = claims
        self._topics = topics
        self._wire = wire
        self._counts = counts
        self._assignment: dict[Role, dict[int, int]] = {role: {} for role in (Role.CONSUME, Role.DETECT, Role.WRITE)}
        self.halted: dict[int, str] = {}

    def consume_slot(self, partition: int) -> int | None:
        """Return which consume slot serves a partition."""
        return self._assignment[Role.CONSUME].get(partition)

    def start(self, slot: Slot, name_of: Callable[[SlotKey], tuple[str, str]]) -> Slot:
        """Start the slot's current incarnation and return the slot, with what it needs.

        Args:
            name_of: key -> (name without run, full name) of that slot's incarnation.

        Raises:
            DependencyUnavailable: a claim could not be made now.
            StaleDriver: another driver took over.
        """
        role, settings, runtime = slot.key.role, self._settings, self._runtime
        _, name = name_of(slot.key)
        if role in (Role.WRITE, Role.DETECT):
            kind: type[Actor] = Write if role is Role.WRITE else Detect
            runtime.create(name, kind, settings)
            runtime.run(name)
            return slot
        if role is Role.INGEST:
            self._claims().claim_slot(role, slot.key.index, name)
            runtime.create(name, Ingest, settings, slot.key.index, self._wire.schema, self._wire.schema_id, slot.retire)
            runtime.run(name)
            return slot
        claims = self._claim_partitions(slot.key.index, name)
        detectors = {c.detect_slot: name_of(SlotKey(Role.DETECT, c.detect_slot)) for c in claims}
        writers = {c.write_slot: name_of(SlotKey(Role.WRITE, c.write_slot)) for c in claims}
        runtime.create(name, Consume, settings, self._wire.schema, self._wire.schema_id)
        runtime.run(
            name,
            claims,
            runtime.downstream({i: full for i, (_, full) in detectors.items()}, {i: full for i, (_, full) in writers.items()}),
        )
        return replace(slot, needs=tuple(sorted(short for short, _ in (*detectors.values(), *writers.values()))))

    def _claim_partitions(self, index: int, owner: str) -> list[PartitionClaim]:
        """Claim the partitions of one consume slot that are not halted."""
        kafka = self._settings.kafka
        for role in self._assignment:
            self._assignment[role] = assign(range(kafka.partitions), range(self._counts[role]), self._assignment[role])
        mine = [p for p, slot in sorted(self._assignment[Role.CONSUME].items()) if slot == index]
        if not mine:
            return []
        identity = self._topics.identity()  # now: a topic can be made anew while we run
        ends = self._topics.offsets(kafka.topic, kafka.partitions)
        claimed = self._claims().claim_partitions(kafka.topic, identity, {p: ends[p][0] for p in mine}, owner)
        self.halted = {p: reason for p, reason in self.halted.items() if p not in mine} | dict(claimed.halted)
        detect, write = self._assignment[Role.DETECT], self._assignment[Role.WRITE]
        return [PartitionClaim(kafka.topic, c.partition, c.epoch, owner, detect[c.partition], write[c.partition]) for c in claimed.held]
