"""A small disk of memory for one server, so that a test can fill it.

Mounted in a mount namespace of the keeper's own: nobody else sees it, and it
is gone with the last of the stack's processes, however they end. From outside
it is reached through /proc/PID/root of a process inside.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from rayapp.stack.errors import StackError
from rayapp.stack.layout import ServiceUser

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
MNT_DETACH = 2


def available() -> bool:
    """Say whether this process may mount."""
    return os.geteuid() == 0


def keep_mounts_to_ourselves() -> None:
    """Give this process and its future children a mount namespace of their own.

    Raises:
        StackError: not root, or the kernel refuses.
    """
    if not available():
        raise StackError("postgres_disk_mb: only root may mount; run as root or leave the option out")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise StackError(f"postgres_disk_mb: no mount namespace ({os.strerror(ctypes.get_errno())}); leave the option out")


def mount_memory_disk(folder: Path, size_mb: int, user: ServiceUser | None) -> None:
    """Mount a memory disk on a folder, owned by the service's user.

    Raises:
        StackError: the kernel refuses.
    """
    owner = f",uid={user.uid},gid={user.gid}" if user is not None else ""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size_mb}m,mode=0700{owner}".encode()
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, options) != 0:
        raise StackError(f"postgres_disk_mb={size_mb}: cannot mount {folder} ({os.strerror(ctypes.get_errno())})")


def unmount_memory_disk(folder: Path) -> None:
    """Take the disk away from a folder that is to be removed; what still uses it keeps it until it ends."""
    ctypes.CDLL(None, use_errno=True).umount2(str(folder).encode(), MNT_DETACH)
