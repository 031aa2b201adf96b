package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/store"
)

const (
	logType      = "application/vnd.lockstep.log+json"
	manifestType = "application/vnd.lockstep.manifest+json"
)

// logEntry is one entry of a machine log. A commit entry is the commit.
type logEntry struct {
	Machine  string    `json:"machine"`
	N        int64     `json:"n"`
	Kind     string    `json:"kind"`
	Point    string    `json:"point,omitempty"`
	Manifest string    `json:"manifest,omitempty"` // digest of the stored manifest
	Parent   string    `json:"parent,omitempty"`
	Previous string    `json:"previous,omitempty"` // digest of the stored entry before
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason,omitempty"`
}

// logRecord is an entry as read; damaged entries keep their place.
type logRecord struct {
	logEntry
	digest string
	writer envelope.KeyID
	err    error
}

// machineLog is what has been read of a machine's log. Entries never change,
// so it only grows.
type machineLog struct {
	records []logRecord
	listed  bool  // last is known
	last    int64 // the highest number that the store listed, -1: none
	// The latest time that each writer's entries give, for revocation.
	latest map[envelope.KeyID]time.Time
}

// readLog reads on from what is known. What it returns is a snapshot: append-only.
func (r *Repository) readLog(ctx context.Context, m *machine) ([]logRecord, error) {
	m.logMu.Lock()
	defer m.logMu.Unlock()
	if m.log.latest == nil {
		m.log.latest = map[envelope.KeyID]time.Time{}
	}
	for {
		n := int64(len(m.log.records))
		key := format.LogKey(m.Machine.ID, n)
		raw, err := store.GetAll(ctx, r.st, key, 1<<20)
		if errors.Is(err, store.ErrNotExist) {
			if !m.log.listed {
				if err := r.listLog(ctx, m); err != nil {
					return nil, err
				}
				continue // it may have come since
			}
			if m.log.last <= n {
				return m.log.records[:n:n], nil
			}
			if m.log.last-n > maxLogGap {
				return nil, &DamageError{Object: key, Machine: m.Machine.ID, Err: fmt.Errorf("entries are missing up to number %d: %w", m.log.last, ErrNotFound)}
			}
			// What is behind a lost entry counts all the same, or one lost object would hide recovery points.
			gap := &DamageError{Object: key, Machine: m.Machine.ID, Err: fmt.Errorf("entry is missing, later ones are there: %w", ErrNotFound)}
			m.log.records = append(m.log.records, logRecord{logEntry: logEntry{N: n}, err: gap})
			r.log.Error("machine log entry is missing", "object", key)
			continue
		}
		if err != nil {
			var large *store.TooLargeError
			if !errors.As(err, &large) {
				return nil, fmt.Errorf("read machine log: %w", err)
			}
		}
		rec := logRecord{digest: digestOf(raw)}
		if rec.err = r.parseEntry(&rec, raw, key, m, n); rec.err != nil {
			rec.logEntry = logEntry{N: n}
			rec.err = &DamageError{Object: key, Machine: m.Machine.ID, Err: rec.err}
			r.log.Error("machine log entry is damaged", "object", key, "error", rec.err)
		} else if rec.Time.After(m.log.latest[rec.writer]) {
			m.log.latest[rec.writer] = rec.Time
		}
		m.log.records = append(m.log.records, rec)
	}
}

// maxLogGap bounds what a key of a large number can make a reader do.
const maxLogGap = 1 << 16

