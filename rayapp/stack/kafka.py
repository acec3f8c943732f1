"""Apache Kafka from Maven Central, one broker or three, broker and controller in one process each.

No anonymous client: the client listener speaks SASL/PLAIN, its accounts stand in a 0600 properties
file; the controller listener stays plain on the loopback address. Three brokers give RF 3 with two
in-sync replicas, and a session time-out of 3 s, so that a killed one stalls producers for 3-4 s instead
of 9. Small on purpose: a 16 MB cleaner buffer, serial GC and warnings only keep a broker near 200 MB.
A killed broker starts again on the same ports and data.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayapp.stack import programs
from rayapp.stack.component import Workbench
from rayapp.stack.downloads import obtain
from rayapp.stack.errors import StackError
from rayapp.stack.java_archive import archive_flags
from rayapp.stack.kafka_probe import ask_kafka
from rayapp.stack.layout import write_private
from rayapp.stack.passwords import password_of
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import ServerProcess
from rayapp.stack.state import KafkaState

KAFKA_VERSION = "4.3.1"
CLIENT_ACCOUNT, BROKER_ACCOUNT = "pipeline", "broker"
FORMAT_DEADLINE_S = 60.0
# kafka-tools without its own dependencies: 44 instead of 54 MB. No slf4j binding comes with Kafka.
ARTEFACTS = (
    ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION, False),
    ("org.apache.kafka", "kafka-tools", KAFKA_VERSION, True),
    ("com.fasterxml.jackson.dataformat", "jackson-dataformat-csv", "2.21.2", False),
    ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4", False),
)
LOG4J = """\
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=warn
rootLogger.appenderRef.out.ref=out
"""


@dataclass(frozen=True)
class BrokerPlace:
    """One broker's identity, ports and folder."""

    node_id: int
    client_port: int
    controller_port: int
    folder: Path
    proxied_port: int | None = None
    proxy_port: int | None = None


def render_pom() -> str:
    """Return the Maven project that names Kafka's jars."""
    wildcard = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>"
    dependencies = "\n".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artefact}</artifactId>"
        f"<version>{version}</version>{wildcard if alone else ''}</dependency>"
        for group, artefact, version, alone in ARTEFACTS
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>local</groupId><artifactId>kafka-jars</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>\n{dependencies}\n</dependencies></project>\n"
    )


