"""A Ray head on the loopback address, with a token, and without what nobody here uses.

`ray start` runs under `rayapp.stack.warden`, because a killed `ray start --block` leaves its two
agents alive for minutes (measured); the warden inherits every orphan and ends them all. Left out to
save memory, measured as PSS: the `ray start` process itself (79 MB, the warden holds the children
instead), the autoscaler's monitor (55), the Ray Client server (48), the log monitor (50); actors page,
job API and Prometheus metrics stay. No port is a fixed default: those would let two stacks
collide, and the switch below is what keeps Ray from replacing 127.0.0.1 by an address of the network.
"""

from __future__ import annotations

import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rayapp.stack import programs
from rayapp.stack.component import Workbench
from rayapp.stack.http_probe import ask_http
from rayapp.stack.layout import write_private
from rayapp.stack.passwords import read_password
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import ServerProcess
from rayapp.stack.state import RayState
from rayapp.stack.warden import holds

# Only what has a fixed default; the raylet chooses its other ports when it binds them, which cannot fail.
PORT_FLAGS = (
    "--port",
    "--dashboard-port",
    "--metrics-export-port",
    "--ray-client-server-port",
    "--dashboard-agent-listen-port",
)


def render_arguments(ports: dict[str, int], num_cpus: int, store_bytes: int, folder: Path) -> list[str]:
    """Return the arguments of `ray start`."""
    arguments = [
        "start",
        "--head",
        "--node-ip-address",
        LOOPBACK,
        "--dashboard-host",
        LOOPBACK,
        "--num-cpus",
        str(num_cpus),
        "--object-store-memory",
        str(store_bytes),
        "--temp-dir",
        str(folder),
        "--disable-usage-stats",
        "--include-dashboard",
        "true",
        "--include-log-monitor",
        "false",
        "--no-monitor",
        "--min-worker-port",
        "0",
        "--max-worker-port",
        "0",
    ]
    for flag in PORT_FLAGS:
        arguments += [flag, str(ports[flag])]
    return arguments


def render_environment(auth_mode: str, token_file: Path, dashboard_metrics_port: int) -> dict[str, str]:
    """Return Ray's settings; all explicit, as a token file in a home directory would switch the mode."""
    environment = {
        "RAY_AUTH_MODE": auth_mode,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_prestart_worker_first_driver": "0",
        # Ray runs workers at nice 15; beside a broker and a database on the same cores they would wait for both.
        "RAY_worker_niceness": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "2",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics_port),
    }
    if auth_mode == "token":
        environment["RAY_AUTH_TOKEN_PATH"] = str(token_file)
    return environment


def living_nodes(dashboard_url: str, token: str) -> int:
    """Return how many nodes the dashboard knows to be alive; 0 while it refuses to say.

    Raises:
        OSError: nobody answers.
    """
    status, answer = ask_http(f"{dashboard_url}/nodes?view=summary", token=token)
    nodes = ((answer or {}).get("data") or {}).get("summary") or [] if status == 200 else []
    return sum((node.get("raylet") or {}).get("state") == "ALIVE" for node in nodes)


class RayHead:
    """The Ray cluster of one node that runs jobs."""

    name = "ray"

    def __init__(self, bench: Workbench) -> None:
        self._options = bench.options
        self._layout = bench.layout
        numbers = free_ports(len(PORT_FLAGS) + 1)
        self._ports = dict(zip(PORT_FLAGS, numbers[:-1], strict=True))
        self._dashboard_metrics_port = numbers[-1]
        self._auth_mode = "token" if bench.options.ray_auth else "disabled"
        self._token_file = self._layout.root / "secrets" / "ray.token"

    def prepare(self) -> None:
        """Make the token; Ray would otherwise write one into the home directory."""
        if self._auth_mode == "token" and not self._token_file.exists():
            write_private(self._token_file, secrets.token_hex(32))

    def processes(self) -> Sequence[ServerProcess]:
        """One warden, which holds all of Ray's processes."""
        # Ray opens its folder to everybody (0777), so it lies in one that only we can enter; the names
        # are short because Ray's socket paths below it come close to the limit of 107 bytes.
        folder = self._folder
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        ray = [
            sys.executable,
            "-m",
            programs.ray_module(),
            *render_arguments(self._ports, self._options.ray_num_cpus, self._options.ray_object_store_bytes, folder),
        ]
        return [
            ServerProcess(
                "ray",
                # By path: the warden must start without importing this package and its dependencies.
                [sys.executable, "-I", str(Path(__file__).with_name("warden.py")), *ray],
                self._layout.log("ray"),
                folder,
                environment={
                    **render_environment(self._auth_mode, self._token_file, self._dashboard_metrics_port),
                    **self._options.ray_environment,
                },
                death_signal=signal.SIGTERM,  # to the warden, which then ends all the others
            )
        ]

    def ask(self) -> str:
        """It serves when the dashboard, asked with the token, lists a living node and takes jobs."""
        if not holds(self._folder):
            return "`ray start` has not returned"
        token = read_password(self._token_file) if self._auth_mode == "token" else ""
        if not living_nodes(self._dashboard, token):
            return "no living node yet"
        status, _ = ask_http(f"{self._dashboard}/api/jobs/", token=token)
        return "" if status == 200 else f"job API: HTTP {status}"

    def settle(self) -> None:
        """Nothing."""

    def state(self) -> RayState:
        """Return addresses and the token's place."""
        return RayState(
            address=f"{LOOPBACK}:{self._ports['--port']}",
            dashboard_url=self._dashboard,
            metrics_url=f"http://{LOOPBACK}:{self._ports['--metrics-export-port']}/metrics",
            auth_mode=self._auth_mode,
            token_file=str(self._token_file) if self._auth_mode == "token" else "",
            num_cpus=self._options.ray_num_cpus,
            log=str(self._layout.log("ray")),
        )

    @property
    def _folder(self) -> Path:
        return self._layout.run / "p" / "r"

    @property
    def _dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self._ports['--dashboard-port']}"
