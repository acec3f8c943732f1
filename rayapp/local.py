"""Settings and environment for a pipeline on the local stack: what demo, bench and tests hand to the command line.

The stack writes where its servers are; this turns that into the YAML file that
a user would write by hand, and into the variables that Ray's command line
reads. Passwords stay in their files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rayapp.config import Settings, load_settings
from rayapp.stack import StackState


def write_settings(state: StackState, path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Write the YAML of a pipeline on this stack to `path` (mode 0600) and return the validated settings.

    Args:
        overrides: settings by section that win over what the stack says.
    """
    kafka = state.kafka
    registry = state.registry
    mqtt = state.mqtt
    postgres = state.postgres
    content: dict[str, Any] = {
        "mqtt": {"host": mqtt.host, "port": mqtt.port, "username": mqtt.username, "password_file": mqtt.password_file},
        "kafka": {"bootstrap_servers": kafka.bootstrap_servers},
        "registry": {"url": registry.url},
        "database": {
            "host": postgres.host,
            "port": postgres.port,
            "name": postgres.database,
            **{
                f"{account}_{what}": getattr(postgres, f"{account}_{what}")
                for account in ("owner", "driver", "writer")
                for what in ("user", "password_file")
            },
        },
    }
    if kafka.username:
        content["kafka"] |= {"username": kafka.username, "password_file": kafka.password_file}
    for section, values in (overrides or {}).items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, Mapping) else values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_settings(path)


def ray_environment(state: StackState) -> dict[str, str]:
    """Return this process's environment plus how to reach the stack's Ray; authentication is always said explicitly."""
    ray = state.ray
    environment = {**os.environ, "RAY_AUTH_MODE": ray.auth_mode, "RAY_ADDRESS": ray.dashboard_url}
    if ray.auth_mode == "token":
        environment["RAY_AUTH_TOKEN_PATH"] = ray.token_file
    return environment
