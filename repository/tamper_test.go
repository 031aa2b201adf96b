package repository_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/verify"
)

// judge reads everything and verifies everything; it says whether the damage
// was noticed by either, and fails on wrong content or a hidden recovery point.
func (s *sample) judge(st store.Store) (restore, scrub bool, wrong error) {
	detected, wrong := s.restoreAll(st, scanDisk)
	r, err := s.openReader(st)
	if err != nil {
		return detected != nil, true, wrong
	}
	defer r.Close()
	res, err := verify.Run(ctxBackground, verify.Request{Repository: r})
	return detected != nil, err != nil || len(res.Damage) > 0, wrong
}

// TestEveryObjectTampered removes each object, cuts it, makes it longer, empties
// it, and puts another of its kind in its place.
func TestEveryObjectTampered(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		t.Run(sealing, func(t *testing.T) {
			s := newSample(t, sealing)
			keys := allKeys(t, s.mem, "")
			byKind := map[string][]string{}
			for _, key := range keys {
				byKind[kindOf(key)] = append(byKind[kindOf(key)], key)
			}
			newest := ""
			for _, key := range byKind["log"] {
				newest = max(newest, key)
			}
			type variant struct {
				what, key string
				data      []byte
				gone      bool
			}
			var vs []variant
			for _, key := range keys {
				if sealing == repository.SealingNone && kindOf(key) != "seg" {
					continue // sealed all the same
				}
				raw := get(t, s.mem, key)
				vs = append(
					vs,
					variant{"removed", key, nil, true},
					variant{"emptied", key, []byte{}, false},
					variant{"halved", key, raw[:len(raw)/2], false},
					variant{"cut by one byte", key, raw[:len(raw)-1], false},
					variant{"one byte longer", key, append(raw[:len(raw):len(raw)], 0), false},
					variant{"twice as long", key, append(raw[:len(raw):len(raw)], raw...), false},
				)
				others := byKind[kindOf(key)]
				for i, other := range others {
					// All of the same kind for what is few, neighbours for the rest.
					if other == key || len(others) > 4 && others[(i+1)%len(others)] != key && others[(i+2)%len(others)] != key {
						continue
					}
					vs = append(vs, variant{"replaced by " + other, key, get(t, s.mem, other), false})
				}
			}
			if testing.Short() {
				for i := range vs[:len(vs)/5] {
					vs[i] = vs[5*i]
				}
				vs = vs[:len(vs)/5]
			}
			errs := make([]string, len(vs))
			forEach(len(vs), func(i int) {
				v := vs[i]
				_, scrub, wrong := s.judge(&lyingStore{Store: s.mem, key: v.key, data: v.data, gone: v.gone})
				// A reader of the store alone cannot know that a newest entry was
				// ever there; the delete entry is this one's, so a point comes back.
				if v.key == newest && v.gone {
					if scrub || wrong == nil {
						errs[i] = "the newest log entry's removal came out otherwise than the specification says"
					}
					return
				}
				if wrong != nil {
					errs[i] = wrong.Error()
				} else if !scrub && !s.mayPass(v.what, v.key) {
					errs[i] = "not noticed by verify"
				}
			})
			for i, e := range errs {
				if e != "" {
					t.Errorf("%s %s: %s", vs[i].key, vs[i].what, e)
				}
			}
			t.Logf("%d variants of %d objects", len(vs), len(keys))
		})
	}
}

// mayPass names what verification of the store cannot notice: a sidecar that
// is gone (they are additions that nothing refers to), what only a recovery point refers to that
// was taken off the list, and a key package in another's place, which is not
// sealed here and names its recovery point inside.
func (s *sample) mayPass(what, key string) bool {
	switch {
	case key == "points/"+s.machine.ID+"/"+s.gone.ID && what == "removed",
		strings.HasPrefix(key, fmt.Sprintf("map/%s/%08x/", s.machine.ID, s.gone.Sequence)) && (what == "removed" || strings.HasPrefix(what, "replaced by")):
		return true
	case kindOf(key) == "side" && what == "removed":
		return true
	case strings.Contains(key, "/keypackage-") || strings.Contains(key, "/headerpackage-"):
		return strings.HasPrefix(what, "replaced by") && (strings.Contains(what, "/keypackage-") || strings.Contains(what, "/headerpackage-"))
	}
	return false
}

func TestNewestEntryRemoved(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	log := allKeys(t, s.mem, "log/")
	// A whole log without its last entries is a valid log: only a catalog, or
	// a recovery kit's note of the newest one, can tell.
	for n := len(log) - 1; n >= 0; n-- {
		if err := s.mem.Delete(t.Context(), log[n]); err != nil {
			t.Fatal(err)
		}
		r, err := s.openReader(s.mem)
		if err != nil {
			t.Fatal(err)
		}
		points, err := r.Points(t.Context(), s.machine.ID)
		if err != nil || len(points) != min(n, 4) {
			t.Fatalf("%d entries list %d points, %v", n, len(points), err)
		}
	}
}

