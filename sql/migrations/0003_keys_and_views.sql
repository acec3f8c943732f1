-- The natural key, the indexes that earn their price, rights, and the view
-- that puts a reading and its device together again.

-- Exactly once rests on this key: the same reading sent again is the same row.
CREATE UNIQUE INDEX sensor_readings_natural_key ON sensor_readings (device_id, timestamp);
CREATE INDEX sensor_readings_by_type ON sensor_readings (device_type, timestamp DESC);
CREATE INDEX sensor_readings_anomalies ON sensor_readings (timestamp DESC) WHERE is_anomaly;
-- Partial: almost every reading leaves these to its device, and GIN costs most of all.
CREATE INDEX sensor_readings_metadata ON sensor_readings USING gin (device_metadata) WHERE device_metadata IS NOT NULL;
CREATE INDEX sensor_readings_tags ON sensor_readings USING gin (tags) WHERE tags IS NOT NULL;

-- A reading's own place, firmware, metadata and tags are stored only when they
-- differ from its device's (overrides_device); everything else comes from the
-- version of the device that was valid when the reading was taken.
CREATE VIEW readings AS
SELECT r.id, r.device_id, r.device_type, r.timestamp, r.value, r.unit,
       CASE WHEN r.overrides_device THEN r.latitude ELSE d.latitude END AS latitude,
       CASE WHEN r.overrides_device THEN r.longitude ELSE d.longitude END AS longitude,
       CASE WHEN r.overrides_device THEN r.building ELSE d.building END AS building,
       CASE WHEN r.overrides_device THEN r.floor ELSE d.floor END AS floor,
       CASE WHEN r.overrides_device THEN r.zone ELSE d.zone END AS zone,
       CASE WHEN r.overrides_device THEN r.room ELSE d.room END AS room,
       r.battery_level, r.signal_strength,
       CASE WHEN r.overrides_device THEN r.firmware_version ELSE d.firmware_version END AS firmware_version,
       r.is_anomaly, r.status, r.maintenance_date,
       CASE WHEN r.overrides_device THEN r.device_metadata ELSE d.device_metadata END AS device_metadata,
       CASE WHEN r.overrides_device THEN r.tags ELSE d.tags END AS tags,
       r.gateway_id, r.measurement_sequence, r.received_at, r.created_at
FROM sensor_readings r
LEFT JOIN LATERAL (
    SELECT * FROM devices d
    WHERE d.device_id = r.device_id AND d.valid_from <= r.timestamp
    ORDER BY d.valid_from DESC LIMIT 1
) d ON true;

GRANT SELECT, INSERT ON sensor_readings TO ruuvi_writer;
GRANT USAGE ON SEQUENCE sensor_readings_id_seq TO ruuvi_writer;
GRANT SELECT ON sensor_readings, readings TO ruuvi_reader, ruuvi_driver;
