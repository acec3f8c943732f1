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
from rayapp.books import Ledger
from rayapp.model import Slot

_TAGS = ("role", "slot")


class FleetMetrics:
    """Counters and gauges of all slots."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._up = Gauge("iot_slot_up", "1 while the slot's actor is running or blocked on a dependency, else 0", tag_keys=_TAGS)
        self._ledger = Gauge(
            "iot_ledger_records", "records the ledger has passed, by what became of them", tag_keys=("partition", "outcome")
        )
        self._in_flight = Gauge("iot_ledger_in_flight", "records that Kafka has and the ledger has not passed", tag_keys=("partition",))
        self._gaps = Gauge("iot_ledger_offsets_without_record", "offsets passed without a record", tag_keys=("partition",))
        self._halted = Gauge("iot_partition_halted", "1 while the partition waits for an operator", tag_keys=("partition",))
        self._problems = Gauge("iot_ledger_problems", "broken equations of the ledger; anything but 0 is an alarm")
        self._letters = Counter("iot_dead_letters_total", "dead letters by reason", tag_keys=("role", "reason"))
        self._replacements = Counter("iot_actor_replacements_total", "actors that ended, drained or not", tag_keys=("role",))

    def actor_ended(self, name: str) -> None:
        """Count an end and forget the actor's last values."""
        self._replacements.inc(1, {"role": name.partition("/")[0]})
        self._seen = {key: value for key, value in self._seen.items() if key[0] != name}

    def publish(self, slots: Iterable[Slot], statuses: Mapping[str, Status], ledger: Ledger | None) -> None:
        """Export one look at the fleet and, when there is one, at the ledger."""
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
            for reason, total in status.reasons.items():
                key = (name, f"reason {reason}")
                if total > self._seen.get(key, 0):
                    self._letters.inc(total - self._seen.get(key, 0), {"role": role, "reason": reason})
                    self._seen[key] = total
        if ledger is not None:
            self._publish_ledger(ledger)

    def _publish_ledger(self, ledger: Ledger) -> None:
        for row in ledger.partitions.values():
            partition = str(row.partition)
            for outcome in ("stored", "duplicate", "other_gateway", "dead"):
                self._ledger.set(getattr(row, outcome), {"partition": partition, "outcome": outcome})
            self._in_flight.set(row.in_flight, {"partition": partition})
            self._gaps.set(row.offsets_without_record, {"partition": partition})
            self._halted.set(1.0 if row.halted is not None else 0.0, {"partition": partition})
        self._problems.set(sum(len(row.problems) for row in ledger.partitions.values()))
