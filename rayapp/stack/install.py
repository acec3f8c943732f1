"""Installing what comes from the distribution: Mosquitto, PostgreSQL, Java, Maven, make and a C compiler.

`rayapp stack install` calls `install_missing`. As root on a Debian-like machine it runs apt-get without
questions, and with a `policy-rc.d` that forbids starting services: the packages would otherwise bring
up a broker and a database of their own on the well-known ports. Without root, or without apt-get, it
changes nothing and raises ProgramMissing with the one line to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayapp.stack import programs
from rayapp.stack.errors import ProgramMissing, StackError

APT_DEADLINE_S = 900.0
POLICY_FILE = Path("/usr/sbin/policy-rc.d")
NO_SERVICES = "#!/bin/sh\n# Written by `rayapp stack install`: start nothing now.\nexit 101\n"


def all_missing() -> list[str]:
    """Return every program of `programs.PACKAGES` that is not installed."""
    checks: dict[str, Callable[[], object]] = {
        "postgres": programs.find_postgres,
        "java": programs.find_java,
    }
    return [name for name in programs.PACKAGES if not checks.get(name, lambda name=name: programs.find_program(name))()]


def install_missing(say: Callable[[str], None]) -> list[str]:
    """Install what is missing and return its names.

    Raises:
        ProgramMissing: we may not install here; the message is the line to run.
        StackError: apt-get failed, or a program is still missing afterwards.
    """
    missing = all_missing()
    if not missing:
        return []
    line = programs.install_line(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ProgramMissing(f"missing: {', '.join(missing)}; run: {line}")
    packages = sorted({programs.PACKAGES[name] for name in missing})
    say(f"installing {' '.join(packages)}")
    with _services_stay_off():
        _apt("update")
        _apt("install", "-y", "--no-install-recommends", *packages)
    programs.find_java.cache_clear()
    still = all_missing()
    if still:
        raise StackError(f"missing after apt-get: {', '.join(still)}; run: {programs.install_line(still)}")
    return missing


def _apt(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "UCF_FORCE_CONFFOLD": "1"}
    answer = subprocess.run(
        ["apt-get", "-q", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=APT_DEADLINE_S,
        check=False,
    )
    if answer.returncode != 0:
        tail = "\n".join(f"  | {one}" for one in (answer.stdout + answer.stderr).splitlines()[-20:])
        raise StackError(f"apt-get {arguments[0]} exited {answer.returncode}\n{tail}")


@contextmanager
def _services_stay_off() -> Iterator[None]:
    """Forbid service starts while packages are unpacked; an administrator's own policy stays."""
    if POLICY_FILE.exists():
        yield
        return
    POLICY_FILE.write_text(NO_SERVICES, encoding="utf-8")
    POLICY_FILE.chmod(0o755)
    try:
        yield
    finally:
        POLICY_FILE.unlink(missing_ok=True)
