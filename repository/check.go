package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/headercopy"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// Objects lists every object of the repository in the order of their keys.
// Copies of wrapped keys that are missing are brought back before.
func (r *Repository) Objects(ctx context.Context, fn func(store.Info) error) error {
	r.healHolders(ctx)
	return r.st.List(ctx, "", fn)
}

// CheckStored checks an object without any key: shape and CRC-32C of every
// stored byte. It reads the whole object.
func CheckStored(ctx context.Context, st store.Store, key string) error {
	ctx = store.Uncached(ctx)
	if strings.HasPrefix(key, "seg/") || strings.HasPrefix(key, "map/") {
		return segment.CheckChunks(ctx, st, key)
	}
	raw, err := store.GetAll(ctx, st, key, store.MaxSmallObject)
	if err != nil {
		return damage.FromStore(key, err)
	}
	if err := envelope.CheckFrame(raw); err != nil {
		return &DamageError{Object: key, Err: err}
	}
	return nil
}

// CheckObject checks an object with the repository's keys: that it is
// authentic where it lies. Of segments it reads the header and the table of
// contents only; their content is read through the maps (DiskReader.Scan).
func (r *Repository) CheckObject(ctx context.Context, key string) error {
	ctx = store.Uncached(ctx)
	if original, ok := strings.CutPrefix(key, twin.Prefix); ok {
		return r.checkTwin(ctx, original)
	}
	part := strings.Split(key, "/")
	switch {
	case key == format.ConfigKey, part[0]+"/" == format.HolderPrefix, part[0]+"/" == format.TrustPrefix,
		part[0]+"/" == format.MachinePrefix:
		// What they say was checked when the repository and the machine were
		// opened, from whichever copy is sound.
		return r.checkTwin(ctx, key)
	case len(part) < 3 || !format.ValidID(part[1]):
		return &DamageError{Object: key, Err: fmt.Errorf("no object of a repository has this name: %w", format.ErrCorrupt)}
	}
	m, err := r.machine(ctx, part[1])
	if err != nil {
		return err
	}
	switch part[0] {
	case "points":
		_, err = smallobject.Get(ctx, r.st, key, format.KindManifest, m.Metadata)
	case "log":
		if _, err = smallobject.Get(ctx, r.st, key, format.KindLog, m.Metadata); err == nil {
			err = r.checkEntry(ctx, m, part[2], key)
		}
	case "headers-a", "headers-b":
		var body []byte
		if body, err = smallobject.Get(ctx, r.st, key, format.KindHeader, m.Header); err == nil {
			if _, err = headercopy.Parse(body); err != nil {
				err = &DamageError{Object: key, Machine: m.Machine.ID, Err: err}
			}
		}
	case "side":
		if len(part) != 4 {
			return &DamageError{Object: key, Err: format.ErrCorrupt}
		}
		_, err = r.readSidecar(ctx, m, key, format.SidecarPrefix(part[1], part[2]))
	case "map", "seg":
		err = r.checkLarge(ctx, m, key)
	case "ledger":
		var body []byte
		if body, err = smallobject.Get(ctx, r.st, key, format.KindLedger, m.Map); err == nil {
			if _, err = format.ParseLedger(body); err != nil {
				err = &DamageError{Object: key, Machine: m.Machine.ID, Err: err}
			}
		}
	default:
		err = &DamageError{Object: key, Err: fmt.Errorf("no object of a repository has this name: %w", format.ErrCorrupt)}
	}
	var de *DamageError
	if errors.As(err, &de) && de.Machine == "" {
		de.Machine = m.Machine.ID
	}
	return err
}

// checkLarge checks the table of a segment or map object, or of a replica of
// one; of maps every byte, of segments the header.
func (r *Repository) checkLarge(ctx context.Context, m *machine, key string) error {
	_, _, isReplica, ok := format.Original(key)
	if !ok {
		return &DamageError{Object: key, Err: fmt.Errorf("no object of a repository has this name: %w", format.ErrCorrupt)}
	}
	if strings.HasPrefix(key, "map/") {
		if err := segment.CheckChunks(ctx, r.st, key); err != nil {
			return err
		}
		if _, err := blockmap.ReadPages(ctx, r.st, m.Keys, key); err != nil && !errors.Is(err, segment.ErrNoTable) {
			return err
		}
		return nil
	}
	p := make([]byte, format.SegmentHeaderSize)
	if err := damage.ReadFull(ctx, r.st, key, 0, p); err != nil {
		return err
	}
	h, err := format.ParseSegmentHeader(p)
	if err == nil && (h.Machine != m.Raw || h.Replica != isReplica || h.Sealed != (r.cfg.Sealing == SealingAESGCM)) {
		err = fmt.Errorf("segment of another machine, kind or sealing: %w", format.ErrCorrupt)
	}
	if err != nil {
		return &DamageError{Object: key, Err: err}
	}
	if isReplica {
		_, err = segment.ReadReplicaTOC(ctx, r.st, m.Keys, key)
	} else {
		_, err = segment.ReadTOC(ctx, r.st, m.Keys, key)
	}
	return err
}

