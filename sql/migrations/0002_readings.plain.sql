-- The readings, without TimescaleDB: one range partition a UTC day, made ahead
-- by ensure_day() and dropped whole. The file beside this one (timescaledb)
-- makes the same table as a hypertable; the server decides which one runs.

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
) PARTITION BY RANGE (timestamp);

ALTER SEQUENCE sensor_readings_id_seq OWNED BY sensor_readings.id;

-- Make the partition of one UTC day if it is not there. The writer may call it
-- (late readings), although it has no DDL rights of its own. The table is made
-- apart and attached, because CREATE ... PARTITION OF would lock the parent
-- against every writer.
CREATE FUNCTION ensure_day(day date) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    child text := 'sensor_readings_' || to_char(day, 'YYYYMMDD');
    low timestamptz := day::timestamp AT TIME ZONE 'UTC';
    high timestamptz := (day + 1)::timestamp AT TIME ZONE 'UTC';
BEGIN
    IF day < current_date - 4000 OR day > current_date + 400 THEN
        RAISE EXCEPTION 'ensure_day(%): outside current_date -4000 .. +400 days', day;
    END IF;
    IF to_regclass(child) IS NOT NULL THEN RETURN false; END IF;
    PERFORM pg_advisory_xact_lock(hashtext('ensure_day'));
    IF to_regclass(child) IS NOT NULL THEN RETURN false; END IF;
    EXECUTE format('CREATE TABLE %I (LIKE sensor_readings INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child);
    EXECUTE format('ALTER TABLE sensor_readings ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', child, low, high);
    RETURN true;
END $$;
REVOKE ALL ON FUNCTION ensure_day(date) FROM public;
GRANT EXECUTE ON FUNCTION ensure_day(date) TO ruuvi_writer, ruuvi_driver;