func TestMiddleEntryLost(t *testing.T) {
	for n := range 4 {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := newSample(t, repository.SealingAESGCM)
			log := allKeys(t, s.mem, "log/")
			if err := s.mem.Delete(t.Context(), log[n]); err != nil {
				t.Fatal(err)
			}
			s.repo = s.open(t)
			points, err := s.repo.Points(t.Context(), s.machine.ID)
			var de *repository.DamageError
			if !errors.As(err, &de) || de.Object != log[n] || !errors.Is(err, repository.ErrNotFound) {
				t.Fatalf("the lost entry is reported as %v", err)
			}
			want := 3
			if n == 1 { // the deleted one's
				want = 3
			} else {
				want = 2
			}
			if len(points) != want {
				t.Fatalf("%d points are listed, want %d", len(points), want)
			}
			for _, p := range points {
				m, err := s.repo.Manifest(t.Context(), p)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range m.Disks {
					if got, err := readDisk(s.repo, m, d); err != nil || string(got) != string(s.images[imageKey(p.ID, d.ID)]) {
						t.Fatalf("point %d: %v", p.Sequence, err)
					}
				}
			}
			// The next backup goes behind all that is there, and takes as parent only what was committed later than the lost entry.
			p := s.backupAll(t, []namedDisk{{"vda", &memDisk{p: noise(1, 70000)}}})
			if p.Sequence != int64(len(log)) {
				t.Fatalf("committed as entry %d, want %d", p.Sequence, len(log))
			}
			if after, err := s.repo.Points(t.Context(), s.machine.ID); len(after) != want+1 || !errors.Is(err, repository.ErrDamaged) {
				t.Fatalf("%d points afterwards, %v", len(after), err)
			}
			wantParent := s.points[2].ID
			if n == 3 {
				wantParent = ""
			}
			if p.Parent != wantParent {
				t.Fatalf("parent is %q, want %q", p.Parent, wantParent)
			}
		})
	}
}

// A number far beyond the others must not make a reader walk there.
func TestLogGapIsBounded(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	put(t, s.mem, "log/"+s.machine.ID+"/7fffffffffffffff", []byte("x"))
	r, err := s.openReader(s.mem)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Points(t.Context(), s.machine.ID); !errors.Is(err, repository.ErrDamaged) {
		t.Fatalf("it is reported as %v", err)
	}
}

func TestTrustEntryLost(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	for range 2 {
		if err := s.repo.PublishKeys(t.Context(), s.custodian, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"trust/0000000000000001", "copies/trust/0000000000000001"} {
		if _, err := s.openReader(s.mem); err != nil {
			t.Fatalf("with one copy left: %v", err)
		}
		if err := s.mem.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.openReader(s.mem)
	var de *repository.DamageError
	if !errors.As(err, &de) || de.Object != "trust/0000000000000001" {
		t.Fatalf("a lost trust entry is reported as %v", err)
	}
}

func TestMachineRecordLost(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	key := "machines/" + s.machine.ID + "/key"
	for _, k := range []string{key, "copies/" + key} {
		if err := s.mem.Delete(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	r := s.open(t)
	if _, err := r.Points(t.Context(), s.machine.ID); !errors.Is(err, repository.ErrNotFound) {
		t.Fatalf("points of a machine without its record: %v", err)
	}
	if _, err := r.CreateMachine(t.Context(), s.machine.ID, "vm1"); !errors.Is(err, repository.ErrDamaged) {
		t.Fatalf("new keys over old data: %v", err)
	}
	res, err := verify.Run(t.Context(), verify.Request{Repository: r})
	if err != nil || len(res.Damage) == 0 {
		t.Fatalf("verify sees %v, %v", res.Damage, err)
	}
}

// TestTrustEntryLostBehindOneCopy: where second copies are missing, later
// entries are found by their first ones.
func TestTrustEntryLostBehindOneCopy(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	for range 2 {
		if err := s.repo.PublishKeys(t.Context(), s.custodian, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 3 {
		key := fmt.Sprintf("copies/trust/%016x", n)
		if err := s.mem.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.mem.Delete(t.Context(), "trust/0000000000000001"); err != nil {
		t.Fatal(err)
	}
	_, err := s.openReader(s.mem)
	var de *repository.DamageError
	if !errors.As(err, &de) || de.Object != "trust/0000000000000001" {
		t.Fatalf("a lost trust entry is reported as %v", err)
	}
}

// TestHolderWithOneCopy: whichever copies of the wrapped keys are gone, the
// repository opens, and a writer brings back what it sees or is asked to.
func TestHolderWithOneCopy(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	firsts := allKeys(t, s.mem, "keys/")
	if len(firsts) == 0 {
		t.Fatal("no holders")
	}
	gone := func(prefix string, keys []string) {
		t.Helper()
		for _, key := range keys {
			if err := s.mem.Delete(t.Context(), prefix+key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, prefix := range []string{"", "copies/"} {
		gone(prefix, firsts)
		if _, err := s.openReader(s.mem); err != nil {
			t.Fatalf("without %skeys/: %v", prefix, err)
		}
		r := s.open(t)
		if healed := r.TakeHealed(); len(healed) != len(firsts) {
			t.Errorf("without %skeys/: brought back %v of %v", prefix, healed, firsts)
		}
	}
	// One that is not needed for opening comes back when all is looked at.
	if err := s.repo.AddHolder(t.Context(), repository.NewHolder{Name: "zz", Passphrase: envelope.NewSecret([]byte("one more")), WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	gone("copies/", []string{"keys/zz"})
	r := s.open(t)
	if err := r.Objects(t.Context(), func(store.Info) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if healed := r.TakeHealed(); len(healed) != 1 || healed[0] != "copies/keys/zz" {
		t.Errorf("brought back %v", healed)
	}
}
