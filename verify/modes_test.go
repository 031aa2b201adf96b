package verify_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/verify"
)

func readings(t *testing.T) catalog.Readings {
	t.Helper()
	c, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"), sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Maintenance.Close() })
	return c.Readings
}

// TestWhatEachModeFinds damages one thing at a time and lets every mode look:
// also what a mode does not find is what it promises.
func TestWhatEachModeFinds(t *testing.T) {
	modes := []string{"data", "structure", "sample", "scrub", "stored"}
	run := func(t *testing.T, w *two, mode string) ([]verify.Damage, error) {
		t.Helper()
		req := verify.Request{Repository: w.reader(t), All: true, Share: 1, Expected: w.known}
		switch mode {
		case "structure":
			req.Depth = verify.Structure
		case "sample":
			req.Depth = verify.Sample
		case "stored":
			res, err := verify.Stored(t.Context(), w.mem, nil)
			return res.Damage, err
		case "scrub":
			res, err := verify.Scrub(t.Context(), verify.ScrubRequest{Repository: req.Repository, Readings: readings(t), Now: time.Now})
			return res.Damage, err
		}
		res, err := verify.Run(t.Context(), req)
		return res.Damage, err
	}
	page := func(block int) int { return 4096 * (1 + 16*block) }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, w *two)
		finds  string // modes
		place  string // named by all of them that name ranges
	}{
		{"nothing", func(*testing.T, *two) {}, "", ""},
		{
			"a bit of content",
			func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 0, true), page(1)+5) },
			"data sample scrub stored", "vm1 vda 1+1 points 0,1",
		},
		{
			"content changed on purpose, with the checksum",
			func(t *testing.T, w *two) { w.forge(t, w.segment(t, 0, 0, true), page(1)+5) },
			"data sample", "vm1 vda 1+1 points 0,1",
		},
		{
			"a bit of a map",
			func(t *testing.T, w *two) {
				w.flip(t, w.key(t, fmt.Sprintf("map/%s/00000001/", w.machines[0].ID)), 70)
			},
			"data structure sample scrub stored", "vm1 vda 0+8 points 1",
		},
		{
			"a bit of a manifest",
			func(t *testing.T, w *two) { w.flip(t, "points/"+w.machines[0].ID+"/"+w.points[0][2].ID, 50) },
			"data structure sample scrub stored", "vm1 points 2",
		},
		{
			"a bit of a segment's table of contents",
			func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 2, true), -60) },
			"data structure sample scrub stored", "",
		},
		{
			"a segment cut short",
			func(t *testing.T, w *two) {
				if err := w.mem.Corrupt(w.segment(t, 0, 2, true), func(p []byte) []byte { return p[:len(p)-5000] }); err != nil {
					t.Fatal(err)
				}
			},
			"data structure sample scrub stored", "",
		},
		{
			"a segment gone",
			func(t *testing.T, w *two) { remove(t, w, w.segment(t, 0, 2, true)) },
			"data structure sample", "vm1 vda 1+1 points 2,3",
		},
		{
			"a map gone",
			func(t *testing.T, w *two) {
				remove(t, w, w.key(t, fmt.Sprintf("map/%s/00000001/", w.machines[0].ID)))
			},
			"data structure sample", "vm1 vda 0+8 points 1",
		},
		{
			"a segment in the place of another", // each whole by itself
			func(t *testing.T, w *two) { w.put(t, w.segment(t, 0, 2, true), w.segment(t, 1, 2, true)) },
			"data structure sample scrub", "",
		},
		{
			"a manifest in the place of another",
			func(t *testing.T, w *two) {
				folder := "points/" + w.machines[0].ID + "/"
				w.put(t, folder+w.points[0][2].ID, folder+w.points[0][1].ID)
			},
			"data structure sample scrub", "",
		},
		{
			"the newest log entries gone",
			func(t *testing.T, w *two) {
				for n := 2; n < 4; n++ {
					remove(t, w, fmt.Sprintf("log/%s/%016x", w.machines[1].ID, n))
				}
			},
			"data structure sample", "",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwo(t)
			w.known = w.expected(t)
			c.damage(t, w)
			for _, mode := range modes {
				found, err := run(t, w, mode)
				if err != nil {
					t.Fatalf("%s: %v", mode, err)
				}
				if want := slices.Contains(strings.Fields(c.finds), mode); want != (len(found) > 0) {
					t.Errorf("%s finds %+v, want something: %v", mode, found, want)
				}
				if len(found) == 0 || c.place == "" || mode == "stored" {
					continue
				}
				if !slices.ContainsFunc(found, func(d verify.Damage) bool { return w.found(d) == c.place }) {
					t.Errorf("%s does not name %q: %+v", mode, c.place, found)
				}
			}
		})
	}
}

