"""Where one stack keeps its files, and why there are two folders.

`root` is what the user named (`--dir`, default `.stack`), mode 0700: state file, passwords, logs, and
the data of every server that runs as the user. `run` is a short folder under /var/tmp: the control
socket and Ray's sockets live there because a Unix socket path may have 107 bytes only, and, when root
starts the stack, the data of the two servers that refuse to be root (postgres, mosquitto), because
their users could not walk through a 0700 checkout. Not /tmp: newer Debian keeps that in memory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHORT_PARENT = Path("/var/tmp")  # noqa: S108 - mkdtemp makes a private folder in it
SHORT_PREFIX = "ruuvi-stack-"


@dataclass(frozen=True)
class ServiceUser:
    """The account a server runs as; None everywhere means the caller's own."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Layout:
    """All paths of one stack."""

    root: Path
    run: Path

    @property
    def state_file(self) -> Path:
        """The file that says where everything is."""
        return self.root / "stack.json"

    @property
    def control_socket(self) -> Path:
        """Where the keeper listens."""
        return self.run / "control.sock"

    @property
    def data(self) -> Path:
        """Data of the servers that run as the caller."""
        return self.root / "data"

    def log(self, name: str) -> Path:
        """Return the log of one process."""
        return self.root / "logs" / f"{name}.log"

    def password_file(self, account: str) -> Path:
        """Return the file that holds one account's password."""
        return self.root / "secrets" / f"{account}.password"

    def private(self, name: str, user: ServiceUser | None = None) -> Path:
        """Return a folder that only the server's user can read, creating it when missing."""
        folder = (self.run if user else self.data) / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if user:
            os.chown(folder, user.uid, user.gid)
        return folder


def make_layout(root: Path, run: Path | None = None) -> Layout:
    """Create the folders, or take an earlier run's short folder again when its data was kept."""
    root = root.absolute()
    for folder in (root, root / "logs", root / "secrets", root / "data"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    if run is None or not run.is_dir():
        run = Path(tempfile.mkdtemp(prefix=SHORT_PREFIX, dir=SHORT_PARENT))
    if os.geteuid() == 0:
        # Traversable, not listable: service users reach their own 0700 folder inside.
        run.chmod(0o711)
    return Layout(root, run)


def remove_layout(layout: Layout) -> None:
    """Delete what the stack made: short folder, data, secrets, logs and state file, nothing else."""
    shutil.rmtree(layout.run, ignore_errors=True)
    for name in ("data", "secrets", "logs"):
        shutil.rmtree(layout.root / name, ignore_errors=True)
    layout.state_file.unlink(missing_ok=True)


def service_user(name: str) -> ServiceUser | None:
    """Return the account to drop to when we are root and it exists, else None."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return ServiceUser(entry.pw_name, entry.pw_uid, entry.pw_gid)


def write_private(path: Path, text: str, user: ServiceUser | None = None) -> Path:
    """Write a file that nobody else can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        if user:
            os.fchown(file.fileno(), user.uid, user.gid)
        file.write(text)
    partial.replace(path)
    return path
