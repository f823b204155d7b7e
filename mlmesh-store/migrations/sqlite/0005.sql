-- Version 5. Users; a removed one keeps the name. `role`: name of a role.
CREATE TABLE users (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    removed_at INTEGER,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
-- Objects that somebody has sent whole, for those who may not read everybody's.
CREATE TABLE possessions (
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    object BLOB NOT NULL,
    PRIMARY KEY (tenant, owner, object)
) WITHOUT ROWID;
-- `copied`: whether the content store has the dataset. `about`: JSON of what
-- people say of it; NULL when that is nothing.
ALTER TABLE datasets ADD COLUMN copied INTEGER NOT NULL DEFAULT 0;
ALTER TABLE datasets ADD COLUMN about TEXT;
-- Signed statements about repetitions: the envelope and who signed it; NULL
-- until somebody did.
ALTER TABLE reproductions ADD COLUMN statement TEXT;
ALTER TABLE reproductions ADD COLUMN signer TEXT;
-- Last values of metrics, so that runs are found by them. `value`: the number
-- as an integer of the same order, not-a-number largest (last_values.rs), as `lowest`
-- and `highest` are; `run`: its seq. Filled from the runs by the program, which knows that order.
CREATE TABLE last_values (
    name TEXT NOT NULL,
    value INTEGER NOT NULL,
    run INTEGER NOT NULL,
    lowest INTEGER NOT NULL,
    highest INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    PRIMARY KEY (name, value, run)
) WITHOUT ROWID;
-- Runs of whose end somebody is told. `life`: how often the run was put back after that.
CREATE TABLE tellings (
    run TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    life INTEGER NOT NULL,
    state INTEGER NOT NULL,
    tries INTEGER NOT NULL,
    message TEXT NOT NULL,
    time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tellings_state ON tellings (state, time);
-- What searches look at, beside the rows: those are mostly a page each. The words for
-- what stands inside JSON are those of the searches (sqlite.rs), whose condition `phase >= 0`
-- keeps other statements from it.
CREATE INDEX runs_facts ON runs (
    tenant, seq, kind, parent, phase, queued_at, started_at, ended_at, owner, name, id, tree,
    CASE WHEN placement IS NOT NULL THEN COALESCE(json_extract(placement, '$.priority'), 0) END,
    COALESCE(json_extract(trust, '$.level'), json_type(trust)),
    json_extract(labels, '$.tags'),
    json_extract(plan, '$.params')
) WHERE phase >= 0;
