-- SQL that SQLite and PostgreSQL both take. Times are RFC 3339 UTC text of one
-- width, '' where there is none, so that text order is time order.

-- +goose Up
CREATE TABLE machines (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL,
    created    TEXT NOT NULL,
    disks      TEXT NOT NULL,
    removed_at TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX machines_by_name ON machines (name) WHERE removed_at = '';

CREATE TABLE repositories (
    id           TEXT PRIMARY KEY,
    url          TEXT NOT NULL,
    trust_root   TEXT NOT NULL,
    last_read_at TEXT NOT NULL DEFAULT ''
);

CREATE TABLE points (
    id             TEXT PRIMARY KEY,
    machine        TEXT NOT NULL REFERENCES machines (id),
    repository     TEXT NOT NULL,
    sequence       BIGINT NOT NULL,
    parent         TEXT NOT NULL,
    time           TEXT NOT NULL,
    written        TEXT NOT NULL,
    consistency    TEXT NOT NULL,
    full_transfer  BOOLEAN NOT NULL,
    description    TEXT NOT NULL,
    incomplete     BOOLEAN NOT NULL,
    read_bytes     BIGINT NOT NULL,
    changed_bytes  BIGINT NOT NULL,
    stored_bytes   BIGINT NOT NULL,
    map_bytes      BIGINT NOT NULL,
    seconds        DOUBLE PRECISION NOT NULL,
    deleted_at     TEXT NOT NULL DEFAULT '',
    deleted_reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX points_by_machine ON points (machine, repository, sequence);

CREATE TABLE point_disks (
    point        TEXT NOT NULL REFERENCES points (id) ON DELETE CASCADE,
    disk         TEXT NOT NULL,
    place        BIGINT NOT NULL,
    size         BIGINT NOT NULL,
    content_root TEXT NOT NULL,
    unread       TEXT NOT NULL,
    areas        TEXT NOT NULL,
    changes      TEXT NOT NULL,
    PRIMARY KEY (point, disk)
);

CREATE TABLE volumes (
    point         TEXT NOT NULL,
    disk          TEXT NOT NULL,
    volume        TEXT NOT NULL,
    place         BIGINT NOT NULL,
    type          TEXT NOT NULL,
    uuid          TEXT NOT NULL,
    label         TEXT NOT NULL,
    epoch         TEXT NOT NULL,
    header_digest TEXT NOT NULL,
    header_copy   TEXT NOT NULL,
    body          TEXT NOT NULL,
    PRIMARY KEY (point, disk, volume),
    FOREIGN KEY (point, disk) REFERENCES point_disks (point, disk) ON DELETE CASCADE
);
CREATE INDEX volumes_by_header ON volumes (header_digest);

-- Proofs, packages and declarations are read from sidecars, which may be seen
-- before what they are about: no foreign keys.
CREATE TABLE proofs (
    key        TEXT PRIMARY KEY,
    point      TEXT NOT NULL,
    disk       TEXT NOT NULL,
    volume     TEXT NOT NULL,
    secret     TEXT NOT NULL,
    version    BIGINT NOT NULL,
    protectors TEXT NOT NULL,
    recognised TEXT NOT NULL,
    key_check  TEXT NOT NULL,
    time       TEXT NOT NULL,
    signer     TEXT NOT NULL
);
CREATE INDEX proofs_by_point ON proofs (point, time);
CREATE INDEX proofs_by_secret ON proofs (secret, version, time);

CREATE TABLE attempts (
    header_digest TEXT NOT NULL,
    secret        TEXT NOT NULL,
    version       BIGINT NOT NULL,
    opened        TEXT NOT NULL,
    time          TEXT NOT NULL,
    PRIMARY KEY (header_digest, secret, version)
);

CREATE TABLE packages (
    key        TEXT PRIMARY KEY,
    point      TEXT NOT NULL,
    recipients TEXT NOT NULL,
    refs       TEXT NOT NULL,
    time       TEXT NOT NULL
);
CREATE INDEX packages_by_point ON packages (point, time);

CREATE TABLE header_packages (
    key           TEXT NOT NULL,
    machine       TEXT NOT NULL,
    header_digest TEXT NOT NULL,
    recipients    TEXT NOT NULL,
    PRIMARY KEY (key, header_digest)
);
CREATE INDEX header_packages_by_machine ON header_packages (machine, header_digest);

CREATE TABLE declarations (
    key       TEXT PRIMARY KEY,
    machine   TEXT NOT NULL,
    disk      TEXT NOT NULL,
    volume    TEXT NOT NULL,
    reason    TEXT NOT NULL,
    time      TEXT NOT NULL,
    withdrawn BOOLEAN NOT NULL
);
CREATE INDEX declarations_by_machine ON declarations (machine, time);

CREATE TABLE jobs (
    id      TEXT PRIMARY KEY,
    kind    TEXT NOT NULL,
    state   TEXT NOT NULL,
    created TEXT NOT NULL,
    ended   TEXT NOT NULL,
    body    TEXT NOT NULL
);
CREATE INDEX jobs_by_created ON jobs (created);

CREATE TABLE job_events (
    job  TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    n    BIGINT NOT NULL,
    time TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (job, n)
);

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- +goose Down
DROP TABLE meta;
DROP TABLE job_events;
DROP TABLE jobs;
DROP TABLE declarations;
DROP TABLE header_packages;
DROP TABLE packages;
DROP TABLE attempts;
DROP TABLE proofs;
DROP TABLE volumes;
DROP TABLE point_disks;
DROP TABLE points;
DROP TABLE repositories;
DROP TABLE machines;
