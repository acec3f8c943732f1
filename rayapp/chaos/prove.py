"""Is the judge able to fail? Each script runs without its bug and must pass, then with it and must be found.

One set of servers and one pipeline carry all of it: the bugs are in its worker
processes from the start and asleep, a file wakes each. Every script has traffic
of its own tags, and only those are judged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from rayapp.bench.measure import bring_up
from rayapp.bench.report import print_table, say
from rayapp.bench.session import PipelineSession
from rayapp.chaos.planted import BUGS, plant
from rayapp.chaos.scripts import SCRIPTS, NotProven, Script
from rayapp.errors import DependencyUnavailable
from rayapp.stack import StackOptions
from rayapp.worker_setup import PLANTED_BUGS_VARIABLE

RATE = 500.0
TRAFFIC_S = 120.0
"""At most; a script ends its traffic itself."""
LEAD_S = 2.0
AFTER_S = 2.0
QUIET_S = 45.0
STILL_S = 1.5


@dataclass(frozen=True)
class Finding:
    """What the judge said of one script.

    Attributes:
        problems: [] when it found nothing wrong.
    """

    bug: str
    planted: bool
    problems: list[str]
    seconds: float
    expect: str

    @property
    def right(self) -> bool:
        """True when the judge found the bug that was there, or nothing where none was."""
        return any(self.expect in problem for problem in self.problems) if self.planted else not self.problems


def run_prove(folder: Path, console: Console, bugs: Sequence[str] = BUGS) -> tuple[dict[str, Any], int]:
    """Run the scripts of some bugs, default all; returns the last line's object and the exit code (0 = every bug found, no false alarm)."""
    flags = folder.absolute() / "planted"
    flags.mkdir(parents=True, exist_ok=True)
    for left in flags.iterdir():
        left.unlink()
    plant(str(flags))  # a script may be the zombie itself
    findings: list[Finding] = []
    chosen = [script for script in SCRIPTS if script.bug in bugs]
    session = PipelineSession(
        folder,
        alone=False,
        options=StackOptions(),
        overrides={"fleet": {"detect": 1, "write": 1}},
        job_environment={PLANTED_BUGS_VARIABLE: str(flags)},
    )
    with session:
        bring_up(session, console)
        for planted in (False, True):
            for script in chosen:
                finding = carry_out(session, script, flags, planted=planted)
                findings.append(finding)
                say(console, _line(finding))
        session.discard()
    for left in flags.iterdir():
        left.unlink()
    flags.rmdir()
    rows = [(f.bug, "planted" if f.planted else "clean", "yes" if f.problems else "no", "right" if f.right else "WRONG") for f in findings]
    print_table(console, "the judge against planted bugs", ("bug", "run", "judge complains", ""), rows)
    wrong = [finding for finding in findings if not finding.right]
    figures = {
        "bugs": len(chosen),
        "found": sum(finding.right for finding in findings if finding.planted),
        "missed": [finding.bug for finding in wrong if finding.planted],
        "false_alarms": [finding.bug for finding in wrong if not finding.planted],
        "problems": {finding.bug: finding.problems[:2] for finding in findings if finding.planted},
        "seconds": round(sum(finding.seconds for finding in findings), 1),
        "ok": not wrong,
    }
    return figures, 1 if wrong else 0


def carry_out(session: PipelineSession, script: Script, flags: Path, *, planted: bool) -> Finding:
    """Run one script, with its bug or without, and have it judged.

    Raises:
        NotProven: the pipeline did not come to rest, so the judge would speak too early.
    """
    began_s = time.monotonic()
    if planted:
        script.prepare(session)
        (flags / script.bug).touch()
    try:
        run = session.simulate(rate=RATE, seconds=TRAFFIC_S)
        time.sleep(LEAD_S)
        made = script.run(session, run)
        time.sleep(AFTER_S)
        run.stop()
        run.wait(60.0)
        _settle(session)
    finally:
        (flags / script.bug).unlink(missing_ok=True)
    problems = [*session.judge([run]).problems, *script.after(session, made)]
    return Finding(script.bug, planted, problems, round(time.monotonic() - began_s, 1), script.expect)


def _settle(session: PipelineSession) -> None:
    """Wait until the ledger stands at Kafka's end and nothing moves; what a bug lost never comes."""
    deadline = time.monotonic() + QUIET_S
    last: tuple[int, int, int] | None = None
    still_since, seen = time.monotonic(), "nothing seen"
    while True:
        now = time.monotonic()
        try:
            view = session.look()
            position = (view.records, sum(view.ends.values()), view.dead_letters)
            not_running = {name: slot["last_end"] for name, slot in view.slots.items() if slot["state"] != "running"}
            seen = f"{view.state}, lag {view.lag}, not running: {not_running or 'none'}"
            if position != last or not view.caught_up or view.state != "running":
                last, still_since = position, now
            if now - still_since >= STILL_S:
                return
        except DependencyUnavailable as error:
            still_since, seen = now, str(error)
        if now > deadline:
            raise NotProven(f"not quiet within {QUIET_S:g} s: {seen}")
        time.sleep(0.2)


def _line(finding: Finding) -> str:
    what = "with the bug" if finding.planted else "without it"
    return f"{finding.seconds:6.1f} s  {finding.bug} {what}: " + (finding.problems[0][:120] if finding.problems else "nothing wrong")
