"""How large queues and windows must be, from the load: the one place where limits are derived.

A limit is a statement about an outage. The broker queues for every slot as long as the pipeline is away;
a slot holds what Kafka has not confirmed yet; Kafka keeps what is not stored yet. Each of them must hold
rate x time, and somebody must have the memory or the disk for it. Pure arithmetic: Mosquitto's
configuration and the settings' defaults are computed from `Load()`, a person computes their own.

    Load(messages_per_s=10_000, outage_s=300, slots=1)
      max_queued_messages   10,000 x 300 / 1                   = 3,000,000 messages for each slot's session
      queue_memory_bytes    3,000,000 x (2 x 350 + 420)        = 3.4 GB, at the end of the outage and of catching up
      queue_disk_bytes      3,000,000 x (350 + 72) x 2         = 2.5 GB, a snapshot and its successor
      receive_maximum       10,000 / 1 x 0.6                   = 6,000 messages
      held_max_messages     2 x 6,000                          = 12,000 messages
      held_max_bytes        2 x 12,000 x (350 + 9 x 270)       = 67 MB
      retention_bytes       90,000 x 270 x 7 days / 6 x 2      = 4.9 TB for each of 6 partitions, before compression
"""

from __future__ import annotations

import math
from dataclasses import dataclass

RECEIVE_MAXIMUM_LIMIT = 65_535
"""MQTT 5 counts in 16 bits."""
QUEUED_OVERHEAD_BYTES = 340
"""Mosquitto 2.0.11, measured: 688 bytes of memory for a queued message of 350."""
SENT_OVERHEAD_BYTES = 80
"""The same for the packet of a message that is sent and not read yet: a second copy beside the queued one."""
SNAPSHOT_OVERHEAD_BYTES = 72
"""The same in its persistence file."""
ACK_LATENCY_S = 0.6
"""The longest time from a message's arrival to its PUBACK that must not slow the broker down: flush, linger, a slow disk."""


@dataclass(frozen=True)
class Load:
    """What the pipeline has to carry, and for how long somebody else has to hold it.

    Attributes:
        messages_per_s: of all gateways together.
        outage_s: the longest time without the pipeline that must not lose anything.
        slots: ingest slots; the broker gives each the same share.
        message_bytes: payload of one MQTT message.
        readings_per_message: Kafka records made of one message.
        record_bytes: one of them, framed, before compression.
    """

    messages_per_s: float = 10_000
    outage_s: float = 300
    slots: int = 1
    message_bytes: int = 350
    readings_per_message: int = 9
    record_bytes: int = 270

    def __post_init__(self) -> None:
        if min(self.messages_per_s, self.outage_s, self.slots, self.message_bytes, self.readings_per_message, self.record_bytes) <= 0:
            raise ValueError(f"a load has no zero and no negative parts: {self}")


def max_queued_messages(load: Load) -> int:
    """Return Mosquitto's max_queued_messages, which it counts for each session: a slot's share of rate x outage.

    Beyond it the broker drops new messages and acknowledges them to the gateway all the same.
    """
    return math.ceil(load.messages_per_s * load.outage_s / load.slots)


def queue_memory_bytes(load: Load) -> int:
    """Return the memory that full queues of all slots take in the broker.

    A message that is sent and not read yet is there twice, and after an outage
    Mosquitto 2.0.11 sends all it has as soon as PUBACKs come.
    """
    return load.slots * max_queued_messages(load) * (2 * load.message_bytes + QUEUED_OVERHEAD_BYTES + SENT_OVERHEAD_BYTES)


def queue_disk_bytes(load: Load) -> int:
    """Return the disk that the broker's snapshots of full queues take: the last one, and the next while it is written."""
    return load.slots * max_queued_messages(load) * (load.message_bytes + SNAPSHOT_OVERHEAD_BYTES) * 2


def receive_maximum(load: Load, ack_latency_s: float = ACK_LATENCY_S) -> int:
    """Return the window of a slot: what its share of the rate brings within the longest usual time to PUBACK."""
    return max(1, min(RECEIVE_MAXIMUM_LIMIT, math.ceil(load.messages_per_s / load.slots * ack_latency_s)))


def held_max_messages(window: int) -> int:
    """Return how many messages a slot may hold: a window of a lost connection on its way to Kafka, and one of the new."""
    return 2 * window


def held_max_bytes(load: Load, window: int) -> int:
    """Return how many bytes a slot may hold in payloads and records: twice what usual messages in that number take."""
    return 2 * held_max_messages(window) * (load.message_bytes + load.readings_per_message * load.record_bytes)


def retention_bytes(load: Load, retention_s: float, partitions: int) -> int:
    """Return Kafka's retention.bytes, which it counts for each partition.

    Twice the even share, because tags hash unevenly; before compression, so that
    retention.ms decides and this is the last bound of the disk.
    """
    records_bytes_per_s = load.messages_per_s * load.readings_per_message * load.record_bytes
    return math.ceil(2 * records_bytes_per_s * retention_s / partitions)
