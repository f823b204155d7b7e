-- Version 5. Users; a removed one keeps the name. `role`: name of a role.
CREATE TABLE users (
    tenant TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT,
    PRIMARY KEY (tenant, name)
);
-- Objects that somebody has sent whole, for those who may not read everybody's.
CREATE TABLE possessions (
    tenant TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    object BYTEA NOT NULL,
    PRIMARY KEY (tenant, owner, object)
);
-- `copied`: whether the content store has the dataset. `about`: JSON of what
-- people say of it; NULL when that is nothing.
ALTER TABLE datasets ADD COLUMN copied BIGINT NOT NULL DEFAULT 0;
ALTER TABLE datasets ADD COLUMN about TEXT COLLATE "C";
-- Signed statements about repetitions: the envelope and who signed it; NULL
-- until somebody did.
ALTER TABLE reproductions ADD COLUMN statement TEXT;
ALTER TABLE reproductions ADD COLUMN signer TEXT;
-- Last values of metrics, so that runs are found by them. `value`: the number
-- as an integer of the same order, not-a-number largest (last_values.rs), as `lowest`
-- and `highest` are; `run`: its seq. Filled from the runs by the program, which knows that order.
CREATE TABLE last_values (
    name TEXT COLLATE "C" NOT NULL,
    value BIGINT NOT NULL,
    run BIGINT NOT NULL,
    lowest BIGINT NOT NULL,
    highest BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    PRIMARY KEY (name, value, run)
);
-- Runs of whose end somebody is told. `life`: how often the run was put back after that.
CREATE TABLE tellings (
    run TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    life BIGINT NOT NULL,
    state BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    message TEXT COLLATE "C" NOT NULL,
    time BIGINT NOT NULL
);
CREATE INDEX tellings_state ON tellings (state, time);
