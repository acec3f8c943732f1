"""The only module that speaks to the schema registry (Confluent API; Apicurio serves it too).

The driver registers our schema before anything starts; actors look up ids and
foreign writer schemas. A refusal is IncompatibleSchema with the registry's own
words, because that is what the person at the start needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rayapp.config import RegistrySettings
from rayapp.errors import DependencyUnavailable, IncompatibleSchema, RayappError

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient


class Registry:
    """Register and look up Avro schemas."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._url = settings.url
        self._opened: SchemaRegistryClient | None = None

    @property
    def _client(self) -> SchemaRegistryClient:
        """The client, made when it is first needed: its import costs half a second of CPU, and a consumer may never need it."""
        if self._opened is None:
            from confluent_kafka.schema_registry import SchemaRegistryClient

            self._opened = SchemaRegistryClient({"url": self._url})
        return self._opened

    def close(self) -> None:
        """Close the HTTP connections."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def register(self, subject: str, schema: str) -> int:
        """Register `schema` under `subject` with BACKWARD compatibility and return its id; the same schema again is the same id.

        Raises:
            IncompatibleSchema: the registry holds versions that this schema would break, or calls it invalid.
            DependencyUnavailable: the registry does not answer.
        """
        from confluent_kafka.schema_registry import Schema
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        with self._answering():
            # Set per subject: a registry's global default may be NONE (Apicurio's is).
            self._client.set_compatibility(subject_name=subject, level="BACKWARD")
            try:
                return int(self._client.register_schema(subject, Schema(schema, "AVRO")))
            except SchemaRegistryError as error:
                if error.http_status_code not in {409, 422}:
                    raise
                raise IncompatibleSchema(
                    f"schema registry {self._url} refuses our schema for subject {subject}: {error.error_message}. "
                    f"Nothing was started. Compare schemas/{subject}.avsc with the registered versions; new fields need defaults."
                ) from error

    def schema_text(self, schema_id: int) -> str | None:
        """Return a schema's text, or None when the registry knows no such id.

        Raises:
            DependencyUnavailable: the registry does not answer.
        """
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        with self._answering():
            try:
                return str(self._client.get_schema(schema_id).schema_str)
            except SchemaRegistryError as error:
                if error.http_status_code != 404:
                    raise
                return None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what the client raises for a registry that is away into DependencyUnavailable.

        Broad, because the client lets its HTTP library's errors through, and
        which library that is has changed with its versions.
        """
        try:
            yield
        except RayappError:
            raise
        except Exception as error:
            raise DependencyUnavailable(f"schema registry {self._url} does not answer: {error}; will try again") from error
