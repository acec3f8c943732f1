"""What must be true before anything starts: the driver refuses with one clear message and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from actors.adapters.postgres import Connection
from actors.adapters.registry import Registry
from rayapp import driver, runtime
from rayapp.config import Settings
from rayapp.errors import IncompatibleSchema
from rayapp.files import reading_schema

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining Ray would mean that something was started."""

    def joined(**_: object) -> None:
        pytest.fail("the driver joined Ray although its start had to be refused")

    monkeypatch.setattr(runtime, "connect", joined)


def test_incompatible_schema_stops_the_start(settings: Settings, owner: Connection) -> None:
    """A registered version that ours would break ends the start with subject and fix; no driver has claimed the pipeline."""
    other = json.loads(reading_schema())
    other["fields"] = [field for field in other["fields"] if field["name"] != "unit"]
    with Registry(settings.registry) as registry:
        registry.register(f"{settings.kafka.topic}-value", json.dumps(other))

    with pytest.raises(IncompatibleSchema, match=rf"subject {settings.kafka.topic}-value.*Nothing was started"):
        driver.run(settings)

    assert [] == owner.execute("SELECT 1 FROM pipelines WHERE pipeline = %s", (settings.pipeline,))
