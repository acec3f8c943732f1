"""`make test`: every check and every test, with one JSON line at the end.

Tests on real servers mostly wait for them (outages, time-outs, restarts), so
three lanes run side by side: two halves of tests/stack, and everything else but
the chaos run, each with servers of its own. The chaos run has the machine to itself. Each line of output
is shown as it comes; the first failure does not hide the later ones. Exit 0
only when every step passed and tests were really run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = re.compile(r"\d+ (passed|failed|errors?)\b.* in [\d.]+s")
"""pytest's last line; clients of servers that were killed print `… 127.0.0.1:13573 failed: …`."""
PYTEST = [sys.executable, "-m", "pytest", "-q"]
SLOW_FIRST = (
    "test_stack_lifecycle", "test_bench_session", "test_database_faults", "test_kafka_faults", "test_ingest_outage", "test_detector_state",
    "test_ingest_broker_restart", "test_dlq_commands", "test_simulator_broker", "test_replay_command", "test_ingest_retirement",
    "test_ingest_flood",
)  # fmt: skip
"""The longest files, dealt out first, so that both halves take about as long."""


@dataclass
class Step:
    """One command and what became of it."""

    name: str
    command: list[str]
    seconds: float = 0.0
    ok: bool = False
    counts: dict[str, int] = field(default_factory=dict)

    def run(self, prefix: str = "") -> None:
        """Run it to its end, showing its lines."""
        started = time.monotonic()
        process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{prefix}{line}", end="", flush=True)
            last = line if SUMMARY.search(line) else last
        self.ok = process.wait() == 0
        self.seconds = round(time.monotonic() - started, 1)
        self.counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", last)}


def halves(folder: Path) -> list[list[str]]:
    """Deal the test files of a folder out to two processes."""
    rank = {name: at for at, name in enumerate(SLOW_FIRST)}
    files = sorted(folder.glob("test_*.py"), key=lambda file: (rank.get(file.stem, len(rank)), file.stem))
    return [[str(file.relative_to(ROOT)) for file in files[at::2]] for at in (0, 1)]


def plan() -> list[list[list[Step]]]:
    """Return groups of lanes of steps: groups run one after another, the lanes of a group side by side."""
    first, second = halves(ROOT / "tests" / "stack")
    others = [
        Step("check", ["make", "--no-print-directory", "check"]),
        Step("firmware", ["make", "-C", "firmware/sim", "test"]),
        Step("unit", [*PYTEST, "tests/unit", "tests/contract"]),
        Step("cluster", [*PYTEST, "tests/cluster"]),
        Step("oracle", [*PYTEST, "-rP", "tests/chaos/test_oracle.py"]),
    ]
    lanes = [others, [Step("stack 1", [*PYTEST, *first])], [Step("stack 2", [*PYTEST, *second])]]
    return [lanes, [[Step("chaos", [*PYTEST, "-rP", "tests/chaos/test_chaos.py"])]]]


def run_lane(steps: list[Step], *, alone: bool) -> None:
    """Run steps one after another."""
    for step in steps:
        print(f"\n== {step.name}: {' '.join(step.command)}", flush=True)
        step.run("" if alone else f"{step.name} | ")


def main() -> int:
    """Run all steps and say what became of them."""
    began = time.monotonic()
    steps: list[Step] = []
    for group in plan():
        threads = [threading.Thread(target=run_lane, args=(lane,), kwargs={"alone": len(group) == 1}) for lane in group]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        steps += [step for lane in group for step in lane]
    passed = sum(step.counts.get("passed", 0) for step in steps)
    failed = sum(step.counts.get(word, 0) for step in steps for word in ("failed", "error", "errors"))
    skipped = sum(step.counts.get("skipped", 0) for step in steps)
    ok = all(step.ok for step in steps) and passed > 0
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    print(
        json.dumps(
            {
                "ok": ok,
                "passed": passed,
                "failed": failed,
                "skipped": skipped,
                "seconds": round(time.monotonic() - began, 1),
                "steps": {step.name: {"ok": step.ok, "seconds": step.seconds, **step.counts} for step in steps},
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
