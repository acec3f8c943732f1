-- The readings, with TimescaleDB: a hypertable of one-day chunks. Same columns
-- and names as the plain file beside this one; a test compares the two.

CREATE SEQUENCE sensor_readings_id_seq CACHE 10000;  -- 10000: nextval once per batch and backend, not per row

CREATE TABLE sensor_readings (
    id                    bigint NOT NULL DEFAULT nextval('sensor_readings_id_seq'),
    device_id             text COLLATE "C" NOT NULL,
    device_type           text COLLATE "C" NOT NULL,
    timestamp             timestamptz NOT NULL,
    value                 double precision,
    unit                  text COLLATE "C" NOT NULL,
    latitude              double precision,
    longitude             double precision,
    building              text COLLATE "C",
    floor                 integer,
    zone                  text COLLATE "C",
    room                  text COLLATE "C",
    battery_level         double precision,
    signal_strength       double precision,
    firmware_version      text COLLATE "C",
    is_anomaly            boolean NOT NULL DEFAULT false,
    status                device_status NOT NULL DEFAULT 'ACTIVE',
    maintenance_date      timestamptz,
    device_metadata       jsonb,
    tags                  text[] COLLATE "C",
    gateway_id            text COLLATE "C",
    measurement_sequence  bigint,
    received_at           timestamptz,
    overrides_device      boolean NOT NULL DEFAULT false,
    created_at            timestamptz NOT NULL DEFAULT now(),  -- the writer sends its clock at the COPY; a volatile default would make COPY insert row by row
    CONSTRAINT battery_level_percent CHECK (battery_level BETWEEN 0 AND 100),
    CONSTRAINT coordinates_paired CHECK ((latitude IS NULL) = (longitude IS NULL)),
    CONSTRAINT coordinates_in_range CHECK (latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180)
);

ALTER SEQUENCE sensor_readings_id_seq OWNED BY sensor_readings.id;

SELECT create_hypertable('sensor_readings', 'timestamp',
                         chunk_time_interval => INTERVAL '1 day', create_default_indexes => false);

-- TimescaleDB makes chunks by itself; the function exists so that callers need not know.
CREATE FUNCTION ensure_day(day date) RETURNS boolean
    LANGUAGE sql AS $$ SELECT false $$;
GRANT EXECUTE ON FUNCTION ensure_day(date) TO ruuvi_writer, ruuvi_driver;
