"""Which fault comes when: a pure function of the seed.

What a run covers is counted in units, a kind of fault and a role it is done to
("actor_kill of write"). Units are dealt: every kind once before any kind comes a
second time, every unit once before any comes again, and the members of a role
in turn (write/0, write/1, write/0, ...); the seed decides the order. So a run
long enough has them all, whatever its seed, and a short one does not always
begin alike. A fault is over, and some calm has passed, before the next begins:
recovery is measured per fault. A process that stays stopped for longer than the
distance of two faults moves what follows.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

ACTORS = ("ingest/0", "consume/0", "detect/0", "detect/1", "write/0", "write/1")
LINKS = ("mqtt", "kafka", "database")
BROKERS = ("kafka-1", "kafka-2", "kafka-3")
CALM_S = 8.0
"""Between a fault's end and the next one."""
FIRST_S = 12.0
"""Traffic before the first fault: what is late in it is nobody's fault, and is reported as such."""
LONG_RUN_S = 600.0
"""Runs from this length on have stops that outlast the driver's patience."""


@dataclass(frozen=True)
class Kind:
    """What can be done.

    Attributes:
        targets: to whom.
        seconds: how long it lasts at least and at most; (0, 0) for a blow.
        group: of recovery times that are reported together.
        back_s: how long the server or the job then takes to be there again, about.
        long: in long runs every second fault of this kind lasts so long.
    """

    name: str
    targets: tuple[str, ...]
    seconds: tuple[float, float]
    group: str
    back_s: float = 0.0
    long: tuple[float, float] | None = None

    @property
    def units(self) -> list[Unit]:
        """One for each role among the targets."""
        return [Unit(self.name, role) for role in dict.fromkeys(map(role_of, self.targets))]


@dataclass(frozen=True, order=True)
class Unit:
    """What coverage is counted in."""

    kind: str
    role: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.role}"


def role_of(target: str) -> str:
    """Return the role of a target: of "write/1" write, of "kafka-2" kafka."""
    return re.split("[/-]", target, maxsplit=1)[0]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("actor_kill", ACTORS, (0, 0), "actor"),
        Kind("actor_term", ACTORS, (0, 0), "actor"),
        # The driver replaces what makes no progress for 30 s: one length below that, one beyond it.
        Kind("actor_stop", ACTORS, (1, 25), "stopped", long=(34, 60)),
        Kind("driver_kill", ("driver",), (0, 0), "driver", back_s=8),
        Kind("driver_stop", ("driver",), (1, 20), "stopped"),
        Kind("node_kill", ("node",), (0.5, 2), "node", back_s=14),
        Kind("mqtt_term", ("mqtt",), (1, 3), "mqtt", back_s=1),
        Kind("mqtt_kill", ("mqtt",), (1, 3), "mqtt", back_s=1),
        Kind("kafka_kill", BROKERS, (3, 6), "kafka", back_s=5),
        Kind("database_kill", ("postgres",), (1, 3), "database", back_s=2),
        Kind("database_restart", ("postgres",), (0, 0), "database", back_s=2),
        Kind("registry_kill", ("registry",), (1, 4), "registry", back_s=2),
        Kind("cut", LINKS, (0, 0), "network"),
        Kind("delay", LINKS, (2, 8), "network"),
        Kind("blackhole", LINKS, (2, 8), "network"),
        Kind("disk_full", ("postgres",), (2, 6), "database", back_s=4),
    )
}


@dataclass(frozen=True)
class Fault:
    """One fault of a run.

    Attributes:
        at_s: seconds after the traffic began; later when the one before took longer than thought.
        seconds: how long its cause lasts.
        strength: between 0 and 1, for kinds that have one (delay).
    """

    at_s: float
    kind: str
    target: str
    seconds: float
    strength: float

    @property
    def unit(self) -> Unit:
        """What it covers."""
        return Unit(self.kind, role_of(self.target))


@dataclass(frozen=True)
class Pace:
    """How faults follow each other.

    Attributes:
        every_s: from one to the next, at least.
        calm_s: from the end of one to the next, at least.
        first_s: from the beginning of the traffic to the first.
    """

    every_s: float
    calm_s: float = CALM_S
    first_s: float = FIRST_S

    def turn_s(self, kind: Kind, seconds: float) -> float:
        """Return how long one fault keeps the next from beginning."""
        return max(self.every_s, seconds + kind.back_s + self.calm_s)

    def worst_turn_s(self, kind: Kind, *, long_run: bool) -> float:
        """Return the longest that any fault of a kind may take."""
        return self.turn_s(kind, kind.long[1] if long_run and kind.long else max(kind.seconds[0], min(kind.seconds[1], self.room_s)))

    @property
    def room_s(self) -> float:
        """How long a fault may last without moving the next."""
        return self.every_s - self.calm_s


