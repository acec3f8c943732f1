"""Real servers for one machine: Kafka, schema registry, Mosquitto, PostgreSQL and, if wanted, Ray.

    with start_stack(StackOptions(folder=tmp, ray=True, leash=True)) as stack:
        state = stack.state                       # where everything is
        ...                                       # migrate, start the pipeline, wait until it subscribed
        enable_gateways(state)                    # now gateways may publish
        restart_component(state, "kafka")         # chaos: kill -9, then start again
        process_ids(state)                        # for CPU and memory accounting

Who runs what: `rayapp.stack.keeper` is the parent of all servers and the only one that starts or stops
them; this API and the command line talk to it. On failure: StackError with the log's tail, and nothing
left running. State, passwords and logs lie in the folder that the options name.
"""

from rayapp.stack.errors import ProgramMissing, StackError, StackNotRunning
from rayapp.stack.lifecycle import Stack, start_stack, stop_stack
from rayapp.stack.operate import (
    ask_components,
    enable_gateways,
    kill_component,
    process_ids,
    restart_component,
    start_component,
)
from rayapp.stack.options import StackOptions, parse_use
from rayapp.stack.passwords import read_password
from rayapp.stack.state import (
    ComponentState,
    KafkaState,
    MqttState,
    PostgresState,
    RayState,
    RegistryState,
    StackState,
    load_state,
)

__all__ = [
    "ComponentState",
    "KafkaState",
    "MqttState",
    "PostgresState",
    "ProgramMissing",
    "RayState",
    "RegistryState",
    "Stack",
    "StackError",
    "StackNotRunning",
    "StackOptions",
    "StackState",
    "ask_components",
    "enable_gateways",
    "kill_component",
    "load_state",
    "parse_use",
    "process_ids",
    "read_password",
    "restart_component",
    "start_component",
    "start_stack",
    "stop_stack",
]
