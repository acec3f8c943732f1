"""Mosquitto with accounts, an ACL and persistence; the gateways' account begins switched off.

A gateway that publishes before the pipeline has subscribed loses data: the broker acknowledges and has
nobody to queue for. So the password file first holds the pipeline's account only, and `enable_gateways`
adds the other and sends SIGHUP once somebody says that all subscriptions stand. Queues are sized for
the longest pause of the pipeline (rayapp.capacity), not for the default of a thousand messages: beyond
it the broker drops what is new and acknowledges it all the same. Started as its own user when we are
root: it would drop to it anyway, and that change would clear the parent-death signal.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from rayapp.capacity import Load, max_queued_messages
from rayapp.stack import programs
from rayapp.stack.component import Workbench
from rayapp.stack.layout import service_user, write_private
from rayapp.stack.mqtt_probe import ACCEPTED, ask_mqtt
from rayapp.stack.passwords import mosquitto_entry, password_of
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import ServerProcess
from rayapp.stack.state import MqttState

PIPELINE, GATEWAY = "pipeline", "gateway"
MESSAGE_SIZE_LIMIT_BYTES = 131072
MAX_QUEUED_MESSAGES = max_queued_messages(Load())

# Shared subscriptions are checked on the plain topic, so these lines cover $share/... too.
ACL = f"""\
user {PIPELINE}
topic read ruuvitag/#
topic read ruuvi/#
topic read $SYS/#

user {GATEWAY}
topic write ruuvitag/data

pattern write ruuvi/%u/#
"""


def render_configuration(port: int, folder: Path) -> str:
    """Return mosquitto.conf."""
    return f"""\
listener {port} {LOOPBACK}
allow_anonymous false
password_file {folder}/accounts
acl_file {folder}/acl
persistence true
persistence_location {folder}/
autosave_interval 60
message_size_limit {MESSAGE_SIZE_LIMIT_BYTES}
max_queued_messages {MAX_QUEUED_MESSAGES}
max_queued_bytes 0
max_inflight_messages 0
max_inflight_bytes 0
set_tcp_nodelay true
sys_interval 5
log_dest stdout
log_type error
log_type warning
log_type notice
log_timestamp_format %Y-%m-%dT%H:%M:%S
connection_messages false
"""


class Mosquitto:
    """The MQTT broker of one stack."""

    name = "mqtt"

    def __init__(self, bench: Workbench) -> None:
        self._layout = bench.layout
        self._user = service_user("mosquitto")
        (self._port,) = free_ports(1)
        self.gateway_enabled = False

    def prepare(self) -> None:
        """Write configuration, ACL and the accounts that may connect now."""
        folder = self._folder()
        self.write_accounts(gateway=False)
        write_private(folder / "acl", ACL, self._user)
        write_private(folder / "mosquitto.conf", render_configuration(self._port, folder), self._user)

    def processes(self) -> Sequence[ServerProcess]:
        """One process."""
        folder = self._folder()
        return [
            ServerProcess(
                "mqtt",
                [str(programs.program("mosquitto")), "-c", str(folder / "mosquitto.conf")],
                self._layout.log("mqtt"),
                folder,
                user=self._user,
                # Even without a keeper it may write its queue to disk.
                death_signal=signal.SIGTERM,
            )
        ]

    def ask(self) -> str:
        """It serves when the pipeline's account is let in."""
        code = ask_mqtt(LOOPBACK, self._port, PIPELINE, password_of(self._layout, "mqtt-pipeline"))
        return "" if code == ACCEPTED else f"CONNACK {code}"

    def settle(self) -> None:
        """Nothing: the files say it all."""

    def write_accounts(self, *, gateway: bool) -> None:
        """Replace the password file; the broker reads it at start and on SIGHUP."""
        users = (PIPELINE, GATEWAY) if gateway else (PIPELINE,)
        passwords = {user: password_of(self._layout, f"mqtt-{user}") for user in (PIPELINE, GATEWAY)}
        entries = [mosquitto_entry(user, passwords[user]) for user in users]
        write_private(self._folder() / "accounts", "\n".join(entries) + "\n", self._user)
        self.gateway_enabled = gateway

    def gateway_is_let_in(self) -> bool:
        """Ask the broker about the gateways' account."""
        password = password_of(self._layout, "mqtt-gateway")
        return ask_mqtt(LOOPBACK, self._port, GATEWAY, password) == ACCEPTED

    def state(self) -> MqttState:
        """Return address and accounts."""
        return MqttState(
            host=LOOPBACK,
            port=self._port,
            username=PIPELINE,
            password_file=str(self._layout.password_file("mqtt-pipeline")),
            gateway_username=GATEWAY,
            gateway_password_file=str(self._layout.password_file("mqtt-gateway")),
            gateway_enabled=self.gateway_enabled,
            log=str(self._layout.log("mqtt")),
        )

    def _folder(self) -> Path:
        return self._layout.private("mosquitto", self._user)
