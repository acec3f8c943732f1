"""A pipeline whose actors reach their servers through a proxy that can misbehave.

Everything else is a PipelineSession: the judge and the watch use the servers'
own addresses, so that a fault of the network does not blind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayapp.bench.session import PipelineSession
from rayapp.chaos.network import Network
from rayapp.local import write_settings


class ChaosSession(PipelineSession):
    """A session on servers of its own, with a network in between."""

    def __init__(self, folder: Path, **others: Any) -> None:
        super().__init__(folder, **others)
        self.network: Network | None = None

    def prepare(self) -> None:
        """Write the settings twice: direct ones for us, proxied ones for the job."""
        super().prepare()
        self.network = Network(self.state)
        overrides: dict[str, Any] = {"latency_dir": str(self.latency_folder), **self._overrides}
        for section, values in self.network.overrides().items():
            overrides[section] = {**overrides.get(section, {}), **values}
        self.config_path = self.run_folder / "proxied.yaml"
        write_settings(self.state, self.config_path, overrides)

    def close(self) -> None:
        """End the pipeline, then the network."""
        super().close()
        if self.network is not None:
            self.network.close()
            self.network = None
