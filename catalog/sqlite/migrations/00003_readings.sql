-- SQL that SQLite and PostgreSQL both take; see 00001 for times.

-- +goose Up
-- Since when objects of repositories have not been read back.
CREATE TABLE readings (
    repository TEXT NOT NULL,
    key        TEXT NOT NULL,
    since      TEXT NOT NULL,
    never      BOOLEAN NOT NULL,
    PRIMARY KEY (repository, key)
);
CREATE INDEX readings_by_age ON readings (repository, since);

-- +goose Down
DROP TABLE readings;
