-- SQL that SQLite and PostgreSQL both take; see 00001 for times.

-- +goose Up
-- Equal ones of an installation mean equal volume keys. Proofs recorded before
-- have none here until the catalog is rebuilt.
ALTER TABLE proofs ADD COLUMN vkproof TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE proofs DROP COLUMN vkproof;
