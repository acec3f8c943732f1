"""Logs are events with fields, one JSON object a line, once per decision and never per message."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any


class EventFormatter(logging.Formatter):
    """Render a record as one JSON line: time, level, event, then the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line for one record."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class Events:
    """Emit events of one part of the program: `events.info("partition_claimed", partition=3)`."""

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)

    def info(self, event: str, **fields: object) -> None:
        """Say what was decided or done."""
        self._log.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        """Say what went wrong and what happens next."""
        self._log.warning(event, extra={"fields": fields})

    def error(self, event: str, *, exc_info: bool = False, **fields: object) -> None:
        """Say what a person should look at."""
        self._log.error(event, extra={"fields": fields}, exc_info=exc_info)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this process's events to standard error; calling it again changes nothing."""
    for name in ("rayapp", "actors"):
        log = logging.getLogger(name)
        if not any(isinstance(handler.formatter, EventFormatter) for handler in log.handlers):
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(EventFormatter())
            log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False
