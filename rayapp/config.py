"""All settings, validated once, before anything starts.

Later sources win: defaults, then the YAML file, then the environment
(RUUVI_DATABASE__HOST and so on), then flags. Actors receive the validated
object, never the sources. Secrets are never settings: a setting names the file
that holds the secret, so the object may travel through Ray and into logs.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from rayapp import capacity
from rayapp.errors import ConfigurationError


class Section(BaseModel):
    """Common rules: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MqttSettings(Section):
    """The MQTT broker and what we ask of it; windows and limits that are not set follow from the load (rayapp.capacity)."""

    host: str = "127.0.0.1"
    port: int = Field(1883, ge=1, le=65535)
    username: str = "pipeline"
    password_file: Path | None = None
    topics: tuple[str, ...] = ("ruuvitag/data",)
    keepalive_s: int = Field(30, ge=5, le=600)
    session_expiry_s: int = Field(7 * 86_400, ge=60, description="longer than the longest outage: the broker queues for this long")
    messages_per_s: float = Field(capacity.Load().messages_per_s, gt=0, description="of all gateways; one slot must be able to carry it")
    longest_outage_s: float = Field(capacity.Load().outage_s, gt=0, description="without the pipeline, so long that nothing is lost yet")
    receive_maximum: int | None = Field(None, ge=1, le=65_535, description="unacknowledged messages at which the broker stops sending")
    held_max_messages: int | None = Field(None, ge=1, description="a slot that holds this many stops reading; None: two windows")
    held_max_bytes: int | None = Field(
        None, ge=262_144, description="likewise in bytes of payloads and records; None: usual messages, twice"
    )

    @property
    def load(self) -> capacity.Load:
        """What the broker's queue and a slot's window are derived from; one slot alone, as when the others are away."""
        return capacity.Load(messages_per_s=self.messages_per_s, outage_s=self.longest_outage_s)

    @property
    def window(self) -> int:
        """Receive Maximum, as set or as the load needs it."""
        return capacity.receive_maximum(self.load) if self.receive_maximum is None else self.receive_maximum

    @property
    def held_messages(self) -> int:
        """Messages a slot may hold before it stops reading."""
        return capacity.held_max_messages(self.window) if self.held_max_messages is None else self.held_max_messages

    @property
    def held_bytes(self) -> int:
        """Bytes a slot may hold before it stops reading: at least two of the largest messages."""
        usual = max(262_144, capacity.held_max_bytes(self.load, self.window))
        return usual if self.held_max_bytes is None else self.held_max_bytes

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        """A slot holds its window without ceasing to read; only a broker that sends more is made to wait."""
        if self.held_messages < self.window:
            raise ValueError(f"held_max_messages {self.held_messages} must not be below receive_maximum {self.window}")
        if self.session_expiry_s < self.longest_outage_s:
            raise ValueError(f"session_expiry_s {self.session_expiry_s} must not be below longest_outage_s {self.longest_outage_s:g}")
        return self


class KafkaSettings(Section):
    """The Kafka cluster, its topics and the limits of our clients."""

    bootstrap_servers: str = "127.0.0.1:9092"
    username: str | None = None
    password_file: Path | None = None
    topic: str = "iot-sensor-data"
    dead_letter_topic: str = "iot-sensor-data-dlq"
    group: str = "iot-data-consumer"
    partitions: int = Field(6, ge=1, le=1000)
    replication_factor: int | None = Field(None, ge=1, description="None: min(3, brokers)")
    retention_ms: int = Field(7 * 86_400_000, ge=60_000)
    linger_ms: int = Field(10, ge=0, le=1000)
    compression: Literal["lz4", "zstd", "snappy", "gzip", "none"] = "lz4"
    socket_timeout_s: int = Field(15, ge=2, le=300, description="a request without an answer for this long is sent again")
    max_dead_letter_bytes: int = Field(1_048_576, ge=131_072, description="a dead letter always fits: checked against the topic at start")


class RegistrySettings(Section):
    """The schema registry (Confluent API)."""

    url: str = "http://127.0.0.1:8081"


class DatabaseSettings(Section):
    """PostgreSQL or TimescaleDB, with one account a duty."""

    host: str = "127.0.0.1"
    port: int = Field(5432, ge=1, le=65535)
    name: str = "ruuvi"
    owner_user: str = "ruuvi_owner"
    owner_password_file: Path | None = None
    driver_user: str = "ruuvi_driver"
    driver_password_file: Path | None = None
    writer_user: str = "ruuvi_writer"
    writer_password_file: Path | None = None
    connect_timeout_s: int = Field(5, ge=1)
    answer_timeout_s: float = Field(15.0, ge=1, description="a writer's statement without an answer for this long: its connection is cut")
    lock_timeout_s: float = Field(5.0, gt=0, description="a writer waits this long for a lock, then tries its batch again")
    idle_in_transaction_timeout_s: float = Field(60.0, gt=0, description="the server ends a writer that stopped within a transaction")


class FleetSettings(Section):
    """How many slots each role has, and how the driver treats them."""

    ingest: int = Field(1, ge=1, le=64)
    consume: int = Field(1, ge=1, le=64)
    detect: int = Field(2, ge=1, le=64)
    write: int = Field(2, ge=1, le=64)
    cpus_per_actor: float = Field(0.5, gt=0)
    spare_processes: int = Field(2, ge=0, le=16, description="processes that wait for a replacement: about 100 MB each, 3 s quicker")
    tick_s: float = Field(0.5, gt=0)
    start_timeout_s: float = Field(60.0, gt=0, description="STARTING longer than this counts as a failure")
    stall_timeout_s: float = Field(30.0, gt=0, description="no progress stamp for this long: replaced")
    drain_timeout_s: float = Field(45.0, gt=0)
    backoff_s: float = Field(0.5, gt=0)
    backoff_max_s: float = Field(30.0, gt=0)


