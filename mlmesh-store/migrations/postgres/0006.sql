-- Version 6. What jobs have logged, so that runs are found by it. `family`: 0 parameter,
-- 1 tag; `run`: its seq. Name and value are UTF-8: its texts do not hold the character NUL.
-- Filled from the runs by the program.
CREATE TABLE logged_values (
    family BIGINT NOT NULL,
    name BYTEA NOT NULL,
    run BIGINT NOT NULL,
    value BYTEA NOT NULL,
    PRIMARY KEY (family, name, run)
);