// CheckHeader checks both copies of a header that a manifest refers to; Header
// is content with one.
func (r *Repository) CheckHeader(ctx context.Context, mid, hid string) error {
	var bad []error
	for _, key := range format.HeaderKeys(mid, hid) {
		err := r.CheckObject(ctx, key)
		if errors.Is(err, ErrNotFound) {
			err = &DamageError{Object: key, Machine: mid, Err: err}
		}
		bad = append(bad, err)
	}
	return errors.Join(bad...)
}

// checkTwin checks both copies of an object that is kept twice.
func (r *Repository) checkTwin(ctx context.Context, key string) error {
	first, err := store.GetAll(ctx, r.st, key, store.MaxSmallObject)
	if err == nil {
		if err := envelope.CheckFrame(first); err != nil {
			return &DamageError{Object: key, Err: err}
		}
	} else {
		return &DamageError{Object: key, Err: fmt.Errorf("only its second copy is there: %w", damage.FromStore(key, err))}
	}
	second, err := store.GetAll(ctx, r.st, twin.Prefix+key, store.MaxSmallObject)
	if err != nil {
		return &DamageError{Object: twin.Prefix + key, Err: fmt.Errorf("second copy: %w", damage.FromStore(key, err))}
	}
	if !bytes.Equal(first, second) {
		return &DamageError{Object: twin.Prefix + key, Err: fmt.Errorf("second copy differs: %w", format.ErrCorrupt)}
	}
	return nil
}

// checkEntry checks a log entry where it stands: signature and chain.
func (r *Repository) checkEntry(ctx context.Context, m *machine, number, key string) error {
	records, err := m.log.Read(ctx)
	if err != nil {
		return err
	}
	n, err := format.ParseNumber(number)
	if err != nil {
		return &DamageError{Object: key, Err: err}
	}
	if n < int64(len(records)) {
		return records[n].Err
	}
	return nil // it came after the log was read
}

// CheckLog reports the entries of a machine's log that are missing though
// later ones are there. That the newest ones are gone cannot be seen here.
func (r *Repository) CheckLog(ctx context.Context, mid string) error {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return err
	}
	records, err := m.log.Read(ctx)
	if err != nil {
		return err
	}
	var bad []error
	for _, rec := range records {
		if errors.Is(rec.Err, ErrNotFound) {
			bad = append(bad, rec.Err)
		}
	}
	return errors.Join(bad...)
}

// CheckCommitted checks that the machine's log still has the entry that
// committed a recovery point, or the one that deleted it. Readers of a log
// alone cannot see that its newest entries are gone; who knows of the recovery
// point from elsewhere can. A *DamageError, not found inside, says that it is
// gone; deleted says that the log took it off the list.
func (r *Repository) CheckCommitted(ctx context.Context, mid, point string) (deleted bool, err error) {
	lost := func(cause error) error {
		return &DamageError{Object: strings.TrimSuffix(format.LogPrefix(mid), "/"), Machine: mid, Err: fmt.Errorf(
			"recovery point is in the catalog and not in the repository's log: the log was cut off or rolled back: %w", cause)}
	}
	m, err := r.machine(ctx, mid)
	if errors.Is(err, ErrNotFound) {
		return false, lost(err)
	}
	if err != nil {
		return false, err
	}
	records, err := m.log.Read(ctx)
	if err != nil {
		return false, err
	}
	entry := int64(-1)
	for _, rec := range records {
		if rec.Err == nil && rec.Point == point && (rec.Kind == machinelog.Commit || rec.Kind == machinelog.Delete) {
			entry, deleted = rec.N, rec.Kind == machinelog.Delete
		}
	}
	if entry < 0 {
		return false, lost(ErrNotFound)
	}
	// It was read once; a process that runs for long has it in memory, whatever
	// became of it since.
	if _, err := r.st.Stat(ctx, format.LogKey(mid, entry)); err != nil {
		err = damage.FromStore(format.LogKey(mid, entry), err)
		if errors.Is(err, ErrNotFound) {
			return deleted, lost(err)
		}
		return deleted, err
	}
	return deleted, nil
}
