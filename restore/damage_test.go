package restore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/image"
)

// TestKeepGoing damages the store in ways that stop a restore: with KeepGoing
// all that is sound is written, the rest is zero, also over what a target held,
// and the list names it.
func TestKeepGoing(t *testing.T) {
	flip := func(at func(n int) int) func(*testing.T, *stored, string) {
		return func(t *testing.T, s *stored, key string) {
			if err := s.mem.Replace(key, func(p []byte) { p[at(len(p))] ^= 8 }); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name   string
		prefix string
		damage func(*testing.T, *stored, string)
		whole  bool // all data of the disk is lost
	}{
		{"a byte in the middle", "seg/", flip(func(n int) int { return n / 2 }), false},
		{"a segment's header", "seg/", flip(func(int) int { return 20 }), true},
		{"a segment that is gone", "seg/", func(t *testing.T, s *stored, key string) {
			if err := s.mem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"a map that is gone", "map/", func(t *testing.T, s *stored, key string) {
			if err := s.mem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStored(t)
			key := s.largest(t, c.prefix)
			c.damage(t, s, key)
			old := filepath.Join(t.TempDir(), "old")
			if err := os.WriteFile(old, bytes.Repeat([]byte{0xff}, len(s.a)), 0o600); err != nil {
				t.Fatal(err)
			}
			req := s.request(image.Opener{}.Open, restore.Target{Disk: "vda", Target: old})
			req.Options = target.Options{Force: true}
			if _, err := restore.Run(t.Context(), req); !errors.Is(err, repository.ErrDamaged) {
				t.Fatalf("without KeepGoing: %v", err)
			}
			req.KeepGoing = true
			done, err := restore.Run(t.Context(), req)
			if err != nil || len(done) != 1 {
				t.Fatal(done, err)
			}
			got, err := os.ReadFile(old)
			if err != nil {
				t.Fatal(err)
			}
			s.compare(t, got, done[0].Damaged, disk.Range{Length: int64(len(s.a))})
			var lost int64
			for _, d := range done[0].Damaged {
				lost += d.Range.Length
				if !errors.Is(d.Err, repository.ErrNotFound) && d.Object != key {
					t.Errorf("%+v names another object than %s", d, key)
				}
			}
			if most := int64(128 << 10); lost == 0 || c.whole == (lost <= most) {
				t.Errorf("%d bytes are named as lost", lost)
			}
			for name, part := range parts {
				var out bytes.Buffer
				d, err := restore.Stream(t.Context(), restore.StreamRequest{
					Repository: s.repo, Manifest: s.manifest, Disk: "vda", Part: part, To: &out, KeepGoing: true,
				})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				s.compare(t, out.Bytes(), d.Damaged, part)
			}
		})
	}
}

// largest is the largest object below a prefix: it holds disk vda.
func (s *stored) largest(t *testing.T, prefix string) string {
	t.Helper()
	var best store.Info
	if err := s.mem.List(t.Context(), prefix, func(i store.Info) error {
		if i.Size > best.Size {
			best = i
		}
		return nil
	}); err != nil || best.Key == "" {
		t.Fatal("nothing below "+prefix, err)
	}
	return best.Key
}

// compare compares a restored part of disk vda with what it was, but for what
// is damaged.
func (s *stored) compare(t *testing.T, got []byte, damaged []restore.Damaged, part disk.Range) {
	t.Helper()
	want := bytes.Clone(s.a)
	end := part.Offset
	for _, d := range damaged {
		if d.Range.Offset < end || d.Range.Length <= 0 || d.Range.End() > part.End() || d.Err == nil {
			t.Fatalf("damage %+v of %+v, behind %d", d, part, end)
		}
		clear(want[d.Range.Offset:d.Range.End()])
		end = d.Range.End()
	}
	if !bytes.Equal(got, want[part.Offset:part.End()]) {
		t.Errorf("%+v: what is not damaged differs", part)
	}
}

func TestLossesStayBounded(t *testing.T) {
	var total int64
	list := restore.LossesOf(disk.Range{Length: 1 << 40}, func(add func(disk.Range, string)) {
		for i := int64(0); i < 50000; i++ {
			r := disk.Range{Offset: (i * 7919 % 50000) * 131072, Length: 65536}
			total += r.Length
			add(r, "seg/x")
		}
	})
	if len(list) > 10000 || len(list) < 2500 {
		t.Errorf("%d ranges", len(list))
	}
	var named int64
	for i, d := range list {
		named += d.Range.Length
		if i > 0 && list[i-1].Range.End() > d.Range.Offset {
			t.Fatalf("%+v and %+v", list[i-1], d)
		}
	}
	if named < total {
		t.Errorf("%d bytes are named of %d", named, total)
	}
	// Neighbours in one object are one range.
	list = restore.LossesOf(disk.Range{Offset: 65536, Length: 300000}, func(add func(disk.Range, string)) {
		for i := range int64(8) {
			add(disk.Range{Offset: i * 65536, Length: 65536}, "seg/x")
		}
	})
	if len(list) != 1 || list[0].Range != (disk.Range{Offset: 65536, Length: 300000}) {
		t.Errorf("%+v", list)
	}
}
