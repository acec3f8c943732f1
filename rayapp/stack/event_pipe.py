"""How a keeper tells its starter what happens: one JSON object a line, through an inherited pipe.

    {"event":"component","component":"kafka","state":"ready","seconds":3.1,"detail":"","address":"..."}
    {"event":"ready","seconds":3.2} | {"event":"failed","error":"..."} | {"event":"taken"}

The starter may go away at any time (a closed terminal): then the keeper goes on in silence. After
"ready" the pipe is closed; what happens later is in the state file and in keeper.log.
"""

from __future__ import annotations

import json
import os
import threading


class EventPipe:
    """Tells the starter what happens, one JSON object a line, until it no longer listens."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def tell(self, **fields: object) -> None:
        """Write one line; a starter that has gone is no error."""
        with self._lock:
            if self._descriptor is None:
                return
            try:
                os.write(self._descriptor, (json.dumps(fields) + "\n").encode())
            except OSError:
                self._descriptor = None

    def close(self) -> None:
        """Say that nothing follows."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
