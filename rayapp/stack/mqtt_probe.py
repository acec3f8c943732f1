"""Ask an MQTT broker whether it lets an account in: one CONNECT packet, one CONNACK.

MQTT 3.1.1, clean session, no will: the smallest question that proves broker, listener, password file
and account at once. The return code is the answer; 0 is accepted, 5 is "not authorised".
"""

from __future__ import annotations

import secrets
import socket
import struct

ACCEPTED, NOT_AUTHORISED = 0, 5
DISCONNECT = b"\xe0\x00"


def connect_packet(client_id: str, username: str | None, password: str | None) -> bytes:
    """Build a CONNECT packet; None leaves the field out, which is an anonymous attempt."""
    flags = 0x02
    payload = _field(client_id)
    if username is not None:
        flags |= 0x80
        payload += _field(username)
    if password is not None:
        flags |= 0x40
        payload += _field(password)
    body = _field("MQTT") + bytes([4, flags]) + struct.pack(">H", 30) + payload
    return b"\x10" + _remaining_length(len(body)) + body


def ask_mqtt(host: str, port: int, username: str | None, password: str | None, timeout_s: float = 3.0) -> int:
    """Return the CONNACK's code.

    Raises:
        OSError: nobody answers, or the answer is not a CONNACK.
    """
    with socket.create_connection((host, port), timeout_s) as connection:
        connection.sendall(connect_packet(f"probe-{secrets.token_hex(6)}", username, password))
        answer = connection.recv(4)
        if len(answer) != 4 or answer[0] != 0x20:
            raise ConnectionError(f"mqtt {host}:{port}: answered {answer.hex() or 'nothing'}, no CONNACK")
        if answer[3] == ACCEPTED:
            connection.sendall(DISCONNECT)
        return answer[3]


def _field(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw


def _remaining_length(length: int) -> bytes:
    encoded = b""
    while True:
        length, digit = divmod(length, 128)
        encoded += bytes([digit | (0x80 if length else 0)])
        if not length:
            return encoded
