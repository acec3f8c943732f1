"""Which partition a reading belongs to: murmur2 of the tag's MAC, as Kafka's own partitioner hashes keys.

The key of a record is its device_id (one sensor), but the hash is taken over
the MAC alone, so that all readings of a tag, and of one message, meet on one
partition and one detector sees the whole tag. Foreign producers that hash the
whole key put records elsewhere; consume stores and counts those.
"""

from __future__ import annotations

from functools import lru_cache


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of `data`, unsigned (Utils.murmur2 of Apache Kafka, seed 0x9747b28c)."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


@lru_cache(maxsize=65_536)
def partition_of(mac: str, partitions: int) -> int:
    """Return the partition of a tag; `mac` is the device_id up to its first underscore."""
    return (murmur2(mac.encode()) & 0x7FFFFFFF) % partitions
