-- What the pipeline needs to know about itself: who may drive it, who owns a
-- slot or a partition, how far each partition is, and what the tags are.
-- Run by the owner role. Grants name roles that `rayapp db migrate` expects.

CREATE TYPE device_status AS ENUM ('ACTIVE', 'IDLE', 'MAINTENANCE', 'ERROR', 'UNKNOWN');

-- One row a pipeline. Whoever raised driver_epoch last is the driver; every
-- claim locks this row and compares, so two drivers never both claim.
CREATE TABLE pipelines (
    pipeline      text COLLATE "C" PRIMARY KEY,
    driver_epoch  bigint NOT NULL DEFAULT 0,
    driver_id     text NOT NULL DEFAULT '',
    started_at    timestamptz NOT NULL DEFAULT now(),
    heartbeat_at  timestamptz NOT NULL DEFAULT now(),
    status        jsonb NOT NULL DEFAULT '{}'  -- what the driver sees, for `rayapp status`
);

-- MQTT sessions outlive processes, so the slots that own them are rows: the
-- broker keeps feeding a session whose slot has merely disappeared.
CREATE TABLE slots (
    pipeline      text COLLATE "C" NOT NULL REFERENCES pipelines,
    role          text COLLATE "C" NOT NULL,
    slot          integer NOT NULL,
    owner         text NOT NULL DEFAULT '',
    driver_epoch  bigint NOT NULL DEFAULT 0,
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, role, slot)
);

-- Offsets live here and nowhere else. next_offset moves only in the
-- transaction that stores the rows below it. Counters conserve records:
-- records = stored + duplicate + dead.
CREATE TABLE ingest_ledger (
    pipeline       text COLLATE "C" NOT NULL REFERENCES pipelines,
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL,
    cluster_id     text NOT NULL,
    topic_id       text NOT NULL,
    epoch          bigint NOT NULL DEFAULT 0,
    owner          text NOT NULL DEFAULT '',
    backend_pid    integer,
    backend_start  timestamptz,
    next_offset    bigint NOT NULL DEFAULT 0 CHECK (next_offset >= 0),
    leader_epoch   integer,
    records        bigint NOT NULL DEFAULT 0,
    stored         bigint NOT NULL DEFAULT 0,
    duplicate      bigint NOT NULL DEFAULT 0,
    other_gateway  bigint NOT NULL DEFAULT 0,
    dead           bigint NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, topic, partition),
    CONSTRAINT ledger_conserves CHECK (records = stored + duplicate + dead)
) WITH (fillfactor = 40);  -- room for HOT updates: this row changes with every batch

CREATE TABLE detector_snapshots (
    pipeline               text COLLATE "C" NOT NULL,
    topic                  text COLLATE "C" NOT NULL,
    partition              integer NOT NULL,
    epoch                  bigint NOT NULL,
    position               bigint NOT NULL,
    configuration_version  text NOT NULL,
    state                  bytea NOT NULL,
    taken_at               timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline, topic, partition)
);

-- What is constant per device, in versions. Rows come from configuration,
-- never from readings, so that replaying Kafka cannot change them.
CREATE TABLE devices (
    device_id         text COLLATE "C" NOT NULL,
    valid_from        timestamptz NOT NULL DEFAULT '-infinity',
    latitude          double precision,
    longitude         double precision,
    building          text COLLATE "C",
    floor             integer,
    zone              text COLLATE "C",
    room              text COLLATE "C",
    firmware_version  text COLLATE "C",
    device_metadata   jsonb,
    tags              text[] COLLATE "C",
    created_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (device_id, valid_from)
);

GRANT SELECT, INSERT, UPDATE ON pipelines, slots TO ruuvi_driver;
GRANT SELECT, INSERT, UPDATE ON ingest_ledger TO ruuvi_driver;
GRANT SELECT ON pipelines, slots, ingest_ledger TO ruuvi_writer, ruuvi_reader;
GRANT UPDATE (backend_pid, backend_start, next_offset, leader_epoch, records, stored, duplicate,
              other_gateway, dead, updated_at) ON ingest_ledger TO ruuvi_writer;
GRANT SELECT, INSERT, UPDATE ON detector_snapshots TO ruuvi_writer;
GRANT SELECT, INSERT ON devices TO ruuvi_writer;
GRANT SELECT ON devices TO ruuvi_reader;
