-- What people did with dead letters, and replays of Kafka into the table. Both
-- are tools beside the pipeline: neither touches the ledger.

-- The dead-letter topic cannot change; what became of a letter stands here.
-- No row: nothing was done with it yet.
CREATE TABLE dead_letter_states (
    pipeline  text COLLATE "C" NOT NULL,
    id        text COLLATE "C" NOT NULL,
    state     text COLLATE "C" NOT NULL CHECK (state IN ('replayed', 'dropped')),
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    by        text NOT NULL,
    reason    text NOT NULL DEFAULT '',
    copies    bigint NOT NULL,  -- in the topic at that time: more of them later = it was refused again
    PRIMARY KEY (pipeline, id)
);

-- One row a partition of a job. next_offset moves in the transaction that stores
-- the rows below it, so a job that was killed goes on where it was.
CREATE TABLE replay_jobs (
    job_id         text COLLATE "C" NOT NULL,
    pipeline       text COLLATE "C" NOT NULL,
    topic          text COLLATE "C" NOT NULL,
    partition      integer NOT NULL,
    from_offset    bigint NOT NULL CHECK (from_offset >= 0),
    next_offset    bigint NOT NULL,
    end_offset     bigint NOT NULL,
    cluster_id     text NOT NULL,
    topic_id       text NOT NULL,
    stored         bigint NOT NULL DEFAULT 0,
    duplicate      bigint NOT NULL DEFAULT 0,
    other_gateway  bigint NOT NULL DEFAULT 0,
    conflicts      bigint NOT NULL DEFAULT 0,
    dead           bigint NOT NULL DEFAULT 0,  -- records that are no readings: passed over, their dead letters exist since they first came
    state          text COLLATE "C" NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done')),
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (pipeline, job_id, partition),
    CHECK (from_offset <= next_offset AND next_offset <= end_offset)
);

GRANT SELECT, INSERT, UPDATE ON dead_letter_states TO ruuvi_driver;
-- The writer's account stores readings, so it moves the job's position, too.
GRANT SELECT, INSERT ON replay_jobs TO ruuvi_writer;
GRANT UPDATE (next_offset, stored, duplicate, other_gateway, conflicts, dead, state, updated_at) ON replay_jobs TO ruuvi_writer;
GRANT SELECT ON replay_jobs TO ruuvi_driver;
GRANT SELECT ON dead_letter_states, replay_jobs TO ruuvi_reader;
