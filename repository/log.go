package repository

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/store"
)

const manifestType = "application/vnd.lockstep.manifest+json"

// points gives the recovery points that records list, in the order of their
// birth: that is the log's own, but where one was copied behind a younger one.
func points(records []machinelog.Record, mid string) []Point {
	var ps []Point
	for _, rec := range machinelog.Listed(records) {
		ps = append(ps, pointOf(&rec, mid))
	}
	slices.SortStableFunc(ps, func(a, b Point) int { return cmp.Compare(a.Birth, b.Birth) })
	return ps
}

func pointOf(rec *machinelog.Record, mid string) Point {
	return Point{
		ID: rec.Point, Machine: mid, Sequence: rec.N, Parent: rec.Parent,
		Time: rec.Time, Writer: string(rec.Writer), Birth: rec.Birth(), Origin: rec.Origin, manifestDigest: rec.Manifest,
	}
}

// Points lists a machine's recovery points in the order of their birth, oldest first.
// Where log entries are damaged, what the others say is returned beside an
// error for which errors.Is(err, ErrDamaged) holds.
func (r *Repository) Points(ctx context.Context, mid string) ([]Point, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	records, err := m.log.Read(ctx)
	if err != nil {
		return nil, err
	}
	var bad []error
	for _, rec := range records {
		if rec.Err != nil {
			bad = append(bad, rec.Err)
		}
	}
	return points(records, mid), errors.Join(bad...)
}

// Manifest reads a listed recovery point's manifest and checks that it is the
// one its log entry committed, signed by a writer.
func (r *Repository) Manifest(ctx context.Context, p Point) (*Manifest, error) {
	m, err := r.machine(ctx, p.Machine)
	if err != nil {
		return nil, err
	}
	key := format.ManifestKey(p.Machine, p.ID)
	damaged := func(err error) error { return &DamageError{Object: key, Machine: p.Machine, Err: err} }
	raw, err := smallobject.Read(ctx, r.st, key, func(raw []byte) error {
		if digestOf(raw) != p.manifestDigest {
			return fmt.Errorf("it is not the manifest that was committed: %w", format.ErrCorrupt)
		}
		return nil
	})
	var de *DamageError
	switch {
	case errors.As(err, &de):
		return nil, damaged(de.Err)
	case errors.Is(err, ErrNotFound): // the log says that it was there
		return nil, damaged(err)
	case err != nil:
		return nil, err
	}
	signed, err := envelope.OpenFrame(raw, format.KindManifest, m.Metadata, []byte(key))
	if err != nil {
		return nil, damaged(err)
	}
	body, _, err := envelope.Verify(signed, manifestType, r.Trust().KeySet(envelope.RoleWriter))
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
	home := r.cfg.ID
	if p.Origin != "" {
		home = p.Origin
	}
	if mf.Machine != p.Machine || mf.Point != p.ID || mf.Repository != home || len(mf.Disks) > 4096 {
		return nil, damaged(fmt.Errorf("it describes another recovery point: %w", format.ErrCorrupt))
	}
	return &mf, nil
}

// Delete takes a recovery point off the list. Its bytes stay until reclaim.
func (r *Repository) Delete(ctx context.Context, mid, pid, reason string) error {
	deleted, err := r.DeleteAll(ctx, mid, []string{pid}, func(string) (string, error) { return reason, nil })
	if err == nil && len(deleted) == 0 {
		err = fmt.Errorf("delete recovery point %s: %w", pid, ErrNotFound)
	}
	return err
}

// DeleteAll takes recovery points off the list, and gives those that it took;
// one that is not listed is passed over. begin is called before each, listed or
// not, and gives the reason; where it fails, that is the end.
func (r *Repository) DeleteAll(ctx context.Context, mid string, points []string, begin func(point string) (reason string, err error)) (deleted []string, err error) {
	if r.writer == nil {
		return nil, r.readOnly("delete recovery point")
	}
	m, err := r.machine(ctx, mid)
	if err == nil {
		deleted, err = m.log.DeleteAll(ctx, points, *r.writer, r.clock, begin)
	}
	if errors.Is(err, store.ErrExist) {
		err = fmt.Errorf("delete recovery points: %w", ErrConflict)
	}
	return deleted, err
}

// Deleted are the recovery points that a machine's log deletes.
func (r *Repository) Deleted(ctx context.Context, mid string) (map[string]bool, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	records, err := m.log.Read(ctx)
	return machinelog.Deleted(records), err
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
	frame, err := smallobject.Put(ctx, r.st, format.ManifestKey(m.Machine.ID, mf.Point), format.KindManifest, m.Metadata, signed)
	if err != nil {
		return "", err
	}
	return digestOf(frame), nil
}
