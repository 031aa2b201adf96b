package copies

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/inside"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/repository/internal/transfer"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// ErrBeyondRepair says that a damaged object is whole nowhere, or has to be the
// repository's own.
var ErrBeyondRepair = errors.New("it is whole nowhere else")

// Repaired is a damaged or missing object that was brought back, or can be.
type Repaired struct {
	Object string
	From   string // id of the repository that had it; "" = this one: the object's other copy
	As     string // key in the store, where it is another one now
	// Held is until when the store locks the damaged original, which stays until
	// then; what stands for it is read. Zero: it is gone.
	Held time.Time
}

// RepairFailure is an object that could not be brought back.
type RepairFailure struct {
	Object string
	Err    error // ErrBeyondRepair, or what failed
}

// RepairResult says what a repair did.
type RepairResult struct {
	Repaired []Repaired
	Failed   []RepairFailure
}

// RepairOptions say how to repair.
type RepairOptions struct {
	DryRun   bool // say what can be repaired from where, and write nothing
	Progress func(done, total int)
}

// Repair brings back the damaged or missing objects of r with these keys, from
// their second copies or from other repositories that have the same machine;
// docs/spec/repository.md, section 15. What is whole stays as it is. Killed, it
// goes on when it is run again. Look at what was damaged again afterwards.
func Repair(ctx context.Context, r *repository.Repository, others []*repository.Repository, keys []string, o RepairOptions) (RepairResult, error) {
	x := &repairing{r: r, in: r.Inside(), others: others, o: o, keys: keys, short: map[string]map[string]bool{}}
	if x.in.Writer == nil && !o.DryRun {
		return x.res, x.in.ReadOnly("repair")
	}
	machines := map[string]bool{}
	for i, key := range keys {
		if o.Progress != nil {
			o.Progress(i, len(keys))
		}
		done, err := x.object(ctx, key)
		if errors.Is(err, store.ErrLocked) {
			done, err = x.held(ctx, key, done, err)
		}
		if ctx.Err() != nil {
			return x.res, context.Cause(ctx)
		}
		switch {
		case errors.Is(err, errWhole):
			continue
		case err != nil:
			x.res.Failed = append(x.res.Failed, RepairFailure{key, err})
			continue
		}
		done.Object = key
		x.res.Repaired = append(x.res.Repaired, done)
		if part := strings.Split(strings.TrimPrefix(key, twin.Prefix), "/"); len(part) > 1 {
			machines[part[1]] = true
		}
	}
	if o.Progress != nil {
		o.Progress(len(keys), len(keys))
	}
	for mid := range machines { // what is remembered of the damaged objects is of no use
		x.in.Forget(mid)
	}
	return x.res, nil
}

type repairing struct {
	r      *repository.Repository
	in     inside.Repository
	others []*repository.Repository
	o      RepairOptions
	res    RepairResult
	keys   []string
	short  map[string]map[string]bool // see lacking
}

// errWhole says that there is nothing to repair.
var errWhole = errors.New("the object is whole")

func (x *repairing) object(ctx context.Context, key string) (Repaired, error) {
	original := strings.TrimPrefix(key, twin.Prefix)
	part := strings.Split(original, "/")
	switch part[0] {
	case format.ConfigKey, strings.TrimSuffix(format.HolderPrefix, "/"), strings.TrimSuffix(format.TrustPrefix, "/"):
		return x.twin(ctx, original, envelope.CheckFrame)
	}
	if key != original && part[0] != "machines" || len(part) < 3 || !format.ValidID(part[1]) {
		return Repaired{}, fmt.Errorf("repair %s: no object of a repository has this name: %w", key, ErrBeyondRepair)
	}
	if part[0] == "machines" {
		return x.machine(ctx, original, part[1])
	}
	m, _, err := x.in.Machine(ctx, part[1])
	if err != nil {
		return Repaired{}, err
	}
	switch part[0] {
	case "points":
		digest, err := x.manifestDigest(ctx, m.ID, part[2])
		if err != nil {
			return Repaired{}, err
		}
		return x.small(ctx, key, func(raw []byte) error {
			if trust.Digest(raw) != digest {
				return fmt.Errorf("it is not the manifest that was committed: %w", format.ErrCorrupt)
			}
			return nil
		})
	case "side":
		return x.small(ctx, key, func(raw []byte) error { return checkSidecar(m, key, raw) })
	case "headers-a", "headers-b":
		return x.header(ctx, m, key, part[2])
	case "seg", "map":
		return x.large(ctx, m, key)
	case "ledger":
		if x.r.CheckObject(ctx, key) == nil {
			return Repaired{}, errWhole
		}
		return Repaired{}, x.remove(ctx, key)
	}
	return Repaired{}, fmt.Errorf("repair %s: it is the repository's own, and whole nowhere: %w", key, ErrBeyondRepair)
}

