package repository_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/verify"
)

// damaged gives the keys that a verification of everything names.
func damaged(tb testing.TB, r *repository.Repository) (keys []string) {
	tb.Helper()
	res, err := verify.Run(tb.Context(), verify.Request{Repository: r, All: true})
	if err != nil {
		tb.Fatal(err)
	}
	for _, d := range res.Damage {
		if !slices.Contains(keys, d.Object) {
			keys = append(keys, d.Object)
		}
	}
	return keys
}

// TestRepair flips a bit in every object of a repository in turn, or loses it: a
// verification names it, a copy elsewhere brings it back, and all is whole again.
func TestRepair(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	p.copy(t, p.options())
	sound := p.mem.Clone()
	for _, key := range allKeys(t, sound, "") {
		for _, how := range []string{"flip", "lose"} {
			kind := kindOf(key)
			if _, err := p.dstMem.Stat(t.Context(), key); err != nil && (kind == "map" || kind == "points") {
				continue // of the recovery point that was deleted: nobody needs it
			}
			mem := sound.Clone()
			if how == "flip" {
				raw := get(t, mem, key)
				replace(t, mem, key, flip(raw, len(raw)/2))
			} else if err := mem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			f := *p.fixture
			f.st = mem
			r, err := repository.Open(t.Context(), mem, repository.OpenOptions{
				Unlock: repository.Unlocker{Identities: envelope.CopySecret(f.identity.Expose())}, Writer: &f.writer, TrustRoot: f.trust,
			})
			if err != nil {
				t.Fatalf("%s %s: %v", how, key, err)
			}
			found := damaged(t, r)
			switch {
			case kind == "log": // a repository's own, and kept once
				res, err := copies.Repair(t.Context(), r, []*repository.Repository{p.dst.repo}, found, copies.RepairOptions{})
				if err != nil || len(res.Repaired) != 0 {
					t.Errorf("%s %s: %+v, %v", how, key, res, err)
				}
				continue
			case how == "lose" && kind == "side" || how == "lose" && !slices.Contains(found, key):
				// What only the catalog misses, or was healed from its second copy at once.
				found = append(found, key)
			case !slices.Contains(found, key):
				t.Errorf("%s %s: a verification names %v", how, key, found)
				continue
			}
			before := allKeys(t, mem, "")
			dry, err := copies.Repair(t.Context(), r, []*repository.Repository{p.dst.repo}, found, copies.RepairOptions{DryRun: true})
			if err != nil || len(dry.Failed) != 0 || !slices.Equal(before, allKeys(t, mem, "")) {
				t.Errorf("%s %s: dry run: %+v, %v", how, key, dry, err)
			}
			res, err := copies.Repair(t.Context(), r, []*repository.Repository{p.dst.repo}, found, copies.RepairOptions{})
			if err != nil || len(res.Failed) != 0 || len(res.Repaired) != len(dry.Repaired) {
				t.Errorf("%s %s: %+v, %v", how, key, res, err)
				continue
			}
			if left := damaged(t, r); len(left) != 0 {
				t.Errorf("%s %s: damaged after the repair: %v", how, key, left)
			}
			if detected, wrong := p.restoreAll(mem, scanDisk); detected != nil || wrong != nil {
				t.Errorf("%s %s: %v, %v", how, key, detected, wrong)
			}
			if kind == "seg" || kind == "map" {
				if len(res.Repaired) != 1 || !strings.HasPrefix(res.Repaired[0].As, key+"-") {
					t.Errorf("%s %s: %+v", how, key, res)
				}
			}
			r.Close()
		}
	}
}

