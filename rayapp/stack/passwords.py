"""Random passwords, one 0600 file each, made once per data folder.

A component asks by account name when it renders its configuration; a restart on kept data finds the
same file and therefore the same password. Mosquitto stores a salted hash, made here instead of with
`mosquitto_passwd -b`, which would show the password on a command line.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path

from rayapp.stack.layout import Layout, write_private

MOSQUITTO_ITERATIONS = 101  # what mosquitto_passwd 2.0 itself writes; loopback only
MOSQUITTO_SALT_BYTES = 12


def password_of(layout: Layout, account: str) -> str:
    """Return the account's password, inventing it the first time."""
    path = layout.password_file(account)
    if not path.exists():
        write_private(path, secrets.token_urlsafe(24))
    return read_password(path)


def read_password(path: Path | str) -> str:
    """Read a password file as its single line."""
    return Path(path).read_text(encoding="utf-8").strip()


def mosquitto_entry(user: str, password: str, salt: bytes | None = None) -> str:
    """Return one line of Mosquitto's password file (PBKDF2-SHA512, marker 7)."""
    salt = salt or secrets.token_bytes(MOSQUITTO_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, MOSQUITTO_ITERATIONS)
    encoded = (base64.b64encode(part).decode() for part in (salt, digest))
    return f"{user}:$7${MOSQUITTO_ITERATIONS}${'$'.join(encoded)}"