def render_server(place: BrokerPlace, all_places: Sequence[BrokerPlace], accounts: dict[str, str]) -> str:
    """Return one broker's properties; they hold passwords, so the file must be 0600."""
    replicas = len(all_places)
    voters = ",".join(f"{one.node_id}@{LOOPBACK}:{one.controller_port}" for one in all_places)
    users = " ".join(f'user_{name}="{password}"' for name, password in accounts.items())
    listeners = [f"CLIENT://{LOOPBACK}:{place.client_port}"]
    advertised = list(listeners)
    protocols = ["CLIENT:SASL_PLAINTEXT", "CONTROLLER:PLAINTEXT"]
    if place.proxied_port is not None:
        # Clients leave a proxy after the first answer unless the address they are told is the proxy's again.
        listeners.append(f"PROXIED://{LOOPBACK}:{place.proxied_port}")
        advertised.append(f"PROXIED://{LOOPBACK}:{place.proxy_port}")
        protocols.append("PROXIED:SASL_PLAINTEXT")
    login = (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        f'username="{BROKER_ACCOUNT}" password="{accounts[BROKER_ACCOUNT]}" {users};'
    )
    lines = {
        "process.roles": "broker,controller",
        "node.id": place.node_id,
        "controller.quorum.voters": voters,
        "listeners": ",".join([*listeners, f"CONTROLLER://{LOOPBACK}:{place.controller_port}"]),
        "advertised.listeners": ",".join(advertised),
        "listener.security.protocol.map": ",".join(protocols),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENT",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": login,
        **({"listener.name.proxied.plain.sasl.jaas.config": login} if place.proxied_port is not None else {}),
        "log.dirs": place.folder / "log",
        "auto.create.topics.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": min(2, replicas),
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 5,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": min(2, replicas),
        "transaction.state.log.num.partitions": 5,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": min(2, replicas),
        "group.initial.rebalance.delay.ms": 0,
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 500,
        "log.cleaner.dedupe.buffer.size": 16777216,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "message.max.bytes": 1048588,
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def new_cluster_id() -> str:
    """Return a random Kafka uuid; a leading dash would read as an option."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


class Kafka:
    """The brokers of one stack."""

    name = "kafka"

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._layout = bench.layout
        self._flags: tuple[str, ...] = ()
        self._jars = Path()
        self._cluster_id = ""
        self._places: tuple[BrokerPlace, ...] = ()
        self._accounts: dict[str, str] = {}

    def prepare(self) -> None:
        """Fetch the jars, write configuration, format the log folders that are new."""
        count = self._bench.options.brokers
        each = 4 if self._bench.options.kafka_proxied else 2
        ports = free_ports(each * count)
        folder = self._layout.private("kafka")
        self._places = tuple(
            BrokerPlace(number + 1, own[0], own[1], folder / str(number + 1), *own[2:])
            for number, own in enumerate(ports[each * at : each * at + each] for at in range(count))
        )
        self._accounts = {name: password_of(self._layout, f"kafka-{name}") for name in (CLIENT_ACCOUNT, BROKER_ACCOUNT)}
        self._jars = obtain(f"kafka-{KAFKA_VERSION}", self._fetch, self._bench.options.download_deadline_s)
        write_private(folder / "log4j2.properties", LOG4J)
        self._flags = archive_flags(self._bench, f"kafka-{KAFKA_VERSION}", programs.java(), self._training, self._ask_training)
        identity = folder / "cluster.id"
        if not identity.exists():
            write_private(identity, new_cluster_id())
        self._cluster_id = identity.read_text(encoding="utf-8").strip()
        for place in self._places:
            self._format(place, self._places, self._cluster_id)

    def processes(self) -> Sequence[ServerProcess]:
        """One process a broker."""
        return [self._broker(place, self._flags) for place in self._places]

    def ask(self) -> str:
        """Every broker must see every broker."""
        for place in self._places:
            view = ask_kafka(LOOPBACK, place.client_port, CLIENT_ACCOUNT, self._accounts[CLIENT_ACCOUNT])
            if len(view.brokers) != len(self._places) or view.controller_id < 0:
                return f"broker {place.node_id} sees {len(view.brokers)} of {len(self._places)}"
        return ""

    def settle(self) -> None:
        """Nothing: topics belong to the pipeline."""

    def state(self) -> KafkaState:
        """Return addresses and account."""
        return KafkaState(
            bootstrap_servers=",".join(f"{LOOPBACK}:{one.client_port}" for one in self._places),
            username=CLIENT_ACCOUNT,
            password_file=str(self._layout.password_file(f"kafka-{CLIENT_ACCOUNT}")),
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            replication_factor=len(self._places),
            min_insync_replicas=min(2, len(self._places)),
            cluster_id=self._cluster_id,
            proxied=tuple(
                (one.proxy_port, one.proxied_port) for one in self._places if one.proxy_port is not None and one.proxied_port is not None
            ),
            log=str(self._layout.log("kafka-1")),
        )

    def _fetch(self, folder: Path) -> None:
        self._bench.say(f"downloading Kafka {KAFKA_VERSION} (57 MB, once)")
        pom = folder / "pom.xml"
        pom.write_text(render_pom(), encoding="utf-8")
        self._bench.run(
            ServerProcess(
                "kafka-download",
                [
                    str(programs.program("mvn")),
                    "-B",
                    "-q",
                    "-ntp",
                    "-C",
                    "-f",
                    str(pom),
                    "dependency:copy-dependencies",
                    "-DincludeScope=runtime",
                    f"-DoutputDirectory={folder / 'libs'}",
                ],
                self._layout.log("kafka-download"),
                folder,
            )
        )
        if not any((folder / "libs").glob(f"kafka-server-{KAFKA_VERSION}.jar")):
            raise StackError("kafka: Maven reported success but copied no broker jar")

    def _java(self, flags: Sequence[str]) -> list[str]:
        # An explicit, sorted class path: the class archive is bound to its order.
        jars = ":".join(str(jar) for jar in sorted((self._jars / "libs").glob("*.jar")))
        config = self._layout.private("kafka") / "log4j2.properties"
        return [str(programs.java()), "-XX:+UseSerialGC", "-Xshare:auto", *flags, f"-Dlog4j2.configurationFile={config}", "-cp", jars]

    def _broker(self, place: BrokerPlace, flags: Sequence[str]) -> ServerProcess:
        return ServerProcess(
            f"kafka-{place.node_id}",
            [*self._java(("-Xms64m", "-Xmx512m", *flags)), "kafka.Kafka", str(place.folder / "server.properties")],
            self._layout.log(f"kafka-{place.node_id}"),
            place.folder,
        )

    def _format(self, place: BrokerPlace, places: Sequence[BrokerPlace], cluster_id: str) -> None:
        place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        properties = place.folder / "server.properties"
        write_private(properties, render_server(place, places, self._accounts))
        if (place.folder / "log" / "meta.properties").exists():
            return
        self._bench.run(
            ServerProcess(
                f"kafka-format-{place.node_id}",
                [
                    *self._java(("-XX:TieredStopAtLevel=1", *self._flags)),
                    "kafka.tools.StorageTool",
                    "format",
                    "-t",
                    cluster_id,
                    "-c",
                    str(properties),
                ],
                self._layout.log(f"kafka-format-{place.node_id}"),
                place.folder,
            ),
            FORMAT_DEADLINE_S,
        )

    def _training(self, flags: Sequence[str]) -> ServerProcess:
        client_port, controller_port = free_ports(2)
        place = BrokerPlace(1, client_port, controller_port, self._layout.private("kafka") / "training")
        self._training_port = client_port
        self._format(place, [place], new_cluster_id())
        return self._broker(place, flags)

    def _ask_training(self) -> str:
        view = ask_kafka(LOOPBACK, self._training_port, CLIENT_ACCOUNT, self._accounts[CLIENT_ACCOUNT])
        return "" if view.brokers else "no broker registered"
