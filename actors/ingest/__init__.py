"""Ingest: MQTT messages become Kafka records; PUBACK follows Kafka's acknowledgement."""
