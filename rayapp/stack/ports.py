"""Free loopback ports, chosen together so that no two servers of one stack get the same one.

The keeper asks once, before anything starts, and writes the answer into the state file; a server that
is killed and started again keeps its port, as clients expect. Seconds pass between our closing of a
port and the server's bind, so ports come from below the kernel's ephemeral range: there no outgoing
connection can take one in the meantime. Another server still could; ours then fails loudly.
"""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from rayapp.stack.errors import StackError

LOOPBACK = "127.0.0.1"
LOWEST, DEFAULT_EPHEMERAL = 12000, 32768
ATTEMPTS_PER_PORT = 200
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> tuple[int, ...]:
    """Return `count` distinct TCP ports that are free on the loopback address right now."""
    highest = ephemeral_start() - 1
    if highest - LOWEST < 10 * count:
        raise StackError(f"ip_local_port_range begins at {highest + 1}: must leave ports above {LOWEST} free; raise it")
    chosen = random.SystemRandom()
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for _attempt in range(ATTEMPTS_PER_PORT * count):
            one = held.enter_context(socket.socket())
            # All stay open until all are bound: that is what makes them distinct.
            with contextlib.suppress(OSError):
                one.bind((LOOPBACK, chosen.randint(LOWEST, highest)))
                ports.append(one.getsockname()[1])
            if len(ports) == count:
                return tuple(ports)
    raise StackError(f"ports: fewer than {count} free between {LOWEST} and {highest}; end what uses them")


def ephemeral_start() -> int:
    """Return the first port that the kernel may give to an outgoing connection."""
    with contextlib.suppress(OSError, ValueError):
        return int(EPHEMERAL_RANGE.read_text(encoding="ascii").split()[0])
    return DEFAULT_EPHEMERAL


def is_listening(port: int) -> bool:
    """Say whether something accepts connections on this loopback port."""
    with socket.socket() as one:
        one.settimeout(1.0)
        return one.connect_ex((LOOPBACK, port)) == 0