// forge changes a byte of a small segment's content and makes the checksums fit
// (docs/spec/repository.md, "Segments"), as whoever writes to the store can.
func (w *two) forge(t *testing.T, key string, at int) {
	t.Helper()
	if err := w.mem.Replace(key, func(p []byte) {
		p[at] ^= 4
		le := binary.LittleEndian
		foot := len(p) - 40
		end, chunks := int(le.Uint64(p[foot:])), int(le.Uint64(p[foot+16:]))
		for i := range chunks {
			crc := format.CRC(p[i*format.CRCChunk : min((i+1)*format.CRCChunk, end)])
			le.PutUint32(p[foot-4*(chunks-i):], crc)
		}
		le.PutUint32(p[len(p)-4:], format.CRC(p[foot-4*chunks:len(p)-4]))
	}); err != nil {
		t.Fatal(err)
	}
}

// put puts another object's content in the place of one.
func (w *two) put(t *testing.T, key, from string) {
	t.Helper()
	info, err := w.mem.Stat(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, info.Size)
	if _, err := w.mem.ReadRange(t.Context(), from, 0, p); err != nil {
		t.Fatal(err)
	}
	if err := w.mem.Corrupt(key, func([]byte) []byte { return p }); err != nil {
		t.Fatal(err)
	}
}

// TestStructureReadsNoContent: of segments it reads the ends.
func TestStructureReadsNoContent(t *testing.T) {
	w := newTwo(t)
	for i := range w.machines {
		for n := range 3 { // the fourth changes nothing
			w.flip(t, w.segment(t, i, n, true), 4096*3)
		}
	}
	for _, points := range [][]repository.Point{nil, w.points[0]} {
		res, err := verify.Run(t.Context(), verify.Request{Repository: w.reader(t), Points: points, Depth: verify.Structure})
		if err != nil || len(res.Damage) != 0 || res.Read != 0 {
			t.Errorf("%+v, %v", res, err)
		}
	}
}

// many is a repository with a machine of one larger disk, of which each
// recovery point changes a part.
func many(t *testing.T) *two {
	t.Helper()
	w := newTwo(t)
	p := noise(77, 40*32*block)
	w.points[1] = append(w.points[1], w.backup(t, 1, p, noise(11, 3*block)))
	copy(p[10*32*block:], noise(78, 9*32*block))
	w.points[1] = append(w.points[1], w.backup(t, 1, p, noise(11, 3*block)))
	copy(p[33*block:], noise(79, 100))
	w.points[1] = append(w.points[1], w.backup(t, 1, p, noise(11, 3*block)))
	return w
}

// recording is a store that says what was read of segments.
type recording struct {
	store.Store
	mu    sync.Mutex
	reads []string
}

func (r *recording) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if strings.HasPrefix(key, "seg/") {
		r.mu.Lock()
		r.reads = append(r.reads, fmt.Sprintf("%s %d+%d", key, off, len(p)))
		r.mu.Unlock()
	}
	return r.Store.ReadRange(ctx, key, off, p)
}

