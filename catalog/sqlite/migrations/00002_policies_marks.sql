-- SQL that SQLite and PostgreSQL both take; see 00001 for times.

-- +goose Up
-- By machine id, '' = of machines that have none. No foreign key: policies stay
-- when the catalog is rebuilt, and machines come back under their ids.
CREATE TABLE policies (
    machine TEXT PRIMARY KEY,
    body    TEXT NOT NULL
);

-- Read from sidecars, which may be seen before what they are about.
CREATE TABLE marks (
    key      TEXT PRIMARY KEY,
    machine  TEXT NOT NULL,
    point    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    value    TEXT NOT NULL,
    is_set   BOOLEAN NOT NULL,
    sequence BIGINT NOT NULL,
    reason   TEXT NOT NULL,
    actor    TEXT NOT NULL,
    time     TEXT NOT NULL
);
CREATE INDEX marks_by_machine ON marks (machine, point);

-- +goose Down
DROP TABLE marks;
DROP TABLE policies;
