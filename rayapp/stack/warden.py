"""Holds every process that `ray start` leaves behind, and ends all of them, whatever happens.

Started by the keeper as a plain script (`python -I warden.py COMMAND...`), so it imports the standard
library only and stays near 10 MB. It makes itself "child subreaper": each orphan below it becomes its
child instead of init's, so the list of what to end is complete, agents and job drivers included. It
ends when it is told to (SIGTERM, also the kernel's when the keeper is gone), or when a part that Ray
cannot live without has died; SIGTERM to the raylet first, so that workers go in order, then SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PR_SET_NAME = 15
POLL_S = 0.1
RAYLET_GRACE_S = 3.0
VITAL = ("gcs_server", "raylet")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
START_POLL_S = 0.25
START_ATTEMPTS = 2
HOLD_POLL_S = 5.0
LAST_LINES = 8
HELD = "held"
UNUSED = "ray.util.client.server"


def descendants() -> dict[int, int]:
    """Return all processes below this one as pid -> parent's pid, zombies left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name in brackets may hold spaces: split behind it.
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    below: dict[int, int] = {}
    frontier = {os.getpid()}
    while frontier:
        level = {pid: parent for pid, parent in parents.items() if parent in frontier and pid not in below}
        below |= level
        frontier = set(level)
    return below


def named(pid: int) -> str:
    """Return a process's short name."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def command_line(pid: int) -> str:
    """Return a process's arguments."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to one of ours; it may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap() -> set[int]:
    """Take the exit status of every child that ended, so that no zombie stays; returns their pids."""
    ended = set()
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    return ended


def end_all() -> None:
    """Ask the raylet to go, then kill what is left until nothing is."""
    for pid in descendants():
        if named(pid) == "raylet":
            send(pid, signal.SIGTERM)
    end = time.monotonic() + RAYLET_GRACE_S
    while time.monotonic() < end and any(named(pid) == "raylet" for pid in descendants()):
        reap()
        time.sleep(POLL_S)
    while left := descendants():
        # Again and again: a process may have been forked between the look and the signal.
        for pid in left:
            send(pid, signal.SIGKILL)
        reap()
        time.sleep(POLL_S / 10)
    reap()


def end_unused() -> None:
    """End what Ray starts without being asked; `ray start` has no switch for it."""
    for pid in descendants():
        if UNUSED in command_line(pid):
            send(pid, signal.SIGTERM)


def lament(dead: set[str]) -> None:
    """Say who died, and repeat its last words: Ray's own logs go when the stack's folder goes."""
    print(f"warden: {', '.join(sorted(dead))} died, ending Ray", flush=True)
    for name in sorted(dead):
        for log in (Path("session_latest/logs") / f"{name}.{kind}" for kind in ("out", "err")):
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").splitlines()
                # A failed check stands above its stack trace, and says more.
                fatal = [line for line in lines if " C " in line[:60] or "Check failed" in line]
                for line in (fatal or lines)[-LAST_LINES:]:
                    print(f"{log.name}: {line}", flush=True)


def begin(starter: subprocess.Popen[bytes], parent_pid: int) -> int | None:
    """Wait for `ray start`; None when it succeeded, else the exit code to end with."""
    seen: set[str] = set()
    while (code := starter.poll()) is None:
        # Its own status must reach `Popen`, so nothing is reaped here, and the living are looked at.
        alive = {named(pid) for pid in descendants()} & set(VITAL)
        if seen - alive:
            lament(seen - alive)
            return 1
        seen |= alive
        if signal.sigtimedwait(STOP_SIGNALS, START_POLL_S) or os.getppid() != parent_pid:
            return 0
    return code or None


def hold(parent_pid: int, expected: set[str]) -> int:
    """Wait, without using the CPU, until told to stop or until a vital part is dead."""
    vital = {pid: named(pid) for pid in descendants() if named(pid) in VITAL}
    missing = expected - set(vital.values())
    while not missing:
        received = signal.sigtimedwait({signal.SIGCHLD, *STOP_SIGNALS}, HOLD_POLL_S)
        if (received and received.si_signo != signal.SIGCHLD) or os.getppid() != parent_pid:
            return 0
        # Vital parts are our own children since `ray start` returned: that is what a subreaper is for.
        missing = {vital[pid] for pid in reap() if pid in vital}
    lament(missing)
    return 1


def holds(folder: Path) -> bool:
    """Say whether a living warden holds a started Ray in this folder; one that was killed has left its file."""
    with contextlib.suppress(OSError, ValueError):
        return Path(f"/proc/{int((folder / HELD).read_text())}").exists()
    return False


def main(command: list[str]) -> int:
    """Start Ray, hold it, end it."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(PR_SET_NAME, b"stack-warden", 0, 0, 0)
    parent_pid = os.getppid()
    # Blocked, so that none is lost between two waits; children get the mask back as it was.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, *STOP_SIGNALS})
    held = Path(HELD)
    for _attempt in range(START_ATTEMPTS):
        held.unlink(missing_ok=True)
        starter = subprocess.Popen(command, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))  # noqa: PLW1509 - there is no other thread
        code = begin(starter, parent_pid)
        if code is None:
            end_unused()
            held.write_text(str(os.getpid()))  # from here on a death is a death: nothing is started again
            # Only a head has the directory of the cluster.
            code = hold(parent_pid, set(VITAL) if "--head" in command else {"raylet"})
            held.unlink(missing_ok=True)
            break
        if code == 0:
            break  # told to stop
        # On a machine with many more runnable processes than cores the raylet gives up waiting for its
        # agent, or finds a port taken (both seen at load 20 on two cores): once more, from nothing.
        end_all()
    end_all()
    return code or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
