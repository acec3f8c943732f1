"""The simulator's command line: what it refuses, how it says so, and what it leaves behind.

No broker is needed here; `tests/stack/test_simulator_broker.py` runs it against a real one.
"""

import csv
import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

SIM = Path(__file__).resolve().parents[2] / "firmware" / "sim"
RUN = ["--rate", "10", "--seconds", "1"]

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(
        shutil.which("make") is None or shutil.which("cc") is None,
        reason="needs make and a C compiler",
    ),
]


@pytest.fixture(scope="module")
def binary() -> str:
    """The simulator, built if its sources are newer."""
    subprocess.run(["make", "-s", "-C", str(SIM)], check=True, timeout=120)
    return str(SIM / "build" / "ruuvi-sim")


def run(binary: str, *arguments: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binary, *arguments], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture
def closed_port() -> int:
    """A loopback port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--port", "0", "whole number from 1 to 65535"),
        ("--port", "65536", "whole number from 1 to 65535"),
        ("--port", "-1", "whole number"),
        ("--tags", "many", "whole number"),
        ("--tags", "", "whole number"),
        ("--rate", "0", "number from 0.001"),
        ("--rate", "nan", "number from"),
        ("--rate", "10x", "number from"),
        ("--seconds", "-3", "number from"),
        ("--malformed-share", "1.5", "number from 0 to 1"),
        ("--fault-share", "-0.1", "number from 0 to 1"),
        ("--seed", "4294967296", "whole number"),
        ("--window", "0", "whole number from 1 to"),
        ("--replay-seconds", "inf", "number from"),
        ("--drain-seconds", "soon", "number from"),
        ("--gateways", "0", "whole number from 1 to"),
        ("--gateways", "201", "must not exceed --tags"),
        ("--start-at", "5", "epoch seconds"),
        ("--topic", "a/#", "wildcards"),
        ("--host", "", "characters"),
        ("--username", "gateway", "needs --password-file"),
        ("--password-file", "no-such-file", "needs --username"),
    ],
)
def test_bad_value_names_option_value_and_rule(binary: str, tmp_path: Path, option: str, value: str, rule: str) -> None:
    """A bad value ends with status 2 and one line naming the option, the value and the rule."""
    done = run(binary, *RUN, "--out", str(tmp_path / "run"), option, value)
    assert done.returncode == 2
    assert f'{option} "{value}"' in done.stderr
    assert rule in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_shares_together_must_not_exceed_one(binary: str) -> None:
    """A message cannot be both malformed and faulty, so the shares must fit into one."""
    done = run(binary, *RUN, "--out", "x", "--fault-share", "0.6", "--malformed-share", "0.5")
    assert done.returncode == 2
    assert '--fault-share "0.6"' in done.stderr


@pytest.mark.parametrize("arguments", [["--bogus"], ["-q"], ["stray"], ["--rate"]])
def test_unknown_option_is_named(binary: str, arguments: list[str]) -> None:
    """An unknown option, a stray word or a missing value is named and ends with status 2."""
    done = run(binary, *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr


@pytest.mark.parametrize("missing", ["--rate", "--seconds", "--out"])
def test_required_options(binary: str, missing: str) -> None:
    """Without a rate, a length or a place for the ledger there is no run."""
    given = {"--rate": "1", "--seconds": "1", "--out": "x"}
    del given[missing]
    done = run(binary, *(word for pair in given.items() for word in pair))
    assert done.returncode == 2
    assert missing in done.stderr


def test_help_lists_every_option_with_examples(binary: str) -> None:
    """The help names every option and shows examples, on standard output, with status 0."""
    done = run(binary, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    for option in [
        "host",
        "port",
        "topic",
        "tags",
        "rate",
        "seconds",
        "malformed-share",
        "fault-share",
        "seed",
        "out",
        "replay-seconds",
        "window",
        "drain-seconds",
        "gateways",
        "start-at",
        "username",
        "password-file",
        "progress",
        "help",
    ]:
        assert f"--{option} " in done.stdout


@pytest.mark.parametrize("content", [None, "", "\n", "\nsecret\n"])
def test_useless_password_file_is_refused(binary: str, tmp_path: Path, content: str | None) -> None:
    """A missing password is a mistake that must not become an empty password."""
    path = tmp_path / "pw"
    if content is not None:
        path.write_text(content)
    done = run(binary, *RUN, "--out", "x", "--username", "u", "--password-file", str(path))
    assert done.returncode == 2
    assert f'--password-file "{path}"' in done.stderr


def test_unwritable_ledger_is_status_one(binary: str, tmp_path: Path) -> None:
    """A run whose ledger cannot be written must not look like a run."""
    done = run(binary, *RUN, "--out", str(tmp_path / "missing" / "run"))
    assert done.returncode == 1
    assert "cannot write" in done.stderr


def test_full_disk_is_status_one(binary: str, tmp_path: Path, closed_port: int) -> None:
    """A ledger that fails in the middle of the run ends it with status 1."""
    (tmp_path / "run.sent.csv").symlink_to("/dev/full")
    done = run(
        binary, *RUN, "--port", str(closed_port), "--out", str(tmp_path / "run"),
        "--drain-seconds", "0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write" in done.stderr


def test_never_connected_lists_all_as_unsent(binary: str, tmp_path: Path, closed_port: int) -> None:
    """Without a broker the status is 1, and every message that was due is in the ledger."""
    done = run(
        binary, "--rate", "100", "--seconds", "0.2", "--drain-seconds", "0.2", "--seed", "5",
        "--port", str(closed_port), "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "never connected" in done.stderr
    summary = json.loads((tmp_path / "run.summary.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == summary
    assert (summary["messages_sent"], summary["unsent"], summary["acked"]) == (0, 20, 0)
    with (tmp_path / "run.sent.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seq"] for row in rows] == [str(i) for i in range(20)]
    assert (tmp_path / "run.acked.csv").read_text() == "seq,acked_us,sends\n"


def test_signal_ends_the_run_in_order(binary: str, tmp_path: Path, closed_port: int) -> None:
    """SIGTERM ends the schedule, and a second one the wait, with the summary written."""
    process = subprocess.Popen(
        [binary, "--rate", "100", "--seconds", "60", "--port", str(closed_port), "--progress",
         "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        first = json.loads(process.stderr.readline())
        assert set(first) == {"t", "sent", "acked", "unacked", "slip_p99_ms", "reconnects"}
        process.send_signal(signal.SIGTERM)
        process.stderr.readline()  # still reporting: the wait for acknowledgements goes on
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    summary = json.loads(out.splitlines()[-1])
    assert 0 < summary["messages_due"] < 6000
