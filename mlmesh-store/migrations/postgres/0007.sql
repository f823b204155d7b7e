-- Version 7. Services: phase 8 is `ready`, 9 is `draining`; both are live.
DROP INDEX runs_live;
CREATE INDEX runs_live ON runs (seq) WHERE phase IN (1, 2, 3, 8, 9) AND kind <> 1;
ALTER TABLE counts ADD COLUMN n8 BIGINT NOT NULL DEFAULT 0;
ALTER TABLE counts ADD COLUMN n9 BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sweeps ADD COLUMN n8 BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sweeps ADD COLUMN n9 BIGINT NOT NULL DEFAULT 0;
