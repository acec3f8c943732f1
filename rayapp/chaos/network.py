"""The network between actors and servers, as a proxy process that the harness commands.

Actors get settings whose addresses are the proxy's; judge, watch and gateways
use the servers' own. The proxy ends when this process does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rayapp.errors import StackError
from rayapp.stack import StackState
from rayapp.stack.ports import free_ports

LINKS = ("mqtt", "kafka", "database")


class Network:
    """Proxied links to one stack's servers.

    Raises:
        StackError: the proxy did not start.
    """

    def __init__(self, state: StackState) -> None:
        mqtt_port, database_port = free_ports(2)
        self._ports = {"mqtt": mqtt_port, "database": database_port}
        self._kafka = state.kafka.proxied
        self._process = subprocess.Popen(
            # By path and isolated: it needs nothing of ours and must start at once.
            [sys.executable, "-I", str(Path(__file__).with_name("proxy.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._tell(name="mqtt", listen=mqtt_port, to=state.mqtt.port)
        self._tell(name="database", listen=database_port, to=state.postgres.port)
        for listen, to in self._kafka:
            self._tell(name="kafka", listen=listen, to=to)
        if not self._tell(start=True).get("ready"):
            raise StackError("chaos: the proxy does not listen; is a port taken?")

    @property
    def pid(self) -> int:
        """The proxy's process id."""
        return self._process.pid

    def overrides(self) -> dict[str, dict[str, Any]]:
        """Return the settings that lead actors through the proxy."""
        found: dict[str, dict[str, Any]] = {"mqtt": {"port": self._ports["mqtt"]}, "database": {"port": self._ports["database"]}}
        if self._kafka:
            found["kafka"] = {"bootstrap_servers": ",".join(f"127.0.0.1:{listen}" for listen, _ in self._kafka)}
        return found

    def behave(self, link: str, mode: str, delay_s: float = 0.0) -> tuple[int, int]:
        """Let a link pass, delay or blackhole; returns its connections, and the bytes held back since the last such call."""
        answer = self._tell(name=link, mode=mode, delay_s=delay_s)
        return int(answer["connections"]), int(answer["held_bytes"])

    def cut(self, link: str) -> int:
        """Reset all connections of a link and return how many there were."""
        return int(self._tell(name=link, cut=True)["cut"])

    def close(self) -> None:
        """End the proxy."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _tell(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise StackError(f"chaos: the proxy is gone ({error})") from error
        if not line:
            raise StackError("chaos: the proxy ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
