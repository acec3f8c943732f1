"""Kafka and the schema registry from Maven Central, fetched once per machine and user.

A download goes into a `.partial` folder and is renamed into place when it is complete: an interrupted
one never counts, whoever killed it. A lock file per entry lets two stacks start at once; the second
waits for the first. Nothing here is ever changed after the rename, so readers need no lock. Failure
leaves no entry and names the entry, the cause and what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rayapp.stack.errors import StackError

LOCK_POLL_S = 0.2


def cache_root() -> Path:
    """Return the folder of finished downloads."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ruuvi-ray"


def obtain(name: str, fill: Callable[[Path], None], deadline_s: float = 600.0) -> Path:
    """Return the finished folder `name`, filling it first when it is not there.

    Args:
        name: folder name with the version in it, so that another version is another entry.
        fill: puts everything into the folder it is given; an exception discards it.
        deadline_s: how long to wait for another process that is filling it.

    Raises:
        StackError: filling failed, or another process holds the lock beyond the deadline.
    """
    final = cache_root() / name
    if final.is_dir():
        return final
    cache_root().mkdir(parents=True, exist_ok=True)
    with _locked(cache_root() / f"{name}.lock", deadline_s):
        if final.is_dir():
            return final
        for abandoned in cache_root().glob(f".{name}.*.partial"):
            # We hold the lock, so whoever made it is gone.
            shutil.rmtree(abandoned, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".partial", dir=cache_root()))
        try:
            fill(partial)
            partial.chmod(0o755)  # public archives, read by whoever runs the server
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final


@contextlib.contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    end = time.monotonic() + deadline_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise StackError(f"download {path.stem}: another process holds {path} for {deadline_s:.0f} s; end it") from None
                time.sleep(LOCK_POLL_S)
        yield
