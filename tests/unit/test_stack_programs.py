"""Missing programs: found before anything starts, installed as root, named in one line otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from rayapp.stack import install, programs
from rayapp.stack.cli import stack
from rayapp.stack.errors import ProgramMissing
from rayapp.stack.options import StackOptions


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing installed; returns the only folder on its PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", (folder,))
    monkeypatch.setattr(programs, "POSTGRES_FOLDER", tmp_path / "postgresql")
    monkeypatch.setattr(programs, "JVM_FOLDER", tmp_path / "jvm")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    programs.find_java.cache_clear()
    yield folder
    programs.find_java.cache_clear()


def executable(path: Path, text: str) -> None:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def test_up_names_everything_that_is_missing(bare_machine: Path, tmp_path: Path) -> None:
    """`up` exits 4 within a second, with one line to run and nothing started."""
    result = CliRunner().invoke(stack, ["up", "--dir", str(tmp_path / "s")])
    assert result.exit_code == 4
    assert "mosquitto, postgres, java, mvn" in result.output
    assert "apt-get install -y" in result.output
    assert not (tmp_path / "s").exists()


def test_what_the_user_runs_need_not_be_installed(bare_machine: Path) -> None:
    """A component named with --use, or not asked for, needs no program."""
    options = StackOptions(components=("mqtt",), use={"mqtt": "h:1", "postgres": "h:2"})
    assert programs.missing_programs(options) == []


def test_a_finished_download_needs_no_maven(bare_machine: Path, tmp_path: Path) -> None:
    """Maven is needed only for what is not in the cache."""
    (tmp_path / "cache/ruuvi-ray/kafka-4.3.1").mkdir(parents=True)
    assert programs.missing_programs(StackOptions(components=("kafka",))) == ["java"]
    assert programs.missing_programs(StackOptions(components=("registry",))) == ["java", "mvn"]


def test_without_root_one_line_says_what_to_run(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`install` changes nothing, prints exactly one line and exits 4."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(stack, ["install"])
    assert result.exit_code == 4
    (line,) = result.output.strip().splitlines()
    assert "sudo apt-get install -y --no-install-recommends" in line


def test_root_installs_without_starting_services(bare_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get runs without questions, under a policy that forbids services, and the policy goes again."""
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(install, "POLICY_FILE", policy)
    log = tmp_path / "apt.log"
    executable(bare_machine / "apt-get", f'echo "$DEBIAN_FRONTEND $([ -x {policy} ] && echo off) $@" >> {log}')
    missing = iter([["mosquitto", "postgres"], []])
    monkeypatch.setattr(install, "all_missing", lambda: next(missing))
    assert install.install_missing(lambda text: None) == ["mosquitto", "postgres"]
    assert log.read_text().splitlines() == [
        "noninteractive off -q update",
        "noninteractive off -q install -y --no-install-recommends mosquitto postgresql",
    ]
    assert not policy.exists()


def test_an_administrators_policy_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that was there is neither replaced nor removed."""
    policy = tmp_path / "policy-rc.d"
    executable(policy, "exit 0")
    monkeypatch.setattr(install, "POLICY_FILE", policy)
    with install._services_stay_off():
        pass
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_java_must_be_new_enough(bare_machine: Path) -> None:
    """An old Java on PATH does not count."""
    executable(bare_machine / "java", "echo 'openjdk version \"11.0.2\"' >&2")
    assert programs.find_java() is None
    with pytest.raises(ProgramMissing, match="java 17"):
        programs.java()


def test_the_newest_postgres_wins(bare_machine: Path, tmp_path: Path) -> None:
    """Versions are compared as numbers, and folders without the programs are passed over."""
    for version, names in (("9", ("postgres", "initdb", "psql")), ("15", ("postgres", "initdb", "psql")), ("16", ("psql",))):
        folder = tmp_path / "postgresql" / version / "bin"
        folder.mkdir(parents=True)
        for name in names:
            executable(folder / name, "exit 0")
    assert programs.find_postgres() == tmp_path / "postgresql/15/bin"
