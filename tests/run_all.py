"""`make test`: every check and every test, one after another, with one JSON line at the end.

Each step's output is shown as it comes; the first failure does not hide the
later ones. Exit 0 only when every step passed and tests were really run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STEPS: list[tuple[str, list[str]]] = [
    ("check", ["make", "--no-print-directory", "check"]),
    ("firmware", ["make", "-C", "firmware/sim", "test"]),
    ("unit", [sys.executable, "-m", "pytest", "-q", "tests/unit", "tests/contract"]),
    ("stack", [sys.executable, "-m", "pytest", "-q", "tests/stack"]),
    ("cluster", [sys.executable, "-m", "pytest", "-q", "tests/cluster"]),
]


def main() -> int:
    """Run all steps and say what became of them."""
    results: dict[str, dict[str, object]] = {}
    passed = failed = skipped = 0
    began = time.monotonic()
    for name, command in STEPS:
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        last = ""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line if re.search(r"\d+ (passed|failed|error)", line) else last
        code = process.wait()
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
        passed += counts.get("passed", 0)
        failed += counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
        skipped += counts.get("skipped", 0)
        results[name] = {"ok": code == 0, "seconds": round(time.monotonic() - started, 1), **counts}
    ok = all(step["ok"] for step in results.values()) and passed > 0
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    print(
        json.dumps(
            {
                "ok": ok,
                "passed": passed,
                "failed": failed,
                "skipped": skipped,
                "seconds": round(time.monotonic() - began, 1),
                "steps": results,
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
