"""Ask a Kafka broker whether it serves, in Kafka's own protocol and with the real password.

An open port means little: a KRaft broker listens before it is unfenced. So the question is the one a
client asks: ApiVersions, SASL/PLAIN with the pipeline's account, then Metadata, and the answer counts
only when every expected broker is in it. About forty lines of wire format instead of a client library,
which lives in one adapter elsewhere. Raises OSError when nobody answers, StackError when refused.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from rayapp.stack.errors import StackError

API_METADATA, API_SASL_HANDSHAKE, API_VERSIONS, API_SASL_AUTHENTICATE = 3, 17, 18, 36
CLIENT_ID = b"stack-probe"


@dataclass(frozen=True)
class ClusterView:
    """What one broker says about its cluster."""

    brokers: tuple[str, ...]
    controller_id: int


def ask_kafka(host: str, port: int, username: str = "", password: str = "", timeout_s: float = 3.0) -> ClusterView:
    """Return the brokers a client would see.

    Raises:
        OSError: nobody answers, or the connection broke.
        StackError: the broker answered and refused, for example the password.
    """
    with socket.create_connection((host, port), timeout_s) as connection:
        _call_checked(connection, API_VERSIONS, 0, b"")
        if username:
            _call_checked(connection, API_SASL_HANDSHAKE, 1, _string(b"PLAIN"))
            token = b"\0" + username.encode() + b"\0" + password.encode()
            _call_checked(connection, API_SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        return parse_metadata(_call(connection, API_METADATA, 1, struct.pack(">i", 0)))


def ask_versions(host: str, port: int, timeout_s: float = 3.0) -> None:
    """Ask the one question that every broker answers before authentication."""
    with socket.create_connection((host, port), timeout_s) as connection:
        _call_checked(connection, API_VERSIONS, 0, b"")


def parse_metadata(body: bytes) -> ClusterView:
    """Read a Metadata v1 response that asked for no topics."""
    (count,) = struct.unpack_from(">i", body)
    offset, brokers = 4, []
    for _ in range(count):
        offset += 4  # node id
        host, offset = _read_string(body, offset)
        (port,) = struct.unpack_from(">i", body, offset)
        _rack, offset = _read_string(body, offset + 4)
        brokers.append(f"{host}:{port}")
    (controller_id,) = struct.unpack_from(">i", body, offset)
    return ClusterView(tuple(brokers), controller_id)


def _string(text: bytes) -> bytes:
    return struct.pack(">h", len(text)) + text


def _read_string(body: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", body, offset)
    end = offset + 2 + max(0, length)
    return body[offset + 2 : end].decode(), end


def _call(connection: socket.socket, api: int, version: int, body: bytes) -> bytes:
    message = struct.pack(">hhi", api, version, api) + _string(CLIENT_ID) + body
    connection.sendall(struct.pack(">i", len(message)) + message)
    (length,) = struct.unpack(">i", _read_exactly(connection, 4))
    return _read_exactly(connection, length)[4:]  # without the correlation id


def _call_checked(connection: socket.socket, api: int, version: int, body: bytes) -> None:
    answer = _call(connection, api, version, body)
    (error,) = struct.unpack_from(">h", answer)
    if error:
        text, _ = _read_string(answer, 2) if api == API_SASL_AUTHENTICATE else ("", 0)
        raise StackError(f"kafka: api {api} answered error {error} {text}".rstrip())


def _read_exactly(connection: socket.socket, length: int) -> bytes:
    parts = b""
    while len(parts) < length:
        part = connection.recv(length - len(parts))
        if not part:
            raise ConnectionError("kafka closed the connection")
        parts += part
    return parts
