-- A partition that may go no further without a person's decision, and dead
-- letters by reason, both in the ledger so that they survive every kill.

ALTER TABLE ingest_ledger ADD COLUMN halted text;           -- why; NULL = goes on
ALTER TABLE ingest_ledger ADD COLUMN halted_at timestamptz;
ALTER TABLE ingest_ledger ADD COLUMN first_offset bigint;   -- where counting began; NULL in rows older than this column

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