// listLog finds out, once, how far the log goes.
func (r *Repository) listLog(ctx context.Context, m *machine) error {
	last := int64(-1)
	prefix := format.LogPrefix(m.Machine.ID)
	err := r.st.List(ctx, prefix, func(i store.Info) error {
		if n, err := format.ParseNumber(i.Key[len(prefix):]); err == nil {
			last = max(last, n)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list machine log: %w", err)
	}
	m.log.listed, m.log.last = true, last
	return nil
}

func (r *Repository) parseEntry(rec *logRecord, raw []byte, key string, m *machine, n int64) error {
	signed, err := envelope.OpenFrame(raw, format.KindLog, m.Metadata, []byte(key))
	if err != nil {
		return err
	}
	body, signer, err := envelope.Verify(signed, logType, r.trust.KeySet(envelope.RoleWriter))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	if err := json.Unmarshal(body, &rec.logEntry); err != nil {
		return err
	}
	rec.writer = signer
	if rec.Machine != m.Machine.ID || rec.N != n {
		return fmt.Errorf("entry of machine %s, number %d: %w", rec.Machine, rec.N, format.ErrCorrupt)
	}
	if rec.Kind != entryCommit && rec.Kind != entryDelete && rec.Kind != entryFence {
		return fmt.Errorf("entry of kind %q: %w", rec.Kind, ErrFormat)
	}
	if _, revoked, _ := r.trust.Key(signer); revoked != nil {
		if !rec.Time.Before(*revoked) {
			return fmt.Errorf("writer key %s was revoked before: %w", signer, ErrUntrusted)
		}
		// Whoever has the key can write any time; what other writers committed before it is evidence.
		for writer, t := range m.log.latest {
			if writer != signer && !t.Before(*revoked) {
				return fmt.Errorf("writer key %s was revoked before, as entries by %s show: %w", signer, writer, ErrUntrusted)
			}
		}
	}
	if n == 0 {
		if rec.Previous != "" {
			return fmt.Errorf("first entry has a previous one: %w", format.ErrCorrupt)
		}
		return nil
	}
	if prev := m.log.records[n-1]; prev.err == nil && prev.digest != rec.Previous {
		return fmt.Errorf("it does not follow the entry before it: %w", ErrUntrusted)
	}
	return nil
}

// append writes entry n of the log. store.ErrExist says that another was faster.
func (r *Repository) appendLog(ctx context.Context, m *machine, e logEntry, previous string) error {
	if r.writer == nil {
		return r.readOnly("write machine log")
	}
	e.Machine, e.Previous, e.Time = m.Machine.ID, previous, r.clock()
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write machine log: %w", err)
	}
	signed, err := envelope.Sign(logType, body, *r.writer)
	if err != nil {
		return fmt.Errorf("write machine log: %w", err)
	}
	_, err = r.putFrame(ctx, format.LogKey(m.Machine.ID, e.N), format.KindLog, m.Metadata, signed)
	return err
}

func listed(records []logRecord, mid string) []Point {
	deleted := map[string]bool{}
	for _, rec := range records {
		if rec.err == nil && rec.Kind == entryDelete {
			deleted[rec.Point] = true
		}
	}
	var ps []Point
	for _, rec := range records {
		if rec.err == nil && rec.Kind == entryCommit && !deleted[rec.Point] {
			ps = append(ps, Point{
				ID: rec.Point, Machine: mid, Sequence: rec.N, Parent: rec.Parent,
				Time: rec.Time, Writer: string(rec.writer), manifestDigest: rec.Manifest,
			})
		}
	}
	return ps
}

// Points lists a machine's recovery points in the log's order, oldest first.
// Where log entries are damaged, what the others say is returned beside an
// error for which errors.Is(err, ErrDamaged) holds.
func (r *Repository) Points(ctx context.Context, mid string) ([]Point, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	records, err := r.readLog(ctx, m)
	if err != nil {
		return nil, err
	}
	var bad []error
	for _, rec := range records {
		if rec.err != nil {
			bad = append(bad, rec.err)
		}
	}
	return listed(records, mid), errors.Join(bad...)
}

// Manifest reads a listed recovery point's manifest and checks that it is the
// one its log entry committed, signed by a writer.
func (r *Repository) Manifest(ctx context.Context, p Point) (*Manifest, error) {
	m, err := r.machine(ctx, p.Machine)
	if err != nil {
		return nil, err
	}
	key := format.ManifestKey(p.Machine, p.ID)
	raw, err := store.GetAll(ctx, r.st, key, store.MaxSmallObject)
	if err != nil {
		if err = damage.FromStore(key, err); errors.Is(err, ErrNotFound) { // the log says that it was there
			err = &DamageError{Object: key, Machine: p.Machine, Err: err}
		}
		return nil, err
	}
	damaged := func(err error) error { return &DamageError{Object: key, Machine: p.Machine, Err: err} }
	if digestOf(raw) != p.manifestDigest {
		return nil, damaged(fmt.Errorf("it is not the manifest that was committed: %w", format.ErrCorrupt))
	}
	signed, err := envelope.OpenFrame(raw, format.KindManifest, m.Metadata, []byte(key))
	if err != nil {
		return nil, damaged(err)
	}
	body, _, err := envelope.Verify(signed, manifestType, r.trust.KeySet(envelope.RoleWriter))
	if err != nil {
		return nil, damaged(fmt.Errorf("%w: %w", ErrUntrusted, err))
	}
	var mf Manifest
	if err := json.Unmarshal(body, &mf); err != nil {
		return nil, damaged(err)
	}
	if mf.Format != 1 {
		return nil, fmt.Errorf("read manifest %s: %w: version %d", p.ID, ErrFormat, mf.Format)
	}
	if mf.Machine != p.Machine || mf.Point != p.ID || mf.Repository != r.cfg.ID || len(mf.Disks) > 4096 {
		return nil, damaged(fmt.Errorf("it describes another recovery point: %w", format.ErrCorrupt))
	}
	return &mf, nil
}

// Delete takes a recovery point off the list. Its bytes stay until reclaim.
func (r *Repository) Delete(ctx context.Context, mid, pid, reason string) error {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return err
	}
	for {
		records, err := r.readLog(ctx, m)
		if err != nil {
			return err
		}
		found := false
		for _, p := range listed(records, mid) {
			found = found || p.ID == pid
		}
		if !found {
			return fmt.Errorf("delete recovery point %s: %w", pid, ErrNotFound)
		}
		n := int64(len(records))
		err = r.appendLog(ctx, m, logEntry{N: n, Kind: entryDelete, Point: pid, Reason: reason}, records[n-1].digest)
		if !errors.Is(err, store.ErrExist) {
			return err
		}
		// A store that shows no entry where it has one would keep us here.
		if again, err := r.readLog(ctx, m); err != nil || len(again) == len(records) {
			return errors.Join(fmt.Errorf("delete recovery point %s: %w", pid, ErrConflict), err)
		}
	}
}

// putManifest signs, seals and stores a manifest; it returns the stored object's digest.
func (r *Repository) putManifest(ctx context.Context, m *machine, mf *Manifest) (string, error) {
	body, err := json.Marshal(mf)
	if err != nil {
		return "", fmt.Errorf("write manifest: %w", err)
	}
	signed, err := envelope.Sign(manifestType, body, *r.writer)
	if err != nil {
		return "", fmt.Errorf("write manifest: %w", err)
	}
	frame, err := r.putFrame(ctx, format.ManifestKey(m.Machine.ID, mf.Point), format.KindManifest, m.Metadata, signed)
	if err != nil {
		return "", err
	}
	return digestOf(frame), nil
}
