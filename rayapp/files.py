"""Where the project's own files are: beside the packages in a checkout, inside the wheel when installed."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_file(name: str) -> Path:
    """Return the path of `schemas/…` or `sql/…`, whichever way the project is installed."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.exists() else _PACKAGE.parent / name


def reading_schema() -> str:
    """Return the Avro schema of a reading as JSON text."""
    return project_file("schemas/iot-sensor-data-value.avsc").read_text(encoding="utf-8")
