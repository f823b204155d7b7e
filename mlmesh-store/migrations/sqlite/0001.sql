-- Version 1. `runs.seq` is the run's place in the order of everything that was
-- committed; the event "queued" (or "sweep accepted") of a run has that sequence
-- and is read from the run's own row.
CREATE TABLE head (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    seq        INTEGER NOT NULL,
    audit_n    INTEGER NOT NULL,
    audit_hash BLOB NOT NULL,
    probe      INTEGER NOT NULL
);
INSERT INTO head (one, seq, audit_n, audit_hash, probe) VALUES (1, 0, 0, zeroblob(32), 0);

-- `kind`: 0 single, 1 parent, 2 child. `idx`: number of points of a parent, place
-- of a child. In a child NULL in name, tree, placement, git or trust means "as in
-- the parent's template", and `plan` holds only what differs from it.
CREATE TABLE runs (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    kind INTEGER NOT NULL,
    parent INTEGER,
    idx INTEGER,
    name TEXT,
    tree BLOB,
    plan TEXT,
    plan_sha256 BLOB NOT NULL,
    placement TEXT,
    git TEXT,
    template TEXT,
    phase INTEGER NOT NULL,
    cause TEXT,
    message TEXT,
    exit TEXT,
    attempts INTEGER NOT NULL,
    token INTEGER NOT NULL,
    node TEXT,
    queued_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    trust TEXT,
    metrics TEXT,
    outputs BLOB,
    manifest_sha256 BLOB,
    isolation TEXT
);
CREATE UNIQUE INDEX runs_id ON runs (id);
CREATE INDEX runs_points ON runs (parent, idx) WHERE parent IS NOT NULL;
CREATE INDEX runs_top ON runs (tenant, seq) WHERE parent IS NULL;
CREATE INDEX runs_phase ON runs (tenant, phase, seq) WHERE parent IS NULL;
CREATE INDEX runs_owner ON runs (tenant, owner, seq) WHERE parent IS NULL;
CREATE INDEX runs_live ON runs (seq) WHERE phase BETWEEN 1 AND 3 AND kind <> 1;

CREATE TABLE queue (
    seq        INTEGER PRIMARY KEY,
    not_before INTEGER
);

-- How many runs of a tenant, and points of a sweep, stand in each phase.
CREATE TABLE counts (
    tenant TEXT PRIMARY KEY,
    n0 INTEGER NOT NULL, n1 INTEGER NOT NULL, n2 INTEGER NOT NULL, n3 INTEGER NOT NULL,
    n4 INTEGER NOT NULL, n5 INTEGER NOT NULL, n6 INTEGER NOT NULL, n7 INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sweeps (
    parent INTEGER PRIMARY KEY,
    n0 INTEGER NOT NULL, n1 INTEGER NOT NULL, n2 INTEGER NOT NULL, n3 INTEGER NOT NULL,
    n4 INTEGER NOT NULL, n5 INTEGER NOT NULL, n6 INTEGER NOT NULL, n7 INTEGER NOT NULL
);

CREATE TABLE attempts (
    run INTEGER NOT NULL,
    number INTEGER NOT NULL,
    token INTEGER NOT NULL,
    node TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    leased_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    exit TEXT,
    cause TEXT,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    run TEXT,
    kind TEXT NOT NULL
);

CREATE TABLE audit (
    n INTEGER PRIMARY KEY,
    note TEXT NOT NULL,
    previous BLOB NOT NULL,
    hash BLOB NOT NULL
);

CREATE TABLE idempotency (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    request_sha256 BLOB NOT NULL,
    run TEXT NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) WITHOUT ROWID;

CREATE TABLE datasets (
    tenant TEXT NOT NULL,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    checksum BLOB NOT NULL,
    directory INTEGER NOT NULL,
    path TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    files INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name, version)
) WITHOUT ROWID;

CREATE TABLE keys (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    sha256 BLOB NOT NULL,
    class TEXT NOT NULL,
    run TEXT,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
