"""A disk filled to the last block, through a file that is as large as it has to be.

Reached from outside the mount namespace through /proc/PID/root. A tmpfs gives
what one large reservation cannot have in small pieces, and the server goes on
taking and freeing space meanwhile: so pieces become smaller until not even a
page is left, and whether the disk is full is looked at, not assumed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIECES_BYTES = (256 * 2**20, 16 * 2**20, 2**20, 64 * 2**10, 4096)
ROUNDS = 5
FULL_BELOW_BYTES = 2**20
"""Free space at which the disk counts as full: the server's next segment of its log is sixteen times as large."""


@dataclass(frozen=True)
class Filled:
    """How a disk was when it was full.

    Attributes:
        used_bytes: by everybody else.
        free_bytes: what was left.
    """

    size_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def is_full(self) -> bool:
        """True when nothing of use was left."""
        return self.free_bytes < FULL_BELOW_BYTES


@contextlib.contextmanager
def filled(ballast: Path) -> Iterator[Filled]:
    """Fill the disk that `ballast` lies on, give it free again at the end.

    Raises:
        OSError: something else than the end of space.
    """
    with ballast.open("wb") as file:
        try:
            taken = 0
            for _ in range(ROUNDS):
                # The server may just have given back a segment of its log.
                taken = _fill(file.fileno(), taken)
                space = os.fstatvfs(file.fileno())
                size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
                disk = Filled(size, size - free - taken, free)
                if disk.is_full:
                    break
            yield disk
        finally:
            # Truncated first: a server that holds the disk's last reference must not wait for the name to go.
            os.ftruncate(file.fileno(), 0)
            with contextlib.suppress(OSError):
                ballast.unlink()


def _fill(descriptor: int, taken: int) -> int:
    """Reserve piece after piece, the large ones first, and return how many bytes the file has then."""
    for piece in PIECES_BYTES:
        while True:
            try:
                os.posix_fallocate(descriptor, taken, piece)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break
            taken += piece
    return taken