// TestRepairIsKilled strikes every change that a repair makes.
func TestRepairIsKilled(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	p.copy(t, p.options())
	var keys []string
	for _, prefix := range []string{"seg/", "map/", "points/", "headers-a/", "keys/", "machines/", "side/"} {
		all := allKeys(t, p.mem, prefix)
		if strings.HasSuffix(all[0], "/"+p.gone.ID) { // the manifest of what is deleted is whole nowhere else
			all = all[1:]
		}
		key := all[0]
		raw := get(t, p.mem, key)
		replace(t, p.mem, key, flip(raw, len(raw)/2))
		keys = append(keys, key)
	}
	for n := 1; ; n++ {
		for _, fault := range []*faultstore.Fault{faultstore.KillBefore(faultstore.Any, n, nil), faultstore.KillAfter(faultstore.Any, n, nil)} {
			mem := p.mem.Clone()
			st := faultstore.New(mem)
			f := *p.fixture
			f.st = st
			r := f.open(t)
			st = faultstore.New(mem, fault) // opening is no part of it
			f.st = st
			r.Close()
			r, err := repository.Open(t.Context(), st, repository.OpenOptions{
				Unlock: repository.Unlocker{Identities: envelope.CopySecret(f.identity.Expose())}, Writer: &f.writer, TrustRoot: f.trust,
			})
			if err == nil {
				_, _ = copies.Repair(t.Context(), r, []*repository.Repository{p.dst.repo}, keys, copies.RepairOptions{})
				r.Close()
			}
			if len(st.Unexercised()) > 0 {
				return
			}
			f.st = mem
			r = f.open(t)
			res, err := copies.Repair(t.Context(), r, []*repository.Repository{p.dst.repo}, keys, copies.RepairOptions{})
			if err != nil || len(res.Failed) != 0 {
				t.Fatalf("%s: the next run: %+v, %v", fault, res, err)
			}
			if detected, wrong := p.restoreAll(mem, scanDisk); detected != nil || wrong != nil {
				t.Fatalf("%s: %v, %v", fault, detected, wrong)
			}
			r.TakeHealed() // what was opened again healed by itself
			if left := damaged(t, r); len(left) != 0 {
				t.Fatalf("%s: damaged after the repair: %v", fault, left)
			}
			r.Close()
		}
	}
}

// TestRepairNeedsSomebodyWhole: where the copy is damaged too, nothing is
// taken from it and nothing is deleted.
func TestRepairNeedsSomebodyWhole(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	p.copy(t, p.options())
	for _, key := range data(t, p.mem) {
		if strings.HasPrefix(key, "headers") {
			continue // one is made from the other
		}
		if _, err := p.dstMem.Stat(t.Context(), key); err != nil {
			continue
		}
		raw := get(t, p.mem, key)
		bad := flip(raw, len(raw)/2)
		replace(t, p.mem, key, bad)
		replace(t, p.dstMem, key, flip(raw, len(raw)/2-1))
		res, err := copies.Repair(t.Context(), p.repo, []*repository.Repository{p.dst.repo}, []string{key}, copies.RepairOptions{})
		if err != nil || len(res.Repaired) != 0 || len(res.Failed) != 1 || !errors.Is(res.Failed[0].Err, copies.ErrBeyondRepair) {
			t.Errorf("%s: %+v, %v", key, res, err)
		}
		if got := get(t, p.mem, key); !slices.Equal(got, bad) {
			t.Errorf("%s was changed", key)
		}
		replace(t, p.mem, key, raw)
		replace(t, p.dstMem, key, raw)
	}
}

