"""The gateway simulator as a child of this process: built when its sources are newer, run, watched, ended.

It is started in a session of its own, so that Ctrl-C reaches us alone and we
decide in which order things end; the kernel ends it when we are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from rayapp.errors import RayappError
from rayapp.files import project_file
from rayapp.stack import MqttState
from rayapp.stack.processes import die_with_parent

BUILD_DEADLINE_S = 180.0
END_DEADLINE_S = 10.0


class SimulatorFailed(RayappError):
    """The simulator could not be built, did not start, or ended without a summary."""


def build_simulator() -> Path:
    """Run make and return the program.

    Raises:
        SimulatorFailed: no sources, or the compiler refuses them.
    """
    sources = project_file("firmware/sim")
    if not (sources / "Makefile").is_file():
        raise SimulatorFailed(f"{sources}: the simulator's sources are not there; run from a checkout of the project")
    try:
        done = subprocess.run(
            ["make", "-s", "-C", str(sources)],
            capture_output=True,
            text=True,
            timeout=BUILD_DEADLINE_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SimulatorFailed(f"make -C {sources}: {error}; `rayapp stack install` brings make and a compiler") from error
    if done.returncode != 0:
        raise SimulatorFailed(f"make -C {sources} exited {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return sources / "build" / "ruuvi-sim"


class Simulation:
    """One run of the simulator.

    Attributes:
        prefix: where its ledger is: PREFIX.sent.csv, .acked.csv, .summary.json.
    """

    def __init__(self, program: Path, mqtt: MqttState, prefix: Path, options: dict[str, Any]) -> None:
        self.prefix = prefix
        self.rate = float(options["rate"])
        self.seconds = float(options["seconds"])
        prefix.parent.mkdir(parents=True, exist_ok=True)
        broker = {
            "host": mqtt.host,
            "port": mqtt.port,
            "username": mqtt.gateway_username,
            "password_file": mqtt.gateway_password_file,
        }
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in {**broker, **options, "out": prefix}.items()]
        parent_pid = os.getpid()
        # The kernel's signal follows the thread that forks; from a worker thread it would come when that thread ends.
        on_main = threading.current_thread() is threading.main_thread()
        self._process = subprocess.Popen(
            [str(program), *arguments, "--progress"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=(lambda: die_with_parent(signal.SIGKILL, parent_pid)) if on_main else None,  # noqa: PLW1509 - one system call
        )
        self._latest: dict[str, float] = {}
        self._complaints: list[str] = []
        self._output = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_progress, self._read_output)]
        for reader in self._readers:
            reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until it has ended."""
        return self._process.poll() is None

    def progress(self) -> dict[str, float]:
        """Return its last line of progress: t, sent, acked, unacked, slip_p99_ms, reconnects; {} in the first second."""
        return self._latest

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for its end and return its summary.

        Args:
            timeout_s: default: the schedule, plus its own wait for acknowledgements, plus a margin.

        Raises:
            SimulatorFailed: it did not end, or not in order.
        """
        limit_s = timeout_s if timeout_s is not None else self.seconds + 90.0
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SimulatorFailed(f"{self.prefix.name}: not done after {limit_s:g} s, killed; is the broker answering?") from None
        for reader in self._readers:
            reader.join(END_DEADLINE_S)
        lines = self._output.strip().splitlines()
        if code != 0 or not lines:
            raise SimulatorFailed(f"{self.prefix.name}: exited {code}: {' '.join(self._complaints[-5:]) or 'without a word'}")
        summary: dict[str, Any] = json.loads(lines[-1])
        return summary

    def stop(self) -> None:
        """End the schedule now; it still waits for acknowledgements (a second stop ends that, too)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        if self.running:
            self._process.kill()
        self._process.wait(END_DEADLINE_S)

    def _read_progress(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                try:
                    self._latest = json.loads(line)
                except ValueError:
                    self._complaints.append(line.strip())

    def _read_output(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            self._output = stream.read()
