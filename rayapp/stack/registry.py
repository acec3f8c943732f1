"""Apicurio as the schema registry, speaking the Confluent API, its schemas in an H2 file.

H2 in a file costs nothing against memory storage and survives a kill and a restart, so chaos tests may
kill it. Its global compatibility default is NONE, which would let an incompatible schema in without a
word: `settle` sets BACKWARD after every start and reads it back.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from rayapp.stack import programs
from rayapp.stack.component import Workbench
from rayapp.stack.downloads import obtain
from rayapp.stack.errors import StackError
from rayapp.stack.http_probe import ask_http
from rayapp.stack.java_archive import archive_flags
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import ServerProcess
from rayapp.stack.state import RegistryState

APICURIO_VERSION = "3.0.9"  # 3.3 wants Java 21
COMPATIBILITY = "BACKWARD"


class Registry:
    """The schema registry of one stack."""

    name = "registry"

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._layout = bench.layout
        (self._port,) = free_ports(1)
        self._program = Path()
        self._flags: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Fetch and unpack the server."""
        self._program = obtain(f"apicurio-{APICURIO_VERSION}", self._fetch, self._bench.options.download_deadline_s)
        self._flags = archive_flags(self._bench, f"apicurio-{APICURIO_VERSION}", programs.java(), self._training, self._ask_training)

    def processes(self) -> Sequence[ServerProcess]:
        """One Java process."""
        return [self._server(self._port, self._layout.private("registry") / "schemas", self._flags)]

    def ask(self) -> str:
        """A registry serves when it can list subjects."""
        return self._ask(self._port)

    def settle(self) -> None:
        """Refuse incompatible schemas from now on."""
        url = f"{self._url(self._port)}/config"
        ask_http(url, method="PUT", body={"compatibility": COMPATIBILITY})
        status, answer = ask_http(url)
        if status != 200 or answer.get("compatibilityLevel") != COMPATIBILITY:
            raise StackError(f"registry: compatibilityLevel={answer!r} after setting it; must be {COMPATIBILITY}")

    def state(self) -> RegistryState:
        """Return the URL."""
        return RegistryState(url=self._url(self._port), log=str(self._layout.log("registry")))

    @staticmethod
    def _url(port: int) -> str:
        return f"http://{LOOPBACK}:{port}/apis/ccompat/v7"

    def _ask(self, port: int) -> str:
        status, answer = ask_http(f"{self._url(port)}/subjects")
        return "" if status == 200 and isinstance(answer, list) else f"HTTP {status}"

    def _fetch(self, folder: Path) -> None:
        self._bench.say(f"downloading Apicurio Registry {APICURIO_VERSION} (109 MB, once)")
        self._bench.run(
            ServerProcess(
                "registry-download",
                [
                    str(programs.program("mvn")),
                    "-B",
                    "-q",
                    "-ntp",
                    "-C",
                    "dependency:copy",
                    f"-Dartifact=io.apicurio:apicurio-registry-app:{APICURIO_VERSION}:tar.gz:all",
                    f"-DoutputDirectory={folder}",
                ],
                self._layout.log("registry-download"),
                folder,
            )
        )
        archive = folder / f"apicurio-registry-app-{APICURIO_VERSION}-all.tar.gz"
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")  # filter refuses paths outside
        archive.unlink()

    def _server(self, port: int, database: Path, flags: Sequence[str]) -> ServerProcess:
        return ServerProcess(
            "registry",
            [
                str(programs.java()),
                "-Xms64m",
                "-Xmx256m",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Xshare:auto",
                *flags,
                f"-Dquarkus.http.host={LOOPBACK}",
                f"-Dquarkus.http.port={port}",
                "-Dquarkus.http.access-log.enabled=false",
                "-Dquarkus.log.level=WARN",
                "-Dapicurio.storage.kind=sql",
                "-Dapicurio.storage.sql.kind=h2",
                f"-Dapicurio.datasource.url=jdbc:h2:file:{database}",
                "-jar",
                str(self._program / f"apicurio-registry-app-{APICURIO_VERSION}-runner.jar"),
            ],
            self._layout.log("registry"),
            self._layout.private("registry"),
        )

    def _training(self, flags: Sequence[str]) -> ServerProcess:
        (self._training_port,) = free_ports(1)
        return self._server(self._training_port, self._layout.private("registry") / "training", flags)

    def _ask_training(self) -> str:
        return self._ask(self._training_port)
