-- Version 4. Runs that repeat another one. `record`: JSON of what came of it; NULL until
-- it is judged.
CREATE TABLE reproductions (
    run TEXT NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    original TEXT NOT NULL,
    time INTEGER NOT NULL,
    record TEXT
) WITHOUT ROWID;
CREATE INDEX reproductions_original ON reproductions (tenant, original, time);
