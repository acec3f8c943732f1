"""What a reader remembers of a table that grows for as long as it looks: a sample of bounded size, from all times alike.

Every row seen has the same chance to be remembered (reservoir sampling), so
that rows of the last minute are asked for again as well as those of the first.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Memory(Generic[Key]):
    """Keys with the value that was seen first.

    Args:
        limit: keys remembered at most.

    Attributes:
        seen: different keys seen so far, as far as looks that follow each other overlap.
    """

    def __init__(self, limit: int, chance: random.Random) -> None:
        self._limit = limit
        self._chance = chance
        self._keys: list[Key] = []
        self._values: dict[Key, object] = {}
        self._last_look: set[Key] = set()
        self.seen = 0

    def __len__(self) -> int:
        return len(self._values)

    def look(self, rows: Iterable[tuple[Key, object]]) -> None:
        """Take in what one look showed; rows of the look before are not counted again."""
        look = dict(rows)
        for key, value in look.items():
            if key in self._last_look or key in self._values:
                continue
            self.seen += 1
            if len(self._keys) < self._limit:
                self._keys.append(key)
                self._values[key] = value
            elif (at := self._chance.randrange(self.seen)) < self._limit:
                del self._values[self._keys[at]]
                self._keys[at] = key
                self._values[key] = value
        self._last_look = set(look)

    def some(self, count: int) -> list[Key]:
        """Return some of the keys, by chance."""
        return self._chance.sample(self._keys, min(count, len(self._keys)))

    def all(self) -> list[Key]:
        """Return all of the keys."""
        return list(self._keys)

    def value(self, key: Key) -> object:
        """Return what was seen of a remembered key."""
        return self._values[key]