// twin brings back the damaged one of two copies.
func (x *repairing) twin(ctx context.Context, key string, check func([]byte) error) (Repaired, error) {
	whole := map[string][]byte{}
	for _, at := range []string{key, twin.Prefix + key} {
		raw, err := transfer.Read(ctx, x.in.Store, at, check)
		if err == nil {
			whole[at] = raw
		} else if !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) {
			return Repaired{}, err
		}
	}
	switch {
	case len(whole) == 0:
		return Repaired{}, fmt.Errorf("repair %s: neither copy is whole: %w", key, ErrBeyondRepair)
	case len(whole) == 2 && bytes.Equal(whole[key], whole[twin.Prefix+key]):
		return Repaired{}, errWhole
	case len(whole) == 2:
		return Repaired{}, fmt.Errorf("repair %s: its copies differ, and both look whole: %w", key, ErrBeyondRepair)
	}
	for at, raw := range whole {
		bad := key
		if at == key {
			bad = twin.Prefix + key
		}
		if err := x.rewrite(ctx, bad, raw); err != nil {
			return Repaired{}, err
		}
	}
	return Repaired{}, nil
}

// machine brings back a machine's record: from its twin, else wrapped anew
// from another repository.
func (x *repairing) machine(ctx context.Context, key, mid string) (Repaired, error) {
	done, err := x.twin(ctx, key, func(raw []byte) error {
		_, err := envelope.OpenFrame(raw, format.KindMachine, x.in.DEK, []byte(key))
		return err
	})
	if !errors.Is(err, ErrBeyondRepair) {
		return done, err
	}
	for _, o := range x.others {
		rec, oerr := readRecord(ctx, o.Inside(), mid)
		if oerr != nil {
			continue
		}
		defer rec.wipe()
		if x.o.DryRun {
			return Repaired{From: o.ID()}, nil
		}
		for _, at := range []string{key, twin.Prefix + key} {
			if err := x.remove(ctx, at); err != nil {
				return Repaired{}, err
			}
		}
		return Repaired{From: o.ID()}, rec.write(ctx, x.in, x.r.Trust)
	}
	return Repaired{}, err
}

// manifestDigest is what the log says of a recovery point's manifest.
func (x *repairing) manifestDigest(ctx context.Context, mid, pid string) (string, error) {
	_, log, err := x.in.Machine(ctx, mid)
	if err != nil {
		return "", err
	}
	records, err := log.Read(ctx)
	if err != nil {
		return "", err
	}
	for _, rec := range machinelog.Listed(records) {
		if rec.Point == pid {
			return rec.Manifest, nil
		}
	}
	return "", fmt.Errorf("repair manifest of %s: the log does not list it: %w", pid, ErrBeyondRepair)
}

// small brings an object back, with the same bytes, from whoever has it whole.
func (x *repairing) small(ctx context.Context, key string, check func([]byte) error) (Repaired, error) {
	_, err := transfer.Read(ctx, x.in.Store, key, check)
	if err == nil {
		return Repaired{}, errWhole
	}
	if !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) {
		return Repaired{}, err
	}
	var tried []error
	for _, o := range x.others {
		raw, err := transfer.Read(ctx, o.Store(), key, check)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", o.Store().Location(), err))
			continue
		}
		return Repaired{From: o.ID()}, x.rewrite(ctx, key, raw)
	}
	return Repaired{}, beyond(key, tried)
}

func beyond(key string, tried []error) error {
	return fmt.Errorf("repair %s: %w", key, errors.Join(append([]error{ErrBeyondRepair}, tried...)...))
}

