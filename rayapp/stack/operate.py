"""What a running stack can be asked to do, each a request to its keeper.

Used by the command line, by chaos tests (kill, start, restart), by whoever starts a pipeline (gateways)
and by accounting (process ids). Every call takes the state that `load_state` or `Stack.state` gave;
StackNotRunning when its keeper is gone, StackError with the keeper's own words when it refuses.
"""

from __future__ import annotations

import signal

from rayapp.stack.control import ask_keeper
from rayapp.stack.processes import tree_of
from rayapp.stack.state import StackState, keeper_is_alive


def enable_gateways(state: StackState, *, enabled: bool = True) -> None:
    """Let the gateways' MQTT account in, once the pipeline has subscribed; returns when it is in force."""
    ask_keeper(state.control_socket, {"op": "gateways", "enabled": enabled})


def kill_component(state: StackState, component: str, number: int = signal.SIGKILL, process: str | None = None) -> list[int]:
    """Send a signal to a component's processes, or one of them ("kafka-2"); returns the pids hit."""
    request = {"op": "kill", "component": component, "signal": int(number), "process": process}
    pids: list[int] = ask_keeper(state.control_socket, request)["pids"]
    return pids


def start_component(state: StackState, component: str) -> list[int]:
    """Start what is dead of a component on the same ports and data; returns when it serves."""
    pids: list[int] = ask_keeper(state.control_socket, {"op": "start", "component": component})["pids"]
    return pids


def restart_component(state: StackState, component: str, number: int = signal.SIGKILL, process: str | None = None) -> list[int]:
    """Kill a component and start it again."""
    kill_component(state, component, number, process)
    return start_component(state, component)


def ask_components(state: StackState) -> dict[str, str]:
    """Have every server asked again; "" means it serves."""
    answers: dict[str, str] = ask_keeper(state.control_socket, {"op": "status"})["components"]
    return answers


def process_ids(state: StackState) -> dict[str, list[int]]:
    """Return all living processes of each component with their descendants, and the keeper's own."""
    found: dict[str, list[int]] = {name: [] for name in state.components}
    for name, pid in state.live_pids():
        found[name] += [one.pid for one in tree_of(pid)]
    if keeper_is_alive(state):
        found["keeper"] = [state.keeper_pid]
    return found
