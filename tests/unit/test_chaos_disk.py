"""A disk is full when nothing is left of it, and has its room back afterwards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayapp.chaos import disk


class SmallDisk:
    """Stands for the kernel: a disk of so many bytes, of which a server frees some once."""

    def __init__(self, size: int, used: int, given_back: int = 0) -> None:
        self.size, self.used, self.ballast, self.given_back = size, used, 0, given_back

    def fallocate(self, _descriptor: int, offset: int, length: int) -> None:
        if offset + length + self.used > self.size:
            raise OSError(errno.ENOSPC, "no space")
        self.ballast = offset + length

    def statvfs(self, _descriptor: int) -> SimpleNamespace:
        self.used, self.given_back = self.used - self.given_back, 0
        free = self.size - self.used - self.ballast
        return SimpleNamespace(f_blocks=self.size, f_frsize=1, f_bavail=free)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    small = SmallDisk(700 * 2**20 + 5_000, 123 * 2**20)
    monkeypatch.setattr(os, "posix_fallocate", small.fallocate)
    monkeypatch.setattr(os, "fstatvfs", small.statvfs)
    return small


def test_a_disk_is_filled_to_the_last_page_and_freed(kernel: SmallDisk, tmp_path: Path) -> None:
    """Large pieces first, then small ones; the file is gone afterwards."""
    with disk.filled(tmp_path / "ballast") as found:
        assert found.is_full
        assert found.free_bytes < 4096
        assert found.used_bytes == 123 * 2**20
        assert (tmp_path / "ballast").exists()
    assert not (tmp_path / "ballast").exists()


def test_space_that_the_server_gives_back_meanwhile_is_taken_too(kernel: SmallDisk, tmp_path: Path) -> None:
    """A segment of its log freed between filling and looking would have left the disk with room."""
    kernel.given_back = 16 * 2**20
    with disk.filled(tmp_path / "ballast") as found:
        assert found.is_full


def test_a_disk_that_cannot_be_filled_is_not_called_full(kernel: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pieces are refused while there is room, the caller is told."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space")))
    with disk.filled(tmp_path / "ballast") as found:
        assert not found.is_full


def test_an_error_that_is_not_the_end_of_space_is_raised(kernel: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the file is removed all the same."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), disk.filled(tmp_path / "ballast"):
        pass
    assert not (tmp_path / "ballast").exists()
