"""What worker processes load ahead, and that nothing is planted unless it is named."""

from __future__ import annotations

import sys

import pytest

from rayapp import worker_setup


def test_everything_named_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module renamed elsewhere must not stay in the list: every spare process would die of it."""
    monkeypatch.setattr(worker_setup, "log_to_stderr", lambda: None)
    monkeypatch.setattr(worker_setup.time, "sleep", lambda _: None)
    monkeypatch.setenv(worker_setup.SPARE_VARIABLE, "1")
    monkeypatch.delenv(worker_setup.PLANTED_BUGS_VARIABLE, raising=False)
    worker_setup.set_up()
    assert set(worker_setup.LOADED) <= set(sys.modules)


def test_no_bug_is_planted_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable the module with the planted bugs is not even loaded."""
    monkeypatch.delenv(worker_setup.PLANTED_BUGS_VARIABLE, raising=False)
    loaded = "rayapp.chaos.planted" in sys.modules
    worker_setup.plant_if_named()
    assert loaded == ("rayapp.chaos.planted" in sys.modules)
