"""The migration files: names, variants and checksums, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayapp.errors import ConfigurationError
from rayapp.files import project_file
from rayapp.migrate import Migration, read_migrations

FILES = project_file("sql/migrations")


def columns(name: str) -> list[str]:
    """Return the column and constraint lines of sensor_readings in a file, without the spaces between words."""
    found = re.search(r"CREATE TABLE sensor_readings \((.*?)\n\)", (FILES / name).read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return [" ".join(line.split("--")[0].split()) for line in found[1].strip().splitlines()]


def test_plain_and_timescaledb_make_the_same_columns() -> None:
    """The two variants of the table differ in nothing but how it is divided into days."""
    assert columns("0002_readings.plain.sql") == columns("0002_readings.timescaledb.sql")
    assert len(columns("0002_readings.plain.sql")) > 25


def test_every_version_serves_both_modes() -> None:
    """A numbered file is either for both kinds of server or there twice."""
    modes: dict[str, set[str | None]] = {}
    for migration in read_migrations(FILES):
        modes.setdefault(migration.version, set()).add(migration.mode)

    assert {frozenset({None}), frozenset({"plain", "timescaledb"})} >= {frozenset(found) for found in modes.values()}
    assert sorted(modes) == list(modes)


@pytest.mark.parametrize("name", ["0001_x.oracle.sql", "0001_x.plain.more.sql"])
def test_wrong_names_are_refused(tmp_path: Path, name: str) -> None:
    """A file whose variant nobody would run is an error at once."""
    (tmp_path / name).write_text("SELECT 1", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="name it"):
        read_migrations(tmp_path)


def test_no_files_is_an_incomplete_installation(tmp_path: Path) -> None:
    """An empty folder is not a database without changes."""
    with pytest.raises(ConfigurationError, match="incomplete"):
        read_migrations(tmp_path)


def test_checksum_follows_the_text() -> None:
    """One character more is another file."""
    assert Migration("1", None, "SELECT 1").checksum != Migration("1", None, "SELECT 1 ").checksum
