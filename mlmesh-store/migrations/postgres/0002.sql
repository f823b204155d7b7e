-- Version 2. Requests other than submissions are remembered with their answer.
ALTER TABLE idempotency ADD COLUMN answer TEXT;

-- What prune keeps: `kind` 0 a run by its id, 1 a tree by its digest in hex.
CREATE TABLE pins (
    tenant TEXT COLLATE "C" NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    kind BIGINT NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    time BIGINT NOT NULL,
    PRIMARY KEY (tenant, target)
);