// TestRepairLeavesReplacedSegmentsAlone: a segment that reclaim rewrote is
// gone and not damaged; where its replica is gone too, it is brought back.
func TestRepairLeavesReplacedSegmentsAlone(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 64*65536)}
	first, _, err := backup(p.repo, p.machine.ID, d, repository.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.destination(t, repository.SealingAESGCM)
	d = &memDisk{p: bytes.Clone(d.p)}
	copy(d.p, noise(2, 48*65536))
	last, _, err := backup(p.repo, p.machine.ID, d, repository.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.copy(t, p.options())
	points, err := p.repo.Points(t.Context(), p.machine.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range points {
		if x.ID != last.ID {
			if err := p.repo.Delete(t.Context(), p.machine.ID, x.ID, "test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := p.repo.Reclaim(t.Context(), p.machine.ID, repository.ReclaimOptions{}); err != nil {
		t.Fatal(err)
	}
	var originals, replicas []string
	for _, key := range append(allKeys(t, p.mem, "seg/"), allKeys(t, p.mem, "map/")...) {
		if original, _, isReplica, _ := format.Original(key); isReplica {
			originals, replicas = append(originals, original), append(replicas, key)
		}
	}
	if !slices.ContainsFunc(originals, func(key string) bool { return strings.HasPrefix(key, "seg/") }) {
		t.Fatalf("no segment was rewritten after %s: %v", first.ID, replicas)
	}
	before := allKeys(t, p.mem, "")
	others := []*repository.Repository{p.dst.repo}
	res, err := copies.Repair(t.Context(), p.repo, others, originals, copies.RepairOptions{})
	if err != nil || len(res.Repaired)+len(res.Failed) != 0 || !slices.Equal(before, allKeys(t, p.mem, "")) {
		t.Fatalf("what is whole: %+v, %v", res, err)
	}
	for _, key := range replicas {
		if err := p.mem.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	r := p.open(t) // that remembers nothing
	defer r.Close()
	if res, err = copies.Repair(t.Context(), r, others, originals, copies.RepairOptions{}); err != nil || len(res.Repaired) != len(originals) {
		t.Fatalf("what is gone: %+v, %v", res, err)
	}
	if left := damaged(t, r); len(left) != 0 {
		t.Errorf("damaged after the repair: %v", left)
	}
}

// TestRepairOfLockedObjects damages segments and maps that the store locks: what
// was damaged stays, what stands for it is read, and a repair after the lock
// has ended takes the damaged ones away.
func TestRepairOfLockedObjects(t *testing.T) {
	f, st := lockedFixture(t)
	d := &memDisk{p: noise(1, 4<<20)}
	point, mf := f.backup(t, d, repository.BeginOptions{})
	other := newFixture(t, memstore.New(), repository.SealingAESGCM)
	if _, err := copies.Copy(t.Context(), f.repo, other.repo, f.machine.ID, copies.Options{Custodian: &other.custodian}); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for key := range f.needed(t, point) {
		keys = append(keys, key)
		raw := get(t, st, key)
		at := len(raw) / 2
		if kindOf(key) == "map" {
			at = format.MapHeaderSize + 20 // its first page
		}
		if err := st.Corrupt(key, func(p []byte) []byte { p[at] ^= 4; return p }); err != nil {
			t.Fatal(err)
		}
	}
	others := []*repository.Repository{other.repo}
	policy := repository.LockPolicy{For: 10 * day, Quantum: 2 * day}
	if _, err := f.openLocked(t, st, policy).Manifest(t.Context(), point); err != nil || len(damaged(t, f.openLocked(t, st, policy))) == 0 {
		t.Fatalf("nothing is damaged, %v", err)
	}
	var after []string
	for run := range 2 { // the second one finds what the first one wrote
		r := f.openLocked(t, st, policy)
		res, err := copies.Repair(t.Context(), r, others, keys, copies.RepairOptions{})
		if err != nil || len(res.Repaired) != len(keys) || len(res.Failed) != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		for _, x := range res.Repaired {
			if x.Held.Before(*mf.LockedUntil) || !strings.HasPrefix(x.As, x.Object+"-") || x.From != other.repo.ID() {
				t.Errorf("%+v, and the recovery point is locked until %v", x, mf.LockedUntil)
			}
		}
		if !bytes.Equal(content(t, f.openLocked(t, st, policy), point), d.p) {
			t.Error("the replicas are not read, or are something else")
		}
		for _, key := range damaged(t, f.openLocked(t, st, policy)) { // of the objects, not of what is read
			if kindOf(key) != "map" || !slices.Contains(keys, key) {
				t.Errorf("verify still names %s", key)
			}
		}
		now := st.keys(t, "")
		if run == 1 && !slices.Equal(now, after) {
			t.Errorf("the second run changed something: %v, %v", after, now)
		}
		after = now
	}
	// Reclaim leaves what stands for damaged originals.
	r := f.openLocked(t, st, policy)
	if _, err := r.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, f.openLocked(t, st, policy), point), d.p) {
		t.Error("reclaim took replicas away that stand for damaged originals")
	}
	st.pass(30 * day)
	r = f.openLocked(t, st, policy)
	res, err := copies.Repair(t.Context(), r, others, keys, copies.RepairOptions{})
	if err != nil || len(res.Repaired) != len(keys) || !res.Repaired[0].Held.IsZero() {
		t.Fatalf("when the lock has ended: %+v, %v", res, err)
	}
	r = f.openLocked(t, st, policy)
	if left := damaged(t, r); len(left) != 0 || !bytes.Equal(content(t, r, point), d.p) {
		t.Errorf("damaged when all locks have ended: %v, or another content", left)
	}
	if now := st.keys(t, ""); len(now) > len(after) || slices.ContainsFunc(keys, func(k string) bool { return slices.Contains(now, k) }) {
		t.Errorf("the damaged originals are still there: %v", now)
	}
}