// TestSample: each recovery point's own content is sampled, the same seed
// chooses the same, and seeds differ.
func TestSample(t *testing.T) {
	w := many(t)
	read := func(share float64, seed verify.Seed, points ...repository.Point) (int64, string) {
		t.Helper()
		st := &recording{Store: w.mem}
		r := w.open(t, st)
		defer r.Close()
		res, err := verify.Run(t.Context(), verify.Request{Repository: r, Points: points, Depth: verify.Sample, Share: share, Seed: seed})
		if err != nil || len(res.Damage) != 0 {
			t.Fatalf("%+v, %v", res, err)
		}
		slices.Sort(st.reads) // two workers may read the same header
		return res.Read, strings.Join(slices.Compact(st.reads), "\n")
	}
	one := verify.Seed{1}
	whole, _ := read(1, one, w.points[1]...)
	n, first := read(0.2, one, w.points[1]...)
	if n < whole/6 || n > whole/3 {
		t.Errorf("%d bytes of %d were read for a fifth", n, whole)
	}
	if again, same := read(0.2, one, w.points[1]...); again != n || same != first {
		t.Error("the same seed chose otherwise")
	}
	if _, other := read(0.2, verify.NewSeed(), w.points[1]...); other == first {
		t.Error("another seed chose the same")
	}
	// The one block that the last recovery point changed is sampled, too.
	if n, _ := read(0.001, one, w.points[1][5:]...); n == 0 {
		t.Error("a small recovery point is left out")
	}
	// Over seeds, every unit is read some time.
	key := w.segment(t, 1, 4, true)
	w.flip(t, key, 4096*(1+16*32*5))
	hit := 0
	for i := range 60 {
		res, err := verify.Run(t.Context(), verify.Request{
			Repository: w.reader(t), Points: w.points[1][4:5], Depth: verify.Sample, Share: 0.2, Seed: verify.Seed{byte(i), 5},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Damage) > 0 {
			hit++
		}
	}
	if hit < 3 || hit > 27 { // 12 are to be expected
		t.Errorf("a fifth met the damage in %d of 60 samples", hit)
	}
}

func TestSeed(t *testing.T) {
	s := verify.NewSeed()
	if got, err := verify.ParseSeed(s.String()); err != nil || got != s {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "12", strings.Repeat("g", 32), s.String() + "00"} {
		if _, err := verify.ParseSeed(bad); !errors.Is(err, verify.ErrSeed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestScrub goes round by age, within limits, and comes back to damage.
func TestScrub(t *testing.T) {
	w := newTwo(t)
	log := readings(t)
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var objects, bytes int64
	if err := w.mem.List(t.Context(), "", func(i store.Info) error { objects++; bytes += i.Size; return nil }); err != nil {
		t.Fatal(err)
	}
	scrub := func(change func(*verify.ScrubRequest)) verify.ScrubResult {
		t.Helper()
		req := verify.ScrubRequest{Repository: w.reader(t), Readings: log, Now: func() time.Time { return now }}
		if change != nil {
			change(&req)
		}
		res, err := verify.Scrub(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	// A half by bytes, the rest by itself: together everything once.
	res := scrub(func(r *verify.ScrubRequest) { r.Bytes = bytes / 2 })
	if res.Read > bytes/2 || res.Read < bytes/4 || res.Left != objects-res.Objects || res.LeftBytes != bytes-res.Read || !res.Never || !res.Oldest.IsZero() {
		t.Errorf("the first half: %+v of %d objects, %d bytes", res, objects, bytes)
	}
	half := res.Objects
	now = now.Add(time.Hour)
	res = scrub(func(r *verify.ScrubRequest) { r.OlderThan = 2 * time.Hour })
	if res.Objects != objects-half || res.Left != 0 || res.Never || !res.Oldest.Equal(now.Add(-time.Hour)) {
		t.Errorf("the second half: %+v", res)
	}
	// Nothing is due; then what is oldest; a limit of time that is used up reads nothing.
	if res = scrub(func(r *verify.ScrubRequest) { r.OlderThan = 30 * 24 * time.Hour }); res.Objects != 0 || res.Left != 0 {
		t.Errorf("nothing is due: %+v", res)
	}
	now = now.Add(30*24*time.Hour - 30*time.Minute)
	if res = scrub(func(r *verify.ScrubRequest) { r.OlderThan = 30 * 24 * time.Hour }); res.Objects != half {
		t.Errorf("the first half again: %+v, want %d objects", res, half)
	}
	var tick atomic.Int64
	res = scrub(func(r *verify.ScrubRequest) {
		r.For = time.Second
		r.Now = func() time.Time { return now.Add(time.Duration(tick.Add(1)) * 600 * time.Millisecond) }
	})
	if res.Objects == 0 || res.Left == 0 {
		t.Errorf("with a limit of time: %+v", res)
	}
	// What is damaged is found, named, and not taken for read: it comes first again.
	now = now.Add(time.Hour)
	key := w.segment(t, 0, 0, true)
	w.flip(t, key, 4096*(1+16*1)+5)
	res = scrub(nil)
	if len(res.Damage) != 1 || w.found(res.Damage[0]) != "vm1 vda 1+1 points 0,1" || res.Damage[0].Object != key {
		t.Errorf("%+v", res.Damage)
	}
	now = now.Add(time.Hour)
	res = scrub(func(r *verify.ScrubRequest) { r.Bytes = 1 })
	if res.Objects != 1 || len(res.Damage) != 1 {
		t.Errorf("what is damaged does not come first: %+v", res)
	}
	// What is deleted is forgotten; what is new is known from when it was seen.
	w.flip(t, key, 4096*(1+16*1)+5)
	if err := w.mem.Put(t.Context(), "junk", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if res = scrub(func(r *verify.ScrubRequest) { r.OlderThan = time.Nanosecond }); len(res.Damage) != 0 {
		t.Errorf("%+v", res.Damage)
	}
	remove(t, w, "junk")
	now = now.Add(time.Minute)
	scrub(nil)
	list, err := log.List(t.Context(), w.repo.ID())
	if err != nil || int64(len(list)) != objects {
		t.Errorf("%d objects are remembered, %d are there: %v", len(list), objects, err)
	}
}

// TestScrubKeepsWhatItRead: cut off by its context or by the store, what was
// read is remembered.
func TestScrubKeepsWhatItRead(t *testing.T) {
	w := newTwo(t)
	log := readings(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	_, err := verify.Scrub(ctx, verify.ScrubRequest{
		Repository: w.reader(t), Readings: log, Now: time.Now,
		Progress: func(string, int64, int64) {
			if n++; n == 10 {
				cancel()
			}
		},
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	list, err := log.List(t.Context(), w.repo.ID())
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, r := range list {
		if !r.Never {
			read++
		}
	}
	if read < 10 || read == len(list) {
		t.Errorf("%d of %d are read", read, len(list))
	}
}

// TestVerifyingAllCountsAsRead: a scrub has nothing to do afterwards, but for
// what is damaged.
func TestVerifyingAllCountsAsRead(t *testing.T) {
	w := newTwo(t)
	log := readings(t)
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	key := w.segment(t, 1, 0, true)
	w.flip(t, key, 4096*(1+16*7))
	for _, depth := range []verify.Depth{verify.Structure, verify.Data} {
		if _, err := verify.Run(t.Context(), verify.Request{Repository: w.reader(t), All: true, Depth: depth, Readings: log, Now: clock}); err != nil {
			t.Fatal(err)
		}
		list, err := log.List(t.Context(), w.repo.ID())
		if err != nil || (len(list) > 0) != (depth == verify.Data) {
			t.Errorf("%d are remembered, %v", len(list), err)
		}
	}
	now = now.Add(time.Hour)
	res, err := verify.Scrub(t.Context(), verify.ScrubRequest{Repository: w.reader(t), Readings: log, Now: clock, OlderThan: 24 * time.Hour})
	if err != nil || res.Objects != 0 || res.Left != 0 {
		t.Errorf("%+v, %v", res, err)
	}
	res, err = verify.Scrub(t.Context(), verify.ScrubRequest{Repository: w.reader(t), Readings: log, Now: clock, Bytes: 1})
	if err != nil || res.Objects != 1 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestStoredNeedsNoRepository: an empty store is no sound one.
func TestStoredNeedsNoRepository(t *testing.T) {
	w := newTwo(t)
	for _, key := range w.keys(t, "") {
		remove(t, w, key)
	}
	if _, err := verify.Stored(t.Context(), w.mem, nil); !errors.Is(err, repository.ErrNotFound) {
		t.Error(err)
	}
}
