-- Version 4. Runs that repeat another one. `record`: JSON of what came of it; NULL until
-- it is judged.
CREATE TABLE reproductions (
    run TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL,
    original TEXT COLLATE "C" NOT NULL,
    time BIGINT NOT NULL,
    record TEXT
);
CREATE INDEX reproductions_original ON reproductions (tenant, original, time);
