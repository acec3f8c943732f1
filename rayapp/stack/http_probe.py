"""Plain HTTP questions to loopback servers: schema registry and Ray dashboard.

Standard library only, and never through a proxy: an http_proxy variable in the shell must not carry a
question about 127.0.0.1 anywhere else.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask_http(url: str, *, method: str = "GET", body: object = None, token: str = "", timeout_s: float = 5.0) -> tuple[int, Any]:
    """Return status and decoded JSON (None when it is not JSON).

    Raises:
        OSError: nobody answers.
    """
    headers = {"Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, method=method, headers=headers)  # noqa: S310 - addresses of our own servers
    try:
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return answer.status, _decode(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _decode(error.read())


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
