"""Consume: pinned partitions of Kafka become Arrow batches that go through detect to write."""
