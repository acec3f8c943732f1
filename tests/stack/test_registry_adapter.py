"""The registry adapter against a real schema registry."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from builders import SCHEMA

from actors.adapters.registry import Registry
from rayapp.config import RegistrySettings, Settings
from rayapp.errors import DependencyUnavailable, IncompatibleSchema

pytestmark = [
    pytest.mark.stack,
    pytest.mark.timeout(120),
]


@pytest.fixture
def registry(settings: Settings) -> Iterator[Registry]:
    """The stack's registry."""
    with Registry(settings.registry) as made:
        yield made


@pytest.fixture
def subject() -> str:
    """A subject that nobody else uses."""
    return f"test-{secrets.token_hex(4)}-value"


def changed(**fields: Any) -> str:
    """Return our schema with fields replaced or added by name; None removes."""
    schema = json.loads(SCHEMA)
    schema["fields"] = [fields.pop(field["name"], field) for field in schema["fields"]] + list(fields.values())
    schema["fields"] = [field for field in schema["fields"] if field is not None]
    return json.dumps(schema)


def test_same_schema_is_the_same_id(registry: Registry, subject: str, settings: Settings) -> None:
    """Registering twice, also from another process, gives one id, and the id leads to the text."""
    schema_id = registry.register(subject, SCHEMA)

    assert schema_id == registry.register(subject, SCHEMA)
    with Registry(settings.registry) as again:
        assert schema_id == again.register(subject, SCHEMA)
        text = again.schema_text(schema_id)
    assert text
    assert "IoTSensorReading" == json.loads(text)["name"]


def test_schema_that_would_break_readers_is_refused(registry: Registry, subject: str) -> None:
    """A new required field is refused with a message that names the subject and what to do."""
    registry.register(subject, SCHEMA)
    with pytest.raises(IncompatibleSchema) as refused:
        registry.register(subject, changed(extra={"name": "extra", "type": "string"}))
    assert subject in str(refused.value)
    assert "need defaults" in str(refused.value)


def test_optional_field_may_be_added(registry: Registry, subject: str) -> None:
    """A field with a default is a new version, not a refusal."""
    first = registry.register(subject, SCHEMA)

    assert first != registry.register(subject, changed(extra={"name": "extra", "type": ["null", "string"], "default": None}))


def test_documents_schema_can_be_followed_by_ours(registry: Registry, subject: str) -> None:
    """A registry that holds the documented producer's fields takes our schema as the next version."""
    registry.register(subject, changed(measurement_sequence=None, gateway_id=None, received_at=None))

    assert 0 < registry.register(subject, SCHEMA)


def test_unknown_id_is_none(registry: Registry) -> None:
    """An id that nobody registered is an answer, not an error."""
    assert None is registry.schema_text(987_654_321)


def test_invalid_schema_is_refused(registry: Registry, subject: str) -> None:
    """Text that is no Avro is the starter's mistake, not the registry's absence."""
    with pytest.raises(IncompatibleSchema):
        registry.register(subject, '{"type": "record"}')


def test_registry_away_is_a_dependency_away(subject: str) -> None:
    """A registry that does not answer is waited for; it is no reason for an actor to die."""
    with Registry(RegistrySettings(url="http://127.0.0.1:9")) as away:
        with pytest.raises(DependencyUnavailable):
            away.schema_text(1)
        with pytest.raises(DependencyUnavailable):
            away.register(subject, SCHEMA)
