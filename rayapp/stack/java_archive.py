"""Java servers start in half the CPU time from a class-data archive; it is made once and kept.

The first start of a version runs the server a second time beforehand, for training: the JVM writes
the archive when that run is ended with SIGTERM. The archive is bound to Java's build and to the jars'
paths and times; the JVM ignores one that does not fit, so a wrong archive can cost time but not
correctness, and a failed training is only reported: the server starts without.
"""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rayapp.stack.component import Workbench
from rayapp.stack.downloads import obtain
from rayapp.stack.errors import StackError
from rayapp.stack.processes import POLL_S, ServerProcess, end_tree

TRAINING_DEADLINE_S = 60.0
DUMP_DEADLINE_S = 60.0
ARCHIVE = "classes.jsa"


def archive_flags(
    bench: Workbench,
    name: str,
    java: Path,
    training: Callable[[Sequence[str]], ServerProcess],
    ask: Callable[[], str],
) -> tuple[str, ...]:
    """Return the JVM flags that use the archive, making it first when it is missing.

    Args:
        name: server and version; Java's own build is added here.
        training: builds the process to run, given extra JVM flags.
        ask: returns "" when the training run serves.
    """
    build = hashlib.sha256((java.resolve().parent.parent / "release").read_bytes()).hexdigest()[:12]

    def fill(folder: Path) -> None:
        bench.say("recording a class archive (once per version)")
        process = training((f"-XX:ArchiveClassesAtExit={folder / ARCHIVE}",))
        running = bench.spawner.start(process)
        try:
            _wait(lambda: ask() == "", running, TRAINING_DEADLINE_S)
            running.terminate()
            _wait(lambda: running.poll() is not None, None, DUMP_DEADLINE_S)
        finally:
            end_tree(running.pid)
            running.wait()
        if not (folder / ARCHIVE).exists():
            raise StackError(f"{name}: the JVM wrote no class archive")

    try:
        folder = obtain(f"{name}-classes-{build}", fill)
    except (StackError, OSError) as error:
        bench.say(f"starts without a class archive: {error}")
        return ()
    return (f"-XX:SharedArchiveFile={folder / ARCHIVE}",)


def _wait(done: Callable[[], bool], running: subprocess.Popen[bytes] | None, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            if done():
                return
        except OSError:
            pass  # nobody listens yet
        if running and running.poll() is not None:
            raise StackError(f"training run exited {running.returncode}")
        if time.monotonic() > end:
            raise StackError(f"training run not done after {deadline_s:.0f} s")
        time.sleep(POLL_S)
