"""A thread of the driver that looks at the ledger and at Kafka's ends every few seconds.

Both servers may take their time to answer or not answer at all; the supervisor's
loop must not wait for them. It takes the latest look from here. While a server
is away the last look stays, and says how old it is.
"""

from __future__ import annotations

import threading
import time

from actors.adapters.kafka import TopicIdentity, Topics
from actors.adapters.postgres import Connection, connect
from rayapp.books import Ledger, PartitionBooks, news
from rayapp.claims import made_anew
from rayapp.config import Settings
from rayapp.errors import DependencyUnavailable, RayappError
from rayapp.log import Events

LOOK_EVERY_S = 3.0
IDENTITY_EVERY_S = 30.0

_events = Events(__name__)


class LedgerWatch:
    """Looks until stopped.

    Args:
        identity: of the readings topic when the driver started; compared again and again, because a topic can be made anew.
    """

    def __init__(self, settings: Settings, topics: Topics, identity: TopicIdentity) -> None:
        self._settings = settings
        self._topics = topics
        self._identity = identity
        self._connection: Connection | None = None
        self._identity_due_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-watch", daemon=True)
        self.latest: Ledger | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    @property
    def identity(self) -> TopicIdentity:
        """The readings topic's identity as last seen."""
        return self._identity

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                seen = self.look(time.monotonic())
            except DependencyUnavailable as error:
                _events.warning("ledger_look_waits", error=str(error))
                continue
            except RayappError as error:
                _events.error("ledger_look_failed", error=str(error))
                continue
            for event, partition, words in news(self.latest, seen):
                report = _events.warning if event in ("offsets_without_record", "partition_resumed") else _events.error
                report(event, partition=partition, words=words)
            self.latest = seen

    def look(self, now_s: float) -> Ledger:
        """Read ledger and ends once.

        Raises:
            DependencyUnavailable: the database or Kafka is away.
        """
        kafka = self._settings.kafka
        if now_s >= self._identity_due_s:
            self._identity = self._topics.identity()
            self._identity_due_s = now_s + IDENTITY_EVERY_S
        if self._connection is None or self._connection.closed:
            self._connection = connect(
                self._settings.database,
                "driver",
                application=f"{self._settings.pipeline} ledger watch",
                autocommit=True,
                answer_timeout_s=self._settings.database.answer_timeout_s,
            )
        rows = self._connection.execute(
            "SELECT partition, epoch, owner, next_offset, counted_from, records, stored, duplicate, other_gateway, dead, halted,"
            " cluster_id, topic_id FROM ingest_ledger WHERE pipeline = %s AND topic = %s",
            (self._settings.pipeline, kafka.topic),
        )
        # Ends after the ledger: what the ledger has passed is below them.
        ends = self._topics.offsets(kafka.topic, kafka.partitions)
        identity = self._identity
        found = {}
        for partition, epoch, owner, next_offset, counted_from, records, stored, duplicate, other, dead, halted, *known in rows:
            same = tuple(known) == (identity.cluster_id, identity.topic_id)
            found[int(partition)] = PartitionBooks(
                partition=int(partition),
                epoch=epoch,
                owner=owner,
                next_offset=next_offset,
                counted_from=counted_from if counted_from is not None else next_offset - records,
                records=records,
                stored=stored,
                duplicate=duplicate,
                other_gateway=other,
                dead=dead,
                end=ends[partition][1] if partition in ends else None,
                halted=halted if same or halted is not None else made_anew(kafka.topic, partition, (known[0], known[1]), identity),
            )
        return Ledger(now_s, found)
