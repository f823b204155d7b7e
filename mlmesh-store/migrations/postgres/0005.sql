-- Version 5. Users; a removed one keeps the name. `role`: name of a role.
CREATE TABLE users (
    tenant TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    role TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT,
    PRIMARY KEY (tenant, name)
);
-- Objects that somebody has sent whole, for those who may not read everybody's.
CREATE TABLE possessions (
    tenant TEXT COLLATE "C" NOT NULL,
    owner TEXT COLLATE "C" NOT NULL,
    object BYTEA NOT NULL,
    PRIMARY KEY (tenant, owner, object)
);
-- `copied`: whether the content store has the dataset. `about`: JSON of what
-- people say of it; NULL when that is nothing.
ALTER TABLE datasets ADD COLUMN copied BIGINT NOT NULL DEFAULT 0;
ALTER TABLE datasets ADD COLUMN about TEXT COLLATE "C";
-- Signed statements about repetitions: the envelope and who signed it; NULL
-- until somebody did.
ALTER TABLE reproductions ADD COLUMN statement TEXT;
ALTER TABLE reproductions ADD COLUMN signer TEXT;
