-- A partition that may go no further without a person's decision, and dead
-- letters by reason, both in the ledger so that they survive every kill.

ALTER TABLE ingest_ledger ADD COLUMN halted text;           -- why; NULL = goes on
ALTER TABLE ingest_ledger ADD COLUMN halted_at timestamptz;
ALTER TABLE ingest_ledger ADD COLUMN counted_from bigint;   -- next_offset - records while no offset is without a record; moves when a person moves next_offset

-- Written in the transaction of the batch that holds the dead letters.
CREATE TABLE ledger_dead_reasons (
    pipeline   text COLLATE "C" NOT NULL,
    topic      text COLLATE "C" NOT NULL,
    partition  integer NOT NULL,
    reason     text COLLATE "C" NOT NULL,
    dead       bigint NOT NULL,
    PRIMARY KEY (pipeline, topic, partition, reason),
    FOREIGN KEY (pipeline, topic, partition) REFERENCES ingest_ledger
);

-- Slots may retire: the driver deletes the row once the session at the broker is gone.
GRANT DELETE ON slots TO ruuvi_driver;
GRANT UPDATE (halted, halted_at) ON ingest_ledger TO ruuvi_writer;
GRANT SELECT, INSERT, UPDATE ON ledger_dead_reasons TO ruuvi_writer;
GRANT SELECT ON ledger_dead_reasons TO ruuvi_driver, ruuvi_reader;

UPDATE ingest_ledger SET counted_from = next_offset - records;

-- What people decided about partitions: halted ones resumed, positions moved.
CREATE TABLE partition_decisions (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text COLLATE "C" NOT NULL,
    topic        text COLLATE "C" NOT NULL,
    partition    integer NOT NULL,
    decided_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    decided_by   text NOT NULL,
    why          text NOT NULL,
    halted       text,               -- the reason that was overruled
    from_offset  bigint NOT NULL,
    to_offset    bigint NOT NULL
);
GRANT SELECT, INSERT ON partition_decisions TO ruuvi_driver;
GRANT SELECT ON partition_decisions TO ruuvi_reader;
-- A position that a person moved makes the detector's state of the old one worthless.
GRANT DELETE ON detector_snapshots TO ruuvi_driver;
GRANT SELECT ON detector_snapshots TO ruuvi_driver;
