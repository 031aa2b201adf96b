package export_test

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/export/exporttest"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// damage flips a byte in the middle, or removes, of all objects below a prefix
// those that which takes by their turn.
func damage(t *testing.T, st *memstore.Store, prefix string, remove bool, which func(i int) bool) {
	t.Helper()
	var keys []string
	if err := st.List(t.Context(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil || len(keys) == 0 {
		t.Fatalf("nothing below %s, %v", prefix, err)
	}
	for i, key := range keys {
		if !which(i) {
			continue
		}
		var err error
		if remove {
			err = st.Delete(t.Context(), key)
		} else {
			err = st.Corrupt(key, func(p []byte) []byte { p[len(p)/2] ^= 8; return p })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func every(int) bool    { return true }
func even(i int) bool   { return i%2 == 0 }
func uneven(i int) bool { return i%2 != 0 }

// What is damaged in the repository that is read from comes from another, with
// a word about it for each disk; what is whole does not. What is damaged in both
// at the same place is an error, never zeroes.
func TestDamageIsReadElsewhere(t *testing.T) {
	vda, vdb := contents()
	type harm func(t *testing.T, near, far *memstore.Store)
	for _, c := range []struct {
		name  string
		harm  harm
		told  string // disks; "some": by the order of names, which are random
		asked int32
		lost  bool
	}{
		{"nothing", func(*testing.T, *memstore.Store, *memstore.Store) {}, "", 0, false},
		{"a byte in each segment", func(t *testing.T, near, _ *memstore.Store) { damage(t, near, "seg/", false, every) }, "vda vdb", 1, false},
		{"every segment is gone", func(t *testing.T, near, _ *memstore.Store) { damage(t, near, "seg/", true, every) }, "vda vdb", 1, false},
		{"the maps are gone", func(t *testing.T, near, _ *memstore.Store) { damage(t, near, "map/", true, every) }, "vda vdb", 1, false},
		{"half is gone here, half there", func(t *testing.T, near, far *memstore.Store) {
			damage(t, near, "seg/", true, even)
			damage(t, far, "seg/", true, uneven)
		}, "some", 1, false},
		{"both", func(t *testing.T, near, far *memstore.Store) {
			damage(t, near, "seg/", true, every)
			damage(t, far, "seg/", true, every)
		}, "", 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := memstore.New(), memstore.New()
			r, _ := exporttest.Repository(t, near)
			other, custodian := exporttest.Repository(t, far)
			m := exporttest.Store(t, r, exporttest.Disk{ID: "vda", Content: vda}, exporttest.Disk{ID: "vdb", Content: vdb})
			if _, err := copies.Copy(t.Context(), r, other, m.Machine, copies.Options{Custodian: &custodian}); err != nil {
				t.Fatal(err)
			}
			c.harm(t, near, far)
			r.Inside().Forget(m.Machine) // as if opened anew
			var asked atomic.Int32
			told := make(chan string, 100)
			p := exporttest.Open(t, r, m, export.Options{
				Elsewhere: func() []*repository.Repository { asked.Add(1); return []*repository.Repository{other} },
				Borrowed: func(disk string, why error) {
					if !errors.Is(why, repository.ErrDamaged) {
						t.Errorf("disk %s is borrowed because of: %v", disk, why)
					}
					told <- disk
				},
			})
			for i, want := range [][]byte{vda, vdb} {
				d := p.Disks[i]
				for _, step := range []int64{1 << 20, 3 * disk.BlockSize / 2, d.Size()} { // past the cache, and through it
					got := make([]byte, d.Size())
					var err error
					for at := int64(0); at < d.Size() && err == nil; at += step {
						_, err = d.ReadAt(got[at:min(at+step, d.Size())], at)
					}
					if c.lost {
						if !errors.Is(err, repository.ErrDamaged) {
							t.Errorf("disk %s, whole nowhere: %v", d.ID, err)
						}
					} else if err != nil || !bytes.Equal(got, want) {
						t.Errorf("disk %s in steps of %d: %v, or wrong content", d.ID, step, err)
					}
				}
				for at := int64(0); !c.lost; {
					data, err := d.NextData(at)
					if err != nil {
						break
					}
					if bytes.Count(want[at:data.Offset], []byte{0}) != int(data.Offset-at) {
						t.Errorf("disk %s has data before %+v", d.ID, data)
					}
					at = data.End()
				}
			}
			close(told)
			var disks []string
			for d := range told {
				disks = append(disks, d)
			}
			if got := strings.Join(disks, " "); got != c.told && (c.told != "some" || got == "") {
				t.Errorf("told of %q, want %q", got, c.told)
			}
			if asked.Load() != c.asked {
				t.Errorf("other repositories were asked for %d times, want %d", asked.Load(), c.asked)
			}
		})
	}
}

// A header copy that is damaged in both its places is read elsewhere.
func TestHeaderCopyFromElsewhere(t *testing.T) {
	near, far := memstore.New(), memstore.New()
	r, _ := exporttest.Repository(t, near)
	other, custodian := exporttest.Repository(t, far)
	content := bytes.Repeat([]byte("header  "), 1<<15)
	m := exporttest.Store(t, r, exporttest.Disk{ID: "vda", Content: content, Header: true})
	if _, err := copies.Copy(t.Context(), r, other, m.Machine, copies.Options{Custodian: &custodian}); err != nil {
		t.Fatal(err)
	}
	id := m.Disks[0].Headers[0].ID
	for _, key := range format.HeaderKeys(m.Machine, id) {
		if err := near.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	alone := exporttest.Open(t, r, m, export.Options{})
	if _, err := export.Header(alone, t.Context(), r, id); err == nil {
		t.Error("the header copy is still there")
	}
	p := exporttest.Open(t, r, m, export.Options{Elsewhere: func() []*repository.Repository { return []*repository.Repository{other} }})
	h, err := export.Header(p, t.Context(), r, id)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 512)
	if _, err := h.ReadAt(got, 0); err != nil || !bytes.Equal(got, content[:512]) {
		t.Errorf("%v, or another header", err)
	}
}
