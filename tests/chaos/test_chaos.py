"""Two minutes of everything that breaks: nothing lost, nothing twice, and the run was what it claims.

The same as `rayapp chaos --quick --seed 20260921`; the last line says what it
did and cost, and is printed also when all is well (pytest -s or -rP shows it).
How quick recovery was is reported and not judged here: the suite runs on
machines that are busy with other things.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from rayapp.chaos.run import ChaosOptions, run_chaos

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.stack, pytest.mark.timeout(420)]

SEED = 20_260_921
RATE = 500.0


def test_two_minutes_of_faults_lose_nothing_double_nothing_and_invent_nothing(tmp_path: Path) -> None:
    """Every role, the driver and every server is killed under load, links fail and the disk fills; the gateways' ledger is the judge."""
    figures, code = run_chaos(ChaosOptions(folder=tmp_path, seed=SEED, rate=RATE, quick=True), Console(width=160))

    print(json.dumps(figures))
    assert figures["problems"] == []
    assert figures["invalid"] == []
    assert figures["ok"]
    assert code == 0
    assert (figures["lost"], figures["duplicates"], figures["foreign"]) == (0, 0, 0)
    assert figures["absorbed"] > 0
    assert figures["replayed"] > 0
