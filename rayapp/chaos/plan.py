"""Which fault comes when: a pure function of the seed.

Every kind comes once, in an order the seed decides, before any comes again; so
a run long enough has them all, and a short one does not always begin alike. A
fault ends some seconds before the next begins: recovery is measured per fault.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

ACTORS = ("ingest/0", "consume/0", "detect/0", "detect/1", "write/0", "write/1")
LINKS = ("mqtt", "kafka", "database")
BROKERS = ("kafka-1", "kafka-2", "kafka-3")
CALM_S = 8.0
"""Between a fault's end and the next one."""


@dataclass(frozen=True)
class Kind:
    """What can be done.

    Attributes:
        targets: to whom; one is drawn.
        seconds: how long it lasts at least and at most; (0, 0) for a blow.
        group: of recovery times that are reported together.
    """

    name: str
    targets: tuple[str, ...]
    seconds: tuple[float, float]
    group: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("actor_kill", ACTORS, (0, 0), "actor"),
        Kind("actor_term", ACTORS, (0, 0), "actor"),
        Kind("actor_stop", ACTORS, (1, 60), "stopped"),
        Kind("driver_kill", ("driver",), (0, 0), "driver"),
        Kind("driver_stop", ("driver",), (1, 20), "stopped"),
        Kind("mqtt_term", ("mqtt",), (1, 3), "mqtt"),
        Kind("mqtt_kill", ("mqtt",), (1, 3), "mqtt"),
        Kind("kafka_kill", BROKERS, (3, 6), "kafka"),
        Kind("database_kill", ("postgres",), (1, 3), "database"),
        Kind("database_restart", ("postgres",), (0, 0), "database"),
        Kind("registry_kill", ("registry",), (1, 4), "registry"),
        Kind("cut", LINKS, (0, 0), "network"),
        Kind("delay", LINKS, (2, 8), "network"),
        Kind("blackhole", LINKS, (2, 8), "network"),
        Kind("disk_full", ("postgres",), (2, 6), "database"),
    )
}


@dataclass(frozen=True)
class Fault:
    """One fault of a run.

    Attributes:
        at_s: seconds after the traffic began.
        seconds: how long its cause lasts.
        strength: between 0 and 1, for kinds that have one (delay).
    """

    at_s: float
    kind: str
    target: str
    seconds: float
    strength: float


def draw(seed: int, total_s: float, every_s: float, kinds: Sequence[str], *, first_s: float = 12.0) -> list[Fault]:
    """Return the faults of a run, in time order.

    Args:
        total_s: length of the traffic; the last fault leaves time to recover.
        every_s: from one fault to the next, at least CALM_S and a second.
        kinds: names in KINDS.

    Raises:
        ValueError: an unknown kind, or faults too close.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds = {unknown or 'none'}: must be some of {', '.join(KINDS)}")
    if every_s < CALM_S + 1:
        raise ValueError(f"every_s = {every_s:g}: must be at least {CALM_S + 1:g}, or one fault's recovery cannot be told from the next")
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    faults: list[Fault] = []
    waiting: list[str] = []
    at_s = first_s
    while at_s + every_s <= total_s + 0.001:
        if not waiting:
            waiting = list(dict.fromkeys(kinds))
            chance.shuffle(waiting)
        kind = KINDS[waiting.pop()]
        low, high = kind.seconds
        seconds = round(min(chance.uniform(low, high), every_s - CALM_S), 1)
        faults.append(Fault(at_s, kind.name, chance.choice(kind.targets), seconds, round(chance.random(), 2)))
        at_s += every_s
    return faults
