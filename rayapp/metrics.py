"""Metrics of the fleet through Ray's Prometheus exporter, under the document's names.

The driver exports what actors report in status(): one place, one label set,
and an actor's hot loop pays for a dictionary entry only. Counters are exported
as differences, so an actor's restart does not make a total fall. Gauges are set
again at every publish, because Ray forgets a gauge that is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ray.util.metrics import Counter, Gauge

from actors.base import Status
from rayapp.model import Slot

_TAGS = ("role", "slot")


class FleetMetrics:
    """Counters and gauges of all slots."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._up = Gauge("iot_slot_up", "1 while the slot's actor is running or blocked on a dependency, else 0", tag_keys=_TAGS)
        self._replacements = Counter("iot_actor_replacements_total", "actors that ended, drained or not", tag_keys=("role",))

    def actor_ended(self, name: str) -> None:
        """Count an end and forget the actor's last values."""
        self._replacements.inc(1, {"role": name.partition("/")[0]})
        self._seen = {key: value for key, value in self._seen.items() if key[0] != name}

    def publish(self, slots: Iterable[Slot], statuses: Mapping[str, Status]) -> None:
        """Export one look at the fleet."""
        for slot in slots:
            self._up.set(1.0 if slot.state in ("running", "blocked") else 0.0, {"role": slot.key.role, "slot": str(slot.key.index)})
        for name, status in statuses.items():
            role, _, rest = name.partition("/")
            tags = {"role": role, "slot": rest.partition("#")[0]}
            for metric, total in status.counters.items():
                increase = total - self._seen.get((name, metric), 0)
                self._seen[name, metric] = total
                if increase > 0:
                    if metric not in self._counters:
                        self._counters[metric] = Counter(metric, f"{metric} of the {role} actors", tag_keys=_TAGS)
                    self._counters[metric].inc(increase, tags)
            for metric, value in status.gauges.items():
                if metric not in self._gauges:
                    self._gauges[metric] = Gauge(metric, f"{metric} of the {role} actors", tag_keys=_TAGS)
                self._gauges[metric].set(value, tags)