func (x *repairing) header(ctx context.Context, m *machinekey.Keys, key, hid string) (Repaired, error) {
	check := func(raw []byte) error {
		_, err := envelope.OpenFrame(raw, format.KindHeader, m.Header, []byte(key))
		return err
	}
	done, err := x.small(ctx, key, check)
	if err == nil || !errors.Is(err, ErrBeyondRepair) {
		return done, err
	}
	// Its other copy, sealed for another place, has the same content.
	for _, o := range append([]*repository.Repository{x.r}, x.others...) {
		for _, at := range format.HeaderKeys(m.ID, hid) {
			body, berr := smallobject.Get(ctx, o.Store(), at, format.KindHeader, m.Header)
			if berr != nil {
				continue
			}
			frame, err := envelope.SealFrame(format.KindHeader, m.Header, []byte(key), body)
			if err != nil {
				return Repaired{}, err
			}
			if o != x.r {
				done.From = o.ID()
			}
			return done, x.rewrite(ctx, key, frame)
		}
	}
	return Repaired{}, err
}

// large brings a segment or map object back under another name.
func (x *repairing) large(ctx context.Context, m *machinekey.Keys, key string) (Repaired, error) {
	err := transfer.CheckLarge(ctx, x.in.Store, m, x.in.Sealed, key)
	if err == nil {
		return Repaired{}, errWhole
	}
	if !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) {
		return Repaired{}, err
	}
	if errors.Is(err, repository.ErrNotFound) {
		whole, err := x.replaced(ctx, m, key)
		if err != nil {
			return Repaired{}, err
		}
		if whole {
			return Repaired{}, errWhole
		}
	}
	var tried []error
	for _, o := range x.others {
		if o.Sealing() != x.r.Sealing() {
			continue
		}
		done, err := x.replace(ctx, m, o, key)
		if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrLocked) {
			return done, err
		}
		tried = append(tried, fmt.Errorf("%s: %w", o.Store().Location(), err))
	}
	return Repaired{}, beyond(key, tried)
}

func (x *repairing) replace(ctx context.Context, m *machinekey.Keys, from *repository.Repository, key string) (Repaired, error) {
	done := Repaired{From: from.ID()}
	has, err := transfer.Has(ctx, from.Store(), m, x.in.Sealed, key)
	if err != nil || x.o.DryRun {
		return done, err
	}
	// A repair that was interrupted, or that the store kept from its end, left what it wrote.
	if as, err := transfer.Covered(ctx, x.in.Store, from.Store(), m, x.in.Sealed, key); err == nil && as != "" && as != key {
		done.As = as
		return done, x.remove(ctx, key)
	}
	if has.SameName { // its name is the only one it can have
		if err := x.remove(ctx, key); err != nil {
			return done, err
		}
	}
	info, err := transfer.Replace(ctx, x.in.Store, from.Store(), m, x.in.Sealed, key)
	if err != nil {
		return done, err
	}
	if info.Key == key {
		return done, nil
	}
	done.As = info.Key
	return done, x.remove(ctx, key)
}

// held says what became of a damaged object that the store does not let go:
// where something stands for it, a replica or its other copy, that is read, and
// the repair is done as far as it can be.
func (x *repairing) held(ctx context.Context, key string, done Repaired, why error) (Repaired, error) {
	until := time.Time{}
	if l, ok := retainlock.Locker(x.in.Store); ok {
		var err error
		if until, err = l.RetainedUntil(ctx, key); err != nil {
			return done, errors.Join(why, err)
		}
	}
	if done.As == "" && !x.otherCopy(ctx, key) {
		return done, fmt.Errorf("%w, until %s", why, until.UTC().Format(time.RFC3339))
	}
	done.Held = until
	return done, nil
}

// otherCopy says whether the second copy of an object is here, and whole.
func (x *repairing) otherCopy(ctx context.Context, key string) bool {
	part := strings.Split(key, "/")
	if strings.HasPrefix(part[0], "headers-") && len(part) == 3 {
		for _, at := range format.HeaderKeys(part[1], part[2]) {
			if at != key {
				return x.r.CheckObject(ctx, at) == nil
			}
		}
	}
	return false
}

// remove deletes a damaged object. What it stood for is at hand, or durable.
func (x *repairing) remove(ctx context.Context, key string) error {
	if x.o.DryRun {
		return nil
	}
	if err := x.in.Store.Delete(ctx, key); err != nil && !errors.Is(err, store.ErrNotExist) {
		return fmt.Errorf("remove the damaged %s: %w", key, err)
	}
	return nil
}

// rewrite puts the right bytes in the place of the damaged ones.
func (x *repairing) rewrite(ctx context.Context, key string, raw []byte) error {
	if err := x.remove(ctx, key); err != nil || x.o.DryRun {
		return err
	}
	_, err := transfer.Put(ctx, x.in.Store, key, raw)
	return err
}