QUICK_PACE = Pace(every_s=7.0, calm_s=5.0, first_s=8.0)
QUICK: tuple[tuple[str, str], ...] = (
    ("actor_kill", "ingest"),
    ("actor_kill", "consume"),
    ("actor_kill", "detect"),
    ("actor_kill", "write"),
    ("actor_stop", ""),
    ("driver_kill", "driver"),
    ("mqtt_kill", "mqtt"),
    ("mqtt_term", "mqtt"),
    ("kafka_kill", "kafka"),
    ("database_kill", "postgres"),
    ("database_restart", "postgres"),
    ("cut", ""),
    ("blackhole", ""),
    ("disk_full", "postgres"),
)
"""What a run of two minutes does, kind and role, in an order of the seed's; "" = a role of the seed's."""


def units_of(kinds: Collection[str]) -> set[Unit]:
    """Return everything that a run of these kinds could cover."""
    return {unit for name in kinds for unit in KINDS[name].units}


def draw(seed: int, total_s: float, pace: Pace, kinds: Sequence[str]) -> list[Fault]:
    """Return the faults of a run, in time order.

    Args:
        total_s: length of the traffic; the last fault leaves time to recover.
        kinds: names in KINDS.

    Raises:
        ValueError: an unknown kind, or faults too close.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown or not kinds:
        raise ValueError(f"kinds = {unknown or 'none'}: must be some of {', '.join(KINDS)}")
    if pace.room_s < 1:
        raise ValueError(
            f"every_s = {pace.every_s:g}: must be at least {pace.calm_s + 1:g}, or one fault's recovery cannot be told from the next"
        )
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    return list(_faults(chance, total_s, pace, _deal(chance, kinds)))


def draw_quick(seed: int, kinds: Collection[str]) -> list[Fault]:
    """Return the faults of a run of about two minutes: QUICK, as far as these kinds are possible."""
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    units = [Unit(kind, role or chance.choice(KINDS[kind].units).role) for kind, role in QUICK if kind in kinds]
    chance.shuffle(units)
    return list(_faults(chance, LONG_RUN_S / 2, QUICK_PACE, iter(units)))


def enough_for_all(total_s: float, pace: Pace, kinds: Collection[str]) -> bool:
    """Say whether a run of this length covers every unit of these kinds, whatever its seed."""
    long_run = total_s >= LONG_RUN_S
    return pace.first_s + sum(pace.worst_turn_s(KINDS[unit.kind], long_run=long_run) for unit in units_of(kinds)) <= total_s


def _deal(chance: random.Random, kinds: Sequence[str]) -> Iterator[Unit]:
    """Yield units for ever: first one of each kind, then a second of those that have one, ..., then all over again."""
    while True:
        ranked: list[tuple[int, float, Unit]] = []
        for name in dict.fromkeys(kinds):
            units = KINDS[name].units
            chance.shuffle(units)
            ranked += [(rank, chance.random(), unit) for rank, unit in enumerate(units)]
        yield from (unit for _, _, unit in sorted(ranked))


def _faults(chance: random.Random, total_s: float, pace: Pace, units: Iterator[Unit]) -> Iterator[Fault]:
    """Give units times, targets and lengths, as long as there is room."""
    turns: dict[Unit, int] = {}
    long_next: dict[str, bool] = {}
    at_s = pace.first_s
    for unit in units:
        kind = KINDS[unit.kind]
        low, high = kind.seconds[0], max(kind.seconds[0], min(kind.seconds[1], pace.room_s))
        if kind.long is not None and total_s >= LONG_RUN_S:
            is_long = long_next.setdefault(kind.name, chance.random() < 0.5)
            long_next[kind.name] = not is_long
            low, high = kind.long if is_long else (low, high)
        seconds = round(chance.uniform(low, high), 1)
        members = [target for target in kind.targets if role_of(target) == unit.role]
        turn = turns[unit] = turns.get(unit, chance.randrange(len(members)) - 1) + 1
        if at_s + pace.turn_s(kind, seconds) > total_s + 0.001:
            return
        yield Fault(round(at_s, 1), kind.name, members[turn % len(members)], seconds, round(chance.random(), 2))
        at_s += pace.turn_s(kind, seconds)
