-- Version 1. `runs.seq` is the run's place in the order of everything that was
-- committed; the event "queued" (or "sweep accepted") of a run has that sequence
-- and is read from the run's own row.
CREATE TABLE head (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    seq        BIGINT NOT NULL,
    audit_n    BIGINT NOT NULL,
    audit_hash BYTEA NOT NULL,
    probe      BIGINT NOT NULL
);
INSERT INTO head (one, seq, audit_n, audit_hash, probe) VALUES (1, 0, 0, decode(repeat('00', 32), 'hex'), 0);

-- `kind`: 0 single, 1 parent, 2 child. `idx`: number of points of a parent, place
-- of a child. In a child NULL in name, tree, placement, git or trust means "as in
-- the parent's template", and `plan` holds only what differs from it.
CREATE TABLE runs (
    seq BIGINT PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    kind BIGINT NOT NULL,
    parent BIGINT,
    idx BIGINT,
    name TEXT COLLATE "C",
    tree BYTEA,
    plan TEXT COLLATE "C",
    plan_sha256 BYTEA NOT NULL,
    placement TEXT COLLATE "C",
    git TEXT COLLATE "C",
    template TEXT COLLATE "C",
    phase BIGINT NOT NULL,
    cause TEXT COLLATE "C",
    message TEXT COLLATE "C",
    exit TEXT COLLATE "C",
    attempts BIGINT NOT NULL,
    token BIGINT NOT NULL,
    node TEXT COLLATE "C",
    queued_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    trust TEXT COLLATE "C",
    metrics TEXT COLLATE "C",
    outputs BYTEA,
    manifest_sha256 BYTEA,
    isolation TEXT COLLATE "C"
);
CREATE UNIQUE INDEX runs_id ON runs (id);
CREATE INDEX runs_points ON runs (parent, idx) WHERE parent IS NOT NULL;
CREATE INDEX runs_top ON runs (tenant, seq) WHERE parent IS NULL;
CREATE INDEX runs_phase ON runs (tenant, phase, seq) WHERE parent IS NULL;
CREATE INDEX runs_owner ON runs (tenant, owner, seq) WHERE parent IS NULL;
CREATE INDEX runs_live ON runs (seq) WHERE phase BETWEEN 1 AND 3 AND kind <> 1;

CREATE TABLE queue (
    seq        BIGINT PRIMARY KEY,
    not_before BIGINT
);

-- How many runs of a tenant, and points of a sweep, stand in each phase.
CREATE TABLE counts (
    tenant TEXT COLLATE "C" PRIMARY KEY,
    n0 BIGINT NOT NULL, n1 BIGINT NOT NULL, n2 BIGINT NOT NULL, n3 BIGINT NOT NULL,
    n4 BIGINT NOT NULL, n5 BIGINT NOT NULL, n6 BIGINT NOT NULL, n7 BIGINT NOT NULL
);
CREATE TABLE sweeps (
    parent BIGINT PRIMARY KEY,
    n0 BIGINT NOT NULL, n1 BIGINT NOT NULL, n2 BIGINT NOT NULL, n3 BIGINT NOT NULL,
    n4 BIGINT NOT NULL, n5 BIGINT NOT NULL, n6 BIGINT NOT NULL, n7 BIGINT NOT NULL
);

CREATE TABLE attempts (
    run BIGINT NOT NULL,
    number BIGINT NOT NULL,
    token BIGINT NOT NULL,
    node TEXT COLLATE "C" NOT NULL,
    boot_id TEXT COLLATE "C" NOT NULL,
    leased_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT,
    exit TEXT COLLATE "C",
    cause TEXT COLLATE "C",
    PRIMARY KEY (run, number)
);

CREATE TABLE events (
    seq BIGINT PRIMARY KEY,
    time BIGINT NOT NULL,
    tenant TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    run TEXT COLLATE "C",
    kind TEXT COLLATE "C" NOT NULL
);

CREATE TABLE audit (
    n BIGINT PRIMARY KEY,
    note TEXT COLLATE "C" NOT NULL,
    previous BYTEA NOT NULL,
    hash BYTEA NOT NULL
);

CREATE TABLE idempotency (
    tenant TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    request_sha256 BYTEA NOT NULL,
    run TEXT COLLATE "C" NOT NULL,
    time BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);

CREATE TABLE datasets (
    tenant TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    version TEXT COLLATE "C" NOT NULL,
    checksum BYTEA NOT NULL,
    directory BIGINT NOT NULL,
    path TEXT COLLATE "C" NOT NULL,
    bytes BIGINT NOT NULL,
    files BIGINT NOT NULL,
    registered_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name, version)
);

CREATE TABLE keys (
    tenant TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    sha256 BYTEA NOT NULL,
    class TEXT COLLATE "C" NOT NULL,
    run TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    revoked_at BIGINT,
    PRIMARY KEY (tenant, name)
);