class IngestSettings(Section):
    """When a flush from MQTT to Kafka is cut."""

    flush_idle_s: float = Field(0.02, gt=0)
    flush_max_s: float = Field(0.06, gt=0)
    flush_messages: int = Field(2_048, ge=1)
    max_age_days: int = Field(400, ge=1, le=3_650, description="a reading older than this is a dead letter, not a new day partition")
    max_future_s: int = Field(86_400, ge=0, le=30 * 86_400)


class BatchSettings(Section):
    """When a batch from Kafka to the database is cut, and how much may be under way."""

    interval_s: float = Field(0.2, gt=0)
    max_rows: int = Field(20_000, ge=1)
    credit_bytes: int = Field(16 * 2**20, ge=2**20, description="per partition: held until write has committed")
    dead_share_max: float = Field(0.5, gt=0, le=1, description="more of a partition's last records dead than this: it halts; 1 = never")
    dead_window_records: int = Field(10_000, ge=1, description="the last records over which the share is taken")
    dead_min_records: int = Field(1_000, ge=1, description="fewer records since the start than this are not judged")
    stubborn_tries: int = Field(5, ge=1, description="one batch fails so often, with every server up: its partition halts")


class ThresholdSettings(Section):
    """The document's limits; outside them a reading is an anomaly."""

    temperature_low: float = -50.0
    temperature_high: float = 50.0
    humidity_low: float = 15.0
    humidity_high: float = 100.0
    pressure_low: float = 87_000.0
    pressure_high: float = 108_500.0
    battery_low: float = 2.0


class StepSettings(Section):
    """Rate of change: a device's value that jumps between two readings is an anomaly; off while no limit is set."""

    limits: dict[str, float] = Field(default_factory=dict, description="device_type -> largest change that is none")
    max_gap_s: float = Field(600.0, gt=0, description="readings further apart in event time are not compared")
    forget_days: int = Field(7, ge=1, description="a device this far behind its partition's newest event time is forgotten")
    warm_up_records: int = Field(20_000, ge=0, description="read again before the ledger's position when there is no usable snapshot")

    @field_validator("limits")
    @classmethod
    def _limits_are_positive(cls, limits: dict[str, float]) -> dict[str, float]:
        """A limit is a positive, finite number."""
        for device_type, limit in limits.items():
            if not 0.0 < limit < math.inf:
                raise ValueError(f"limit of {device_type} must be above 0 and finite")
        return limits


class PlaceSettings(Section):
    """Where the tags are, until a device registry says more."""

    latitude: float = Field(60.1699, ge=-90, le=90)
    longitude: float = Field(24.9384, ge=-180, le=180)
    building: str | None = "building"
    floor: int | None = 1
    zone: str | None = "main"
    room: str | None = "room-101"
    firmware_version: str | None = "1.0.0"


class Settings(BaseSettings):
    """The whole configuration of one pipeline."""

    model_config = SettingsConfigDict(
        env_prefix="RUUVI_", env_nested_delimiter="__", extra="forbid", frozen=True, nested_model_default_partial_update=True
    )

    pipeline: str = Field("ruuvi", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    mqtt: MqttSettings = MqttSettings()
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    database: DatabaseSettings = DatabaseSettings()
    fleet: FleetSettings = FleetSettings()
    ingest: IngestSettings = IngestSettings()
    batch: BatchSettings = BatchSettings()
    thresholds: ThresholdSettings = ThresholdSettings()
    steps: StepSettings = StepSettings()
    place: PlaceSettings = PlaceSettings()
    latency_dir: Path | None = Field(None, description="writers append each stored row's latency here (bench and demo)")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags over environment over YAML over defaults."""
        path = os.environ.get("RUUVI_CONFIG_FILE")
        yaml_source = (YamlConfigSettingsSource(settings_cls, yaml_file=path),) if path else ()
        return (init_settings, env_settings, *yaml_source)


def load_settings(path: Path | None = None, overrides: dict[str, Any] | None = None) -> Settings:
    """Read and validate the settings.

    Args:
        path: YAML file, or None for defaults and environment alone.
        overrides: values of flags, nested by section; they win over everything.

    Raises:
        ConfigurationError: a file that cannot be read, an unknown key or a bad value.
    """
    before = os.environ.get("RUUVI_CONFIG_FILE")
    if path is not None:
        if not path.is_file():
            raise ConfigurationError(f"configuration file {path} does not exist: name an existing YAML file with --config")
        os.environ["RUUVI_CONFIG_FILE"] = str(path)
    try:
        return Settings(**(overrides or {}))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            rule = "unknown key, remove it or correct its name" if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"{key} = {problem['input']!r}: {rule}")
        raise ConfigurationError("configuration refused:\n  " + "\n  ".join(lines)) from None
    except (yaml.YAMLError, OSError) as error:
        raise ConfigurationError(f"configuration file {path} cannot be read: {error}") from error
    finally:
        if before is None:
            os.environ.pop("RUUVI_CONFIG_FILE", None)
        else:
            os.environ["RUUVI_CONFIG_FILE"] = before


def read_secret(path: Path | None, what: str) -> str:
    """Return the content of a secret file, read anew at each use so that rotation works.

    Raises:
        ConfigurationError: no file is configured, or it cannot be read.
    """
    if path is None:
        raise ConfigurationError(f"{what}: no password file is configured; set it to the path of a file that holds the password")
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{what} = {path}: cannot be read ({error.strerror}); create it with mode 0600") from None
