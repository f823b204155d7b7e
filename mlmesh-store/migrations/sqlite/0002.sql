-- Version 2. Requests other than submissions are remembered with their answer.
ALTER TABLE idempotency ADD COLUMN answer TEXT;

-- What prune keeps: `kind` 0 a run by its id, 1 a tree by its digest in hex.
CREATE TABLE pins (
    tenant TEXT NOT NULL,
    target TEXT NOT NULL,
    kind INTEGER NOT NULL,
    owner TEXT NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (tenant, target)
) WITHOUT ROWID;
