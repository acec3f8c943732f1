"""The judge is able to fail: each of five planted bugs is found, and without its bug the same script passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from rayapp.chaos.planted import BUGS
from rayapp.chaos.prove import run_prove

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.stack, pytest.mark.timeout(540)]


def test_every_planted_bug_is_found_and_nothing_is_complained_of_without_one(tmp_path: Path) -> None:
    """A harness that misses a bug proves nothing by finding none."""
    figures, code = run_prove(tmp_path, Console(width=160))

    print(json.dumps(figures))
    assert figures["missed"] == []
    assert figures["false_alarms"] == []
    assert (figures["bugs"], figures["found"]) == (len(BUGS), len(BUGS))
    assert code == 0
