-- Version 6. What jobs have logged, so that runs are found by it. `family`: 0 parameter,
-- 1 tag; `run`: its seq. Name and value are UTF-8. Filled from the runs by the program.
CREATE TABLE logged_values (
    family INTEGER NOT NULL,
    name BLOB NOT NULL,
    run INTEGER NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (family, name, run)
) WITHOUT ROWID;
