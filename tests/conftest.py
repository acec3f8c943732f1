"""What all tests share: how Hypothesis runs, and no variable of the developer's shell that would change settings.

Builders of messages, records and tables lie in builders.py beside this file;
fixtures with real servers in stack/conftest.py.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", deadline=None, max_examples=2_000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _no_settings_from_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take RUUVI_… out of the environment, except what says where the tests' servers are."""
    for name in list(os.environ):
        if name.startswith("RUUVI_") and not name.startswith(("RUUVI_TEST_", "RUUVI_STACK_")):
            monkeypatch.delenv(name)
