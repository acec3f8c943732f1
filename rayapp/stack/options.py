"""What a caller may choose about a stack, checked before anything is started.

`rayapp stack up` fills `StackOptions` from flags; demo, bench and tests build it directly and hand it
to `start_stack`. The keeper gets it as JSON on its command line (it holds no secret). A server that
the user already runs is named with `--use kafka=HOST:PORT` (or the variable RUUVI_STACK_USE); nothing
else in the environment redirects a component, so that a stray KAFKA_BOOTSTRAP_SERVERS in a shell can
never point the tests at somebody's production broker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rayapp.errors import ConfigurationError

USE_VARIABLE = "RUUVI_STACK_USE"
DEFAULT_FOLDER = ".stack"
COMPONENTS = ("postgres", "kafka", "registry", "mqtt", "ray", "ray_workers")
RAY_STORE_MINIMUM_BYTES = 80 * 1024 * 1024


@dataclass(frozen=True)
class StackOptions:
    """The shape of one stack; the defaults are what `make demo` runs."""

    folder: Path = Path(DEFAULT_FOLDER)
    brokers: int = 1
    ray: bool = False
    ray_num_cpus: int = 8
    """A number to schedule by, of each node."""
    ray_workers: int = 0
    """Further Ray nodes beside the head, so that one can die."""
    ray_object_store_bytes: int = 200 * 1024 * 1024
    ray_auth: bool = True
    ray_environment: Mapping[str, str] = field(default_factory=dict)
    postgres_shared_buffers: str = "128MB"
    postgres_disk_mb: int = 0
    """Size of a memory disk for the database's data, which a test can fill; 0 = an ordinary folder. Needs root."""
    kafka_proxied: bool = False
    """Give each broker a second listener whose advertised address is a proxy's, for faults of the network."""
    components: tuple[str, ...] = ("postgres", "kafka", "registry", "mqtt")
    use: Mapping[str, str] = field(default_factory=dict)
    leash: bool = False
    ready_deadline_s: float = 120.0
    download_deadline_s: float = 600.0
    stop_grace_s: float = 20.0

    def __post_init__(self) -> None:
        if self.brokers not in (1, 3):
            raise ConfigurationError(f"brokers={self.brokers}: must be 1 or 3 (two voters cannot outlive one); pass --brokers 3")
        if self.ray_object_store_bytes < RAY_STORE_MINIMUM_BYTES:
            raise ConfigurationError(
                f"ray_object_store_bytes={self.ray_object_store_bytes}: Ray refuses less than {RAY_STORE_MINIMUM_BYTES}; raise it"
            )
        for name in (*self.components, *self.use):
            if name not in COMPONENTS:
                raise ConfigurationError(f"component={name}: must be one of {', '.join(COMPONENTS)}; correct the name")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Component names in start order, Ray included when asked for."""
        nodes = ("ray", "ray_workers") if self.ray and self.ray_workers else ("ray",) if self.ray else ()
        names = {*self.components, *self.use, *nodes}
        return tuple(name for name in COMPONENTS if name in names)

    def to_json(self) -> str:
        """Render for the keeper's command line."""
        return json.dumps(
            {**asdict(self), "folder": str(self.folder), "use": dict(self.use), "ray_environment": dict(self.ray_environment)}
        )

    @classmethod
    def from_json(cls, text: str) -> StackOptions:
        """Read back what `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "folder": Path(raw["folder"]), "components": tuple(raw["components"])})


def parse_use(pairs: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Merge `component=address` pairs: the variable first, then flags, the last one wins.

    Raises:
        ConfigurationError: a pair has no `=`, or names no component.
    """
    from_variable = [pair for pair in environment.get(USE_VARIABLE, "").split(",") if pair.strip()]
    chosen: dict[str, str] = {}
    for pair in (*from_variable, *pairs):
        name, separator, address = pair.strip().partition("=")
        if not separator or not address or name not in COMPONENTS:
            raise ConfigurationError(
                f"use={pair!r}: must be COMPONENT=ADDRESS with COMPONENT one of "
                f"{', '.join(COMPONENTS)}; for example --use kafka=127.0.0.1:9092"
            )
        chosen[name] = address
    return chosen


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """Split `host:port`; a missing port takes the default."""
    host, separator, port = address.rpartition(":")
    if not separator:
        return address, default_port
    if not port.isdigit():
        raise ConfigurationError(f"address={address!r}: the port must be a number; write HOST:PORT")
    return host, int(port)
