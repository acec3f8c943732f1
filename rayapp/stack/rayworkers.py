"""Further Ray nodes on the same machine, so that a node can die: `ray start --address` of the stack's head.

Each lies under a warden of its own (rayapp.stack.warden); kill -9 of the warden is the death of the
node, as the keeper then ends everything that was below it, raylet, agents and actors alike. A node that
is started again is a new node to Ray, with nothing on it. They begin when the head serves, and read its
address from the state file as any other client would.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rayapp.stack.component import Workbench
from rayapp.stack.errors import StackError
from rayapp.stack.passwords import read_password
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import POLL_S, ServerProcess
from rayapp.stack.rayhead import living_nodes, render_environment
from rayapp.stack.state import ComponentState, RayState, load_state
from rayapp.stack.warden import holds

# With the switch that keeps Ray on 127.0.0.1 (rayhead) its command line takes every machine for one on which clusters
# are not supported; without it, it replaces 127.0.0.1 by an address of the network. The nodes inherit the switch as the
# head's do; only this process, which starts them, is told otherwise.
RAY_START = """
from ray._private import ray_constants, services
from ray.scripts import scripts
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
scripts.main()
"""

QUICK_TO_NOTICE_A_DEAD_NODE = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""For StackOptions.ray_environment: a node that refuses connections is dead after 3 s; Ray's own settings take 17 s (measured)."""


def render_arguments(head: str, ports: tuple[int, int], num_cpus: int, store_bytes: int, folder: Path) -> list[str]:
    """Return the arguments of `ray start`.

    Args:
        head: HOST:PORT of the head's GCS.
        ports: metrics and agent; those of the raylet are chosen when they are bound.
    """
    return [
        "start",
        "--address",
        head,
        "--node-ip-address",
        LOOPBACK,
        "--num-cpus",
        str(num_cpus),
        "--object-store-memory",
        str(store_bytes),
        "--temp-dir",
        str(folder),
        "--disable-usage-stats",
        "--include-log-monitor",
        "false",
        "--min-worker-port",
        "0",
        "--max-worker-port",
        "0",
        "--metrics-export-port",
        str(ports[0]),
        "--dashboard-agent-listen-port",
        str(ports[1]),
    ]


class RayWorkers:
    """The nodes beside the head: processes ray-worker-1, ray-worker-2 and so on."""

    name = "ray_workers"

    def __init__(self, bench: Workbench) -> None:
        self._options = bench.options
        self._layout = bench.layout
        numbers = free_ports(2 * bench.options.ray_workers)
        self._ports = list(zip(numbers[::2], numbers[1::2], strict=True))
        self._head = RayState()

    def prepare(self) -> None:
        """Wait until the head serves; whether Ray is installed, it has asked before.

        Raises:
            StackError: it does not in time.
        """
        deadline = time.monotonic() + self._options.ready_deadline_s
        while True:
            self._head = load_state(self._layout.root).ray
            if self._head.state == "ready":
                return
            if time.monotonic() > deadline:
                raise StackError(f"ray_workers: the head is still {self._head.state} after {self._options.ready_deadline_s:.0f} s")
            time.sleep(POLL_S)

    def processes(self) -> Sequence[ServerProcess]:
        """Return a warden a node."""
        return [self._node(number, ports) for number, ports in enumerate(self._ports, 1)]

    def _node(self, number: int, ports: tuple[int, int]) -> ServerProcess:
        folder = self._folder(number)
        folder.mkdir(mode=0o700, exist_ok=True)
        arguments = render_arguments(self._head.address, ports, self._options.ray_num_cpus, self._options.ray_object_store_bytes, folder)
        return ServerProcess(
            f"ray-worker-{number}",
            [sys.executable, "-I", str(Path(__file__).with_name("warden.py")), sys.executable, "-c", RAY_START, *arguments],
            self._layout.log(f"ray-worker-{number}"),
            folder,
            environment={
                **render_environment(self._head.auth_mode, Path(self._head.token_file), ports[0]),
                **self._options.ray_environment,
            },
            death_signal=signal.SIGTERM,  # to the warden, which then ends all the others
        )

    def ask(self) -> str:
        """They serve when every `ray start` has returned and the head counts as many living nodes, itself included."""
        # The count alone would not tell: Ray takes seconds to notice that a node is dead.
        if not all(holds(self._folder(number)) for number in range(1, len(self._ports) + 1)):
            return "`ray start` has not returned"
        token = read_password(Path(self._head.token_file)) if self._head.token_file else ""
        living = living_nodes(self._head.dashboard_url, token)
        return "" if living > len(self._ports) else f"{living} living nodes of {len(self._ports) + 1}"

    def settle(self) -> None:
        """Nothing."""

    def state(self) -> ComponentState:
        """Return where the first one logs; the cluster's address is the head's."""
        return ComponentState(log=str(self._layout.log("ray-worker-1")))

    def _folder(self, number: int) -> Path:
        # Beside the head's, in the folder that only we can enter, and as short.
        return self._layout.run / "p" / f"w{number}"
