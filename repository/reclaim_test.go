package repository_test

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// marks is what listed recovery points reference, by the slow way: every page
// of every map, every extent, no birth looked at.
type marking struct {
	extents map[format.Name]map[uint32]bool // positions
	pages   map[format.Name]map[uint32]bool // offsets
	headers map[string]bool
}

// markAll is the judge of reclaim: a full mark over the maps of all listed
// recovery points.
func (f *fixture) markAll(tb testing.TB) *marking {
	tb.Helper()
	return f.mark(tb, func(repository.Point) bool { return true })
}

// mark is markAll of some.
func (f *fixture) mark(tb testing.TB, which func(repository.Point) bool) *marking {
	tb.Helper()
	keys := f.keys(tb)
	m := &marking{extents: map[format.Name]map[uint32]bool{}, pages: map[format.Name]map[uint32]bool{}, headers: map[string]bool{}}
	r := f.open(tb)
	defer r.Close()
	points, err := r.Points(tb.Context(), f.machine.ID)
	if err != nil {
		tb.Fatal(err)
	}
	cache := blockmap.NewCache(keys, replica.New(f.st, keys))
	set := func(in map[format.Name]map[uint32]bool, n format.Name, at uint32) {
		if in[n] == nil {
			in[n] = map[uint32]bool{}
		}
		in[n][at] = true
	}
	var walk func(level int, ref format.Ref)
	walk = func(level int, ref format.Ref) {
		if ref.Zero() {
			return
		}
		set(m.pages, ref.Object, ref.Offset)
		if level > 0 {
			n, err := cache.Node(tb.Context(), ref, level)
			if err != nil {
				tb.Fatal(err)
			}
			for _, c := range n.Children {
				walk(level-1, c)
			}
			return
		}
		l, err := cache.Leaf(tb.Context(), ref)
		if err != nil {
			tb.Fatal(err)
		}
		for b := range l {
			for _, e := range l[b].Extents {
				set(m.extents, e.Segment, e.Position)
			}
		}
	}
	for _, p := range points {
		if !which(p) {
			continue
		}
		mf, err := r.Manifest(tb.Context(), p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, d := range mf.Disks {
			for _, h := range d.Headers {
				m.headers[h.ID] = true
			}
			if d.Map.Page == nil {
				continue
			}
			ref := format.Ref{Offset: d.Map.Page.Offset, Length: d.Map.Page.Length}
			if ref.Object, err = format.ParseName(d.Map.Page.Object); err != nil {
				tb.Fatal(err)
			}
			if _, err := hex.Decode(ref.Node[:], []byte(d.Map.Node)); err != nil {
				tb.Fatal(err)
			}
			walk(d.Map.Level, ref)
		}
	}
	return m
}

// keys derives the machine's keys from its record, as a reader does.
func (f *fixture) keys(tb testing.TB) *machinekey.Keys {
	tb.Helper()
	l := newLens(tb, f.st, f.identity, f.machine.ID)
	keys, err := machinekey.New(f.machine.ID, bytes.Clone(l.metadata.Expose()), bytes.Clone(l.content.Expose()))
	if err != nil {
		tb.Fatal(err)
	}
	return keys
}

// share is what one name holds and how much of it is dead, by the model.
type share struct{ all, dead int64 }

// shares reads every table there is and compares it with the marks.
func (f *fixture) shares(tb testing.TB, m *marking) map[string]*share {
	tb.Helper()
	keys := f.keys(tb)
	out := map[string]*share{}
	add := func(original string, bytes int64, needed bool) {
		s := out[original]
		if s == nil {
			s = &share{}
			out[original] = s
		}
		s.all += bytes
		if !needed {
			s.dead += bytes
		}
	}
	for _, key := range slices.Concat(allKeys(tb, f.st, "seg/"), allKeys(tb, f.st, "map/")) {
		original, name, isReplica, ok := format.Original(key)
		if !ok {
			tb.Fatalf("object %s", key)
		}
		if strings.HasPrefix(key, "map/") {
			t, err := blockmap.ReadPages(tb.Context(), f.st, keys, key)
			if err != nil {
				tb.Fatal(err)
			}
			for _, e := range t.Pages {
				add(original, int64(e.Length), m.pages[name][e.Offset])
			}
			continue
		}
		var t format.ReplicaTOC
		var err error
		if isReplica {
			t, err = segment.ReadReplicaTOC(tb.Context(), f.st, keys, key)
		} else {
			t.TOC, err = segment.ReadTOC(tb.Context(), f.st, keys, key)
		}
		if err != nil {
			tb.Fatal(err)
		}
		for _, e := range t.Extents {
			add(original, int64(format.Pages(e.Mask))*format.PageSize, m.extents[name][e.Position])
		}
	}
	return out
}

// reclaimed checks everything that must hold after a reclaim.
func (f *fixture) reclaimed(tb testing.TB, images map[string][]byte, maxDead float64, limit int64) {
	tb.Helper()
	r := f.open(tb)
	defer r.Close()
	points, err := r.Points(tb.Context(), f.machine.ID)
	if err != nil {
		tb.Fatal(err)
	}
	listed := map[string]bool{}
	for _, p := range points {
		listed[p.ID] = true
		got, err := readPoint(r, p)
		if err != nil {
			tb.Fatalf("recovery point %s is listed: %v", p.ID, err)
		}
		if !bytes.Equal(got, images[p.ID]) {
			tb.Fatalf("recovery point %s differs", p.ID)
		}
		mf, err := r.Manifest(tb.Context(), p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, h := range mf.Disks[0].Headers {
			if err := r.CheckHeader(tb.Context(), f.machine.ID, h.ID); err != nil {
				tb.Errorf("recovery point %s: %v", p.ID, err)
			}
		}
	}
	marks := f.markAll(tb)
	for _, key := range slices.Concat(allKeys(tb, f.st, "headers-a/"), allKeys(tb, f.st, "headers-b/")) {
		if !marks.headers[key[strings.LastIndexByte(key, '/')+1:]] {
			tb.Errorf("%s is of no listed recovery point", key)
		}
	}
	for key, s := range f.shares(tb, marks) {
		_, name, _, _ := format.Original(key)
		if name.Birth() > limit {
			continue
		}
		switch {
		case s.dead == s.all:
			tb.Errorf("%s is dead and still there", key)
		case float64(s.dead) > maxDead*float64(s.all) && (strings.HasPrefix(key, "seg/") || s.dead >= 4096):
			tb.Errorf("%s: %d of %d bytes are dead", key, s.dead, s.all)
		}
	}
	for _, key := range allKeys(tb, f.st, "points/") {
		if pid := key[strings.LastIndexByte(key, '/')+1:]; !listed[pid] {
			tb.Errorf("manifest %s is of no listed recovery point", pid)
		}
	}
	for _, key := range allKeys(tb, f.st, "") {
		if err := repository.CheckStored(tb.Context(), f.st, key); err != nil {
			tb.Errorf("%s: %v", key, err)
		}
		if err := r.CheckObject(tb.Context(), key); err != nil {
			tb.Errorf("%s: %v", key, err)
		}
	}
}

// lastBirth is the birth of the newest commit, -1 without one.
func lastBirth(tb testing.TB, f *fixture) int64 {
	tb.Helper()
	last := int64(-1)
	l := newLens(tb, f.st, f.identity, f.machine.ID)
	for _, key := range allKeys(tb, f.st, "log/") {
		var e struct {
			Kind  string
			N     int64
			Birth *int64
		}
		l.payload(tb, f.st, key, format.KindLog, &e)
		if e.Kind == "commit" {
			if e.Birth == nil {
				e.Birth = &e.N
			}
			last = max(last, *e.Birth)
		}
	}
	return last
}

// TestReclaimHistories: whatever happened before, a reclaim leaves what listed
// recovery points need and nothing that is wholly dead.
func TestReclaimHistories(t *testing.T) {
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		f := newFixture(t, memstore.New(), rapid.SampledFrom([]string{repository.SealingAESGCM, repository.SealingNone}).Draw(rt, "sealing"))
		rnd := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		d := noise(rnd.Uint64(), (1+rnd.IntN(24))*65536+rnd.IntN(5000))
		images := map[string][]byte{}
		var listed []string
		for range rapid.IntRange(4, 12).Draw(rt, "steps") {
			switch step := rapid.SampledFrom([]string{"backup", "backup", "backup", "full", "fail", "delete", "delete", "delete", "reclaim", "reopen"}).Draw(rt, "step"); step {
			case "backup", "full", "fail":
				change(rnd, &d)
				disk := &memDisk{p: d}
				if step == "fail" {
					disk.bad = map[int64]bool{int64(len(d)-1) / 4096: true}
				}
				p, _, err := backup(f.repo, f.machine.ID, disk, repository.BeginOptions{Full: step == "full"})
				if step == "fail" {
					if err == nil {
						rt.Fatal("the bad page was not met")
					}
					continue
				}
				if err != nil {
					rt.Fatal(err)
				}
				images[p.ID] = bytes.Clone(d)
				listed = append(listed, p.ID)
			case "delete":
				if len(listed) == 0 {
					continue
				}
				i := rnd.IntN(len(listed))
				if err := f.repo.Delete(t.Context(), f.machine.ID, listed[i], "test"); err != nil {
					rt.Fatal(err)
				}
				listed = slices.Delete(listed, i, i+1)
			case "reclaim":
				f.reclaimAndCheck(t, rt, seen, images, rnd.IntN(2) == 0)
			case "reopen":
				f.repo = f.open(t)
			}
		}
		f.reclaimAndCheck(t, rt, seen, images, false)
	})
	for _, what := range []string{"deleted", "by the ledger", "no fence"} {
		if seen[what] == 0 {
			t.Errorf("no history had %s: %v", what, seen)
		}
	}
	t.Log(seen)
}

func (f *fixture) reclaimAndCheck(t *testing.T, rt *rapid.T, seen map[string]int, images map[string][]byte, recount bool) {
	t.Helper()
	manifests := f.manifests(t)
	const maxDead = 0.5
	dry, err := f.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{DryRun: true, Recount: recount})
	if err != nil {
		rt.Fatal(err)
	}
	res, err := f.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{Recount: recount})
	if err != nil {
		rt.Fatal(err)
	}
	if dry.Deleted != res.Deleted || dry.Rewritten.Objects != res.Rewritten.Objects || dry.Fence != -1 {
		rt.Fatalf("a dry run says %+v, then it was %+v", dry, res)
	}
	seen["deleted"] += int(res.Deleted.Objects)
	seen["rewritten"] += int(res.Rewritten.Objects)
	for _, key := range allKeys(t, f.st, "") {
		if _, _, isReplica, ok := format.Original(key); ok && isReplica {
			seen[key[:3]+"-replica"]++
		}
	}
	switch {
	case res.Fence < 0:
		seen["no fence"]++
	case res.Recounted:
		seen["counted"]++
	default:
		seen["by the ledger"]++
	}
	f.reclaimed(t, images, maxDead, lastBirth(t, f))
	if t.Failed() {
		rt.Fatal("see above")
	}
	for key, p := range f.manifests(t) {
		if !bytes.Equal(p, manifests[key]) {
			rt.Fatalf("manifest %s changed", key)
		}
	}
	before := allKeys(t, f.st, "")
	again, err := f.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{})
	if err != nil {
		rt.Fatal(err)
	}
	if again.Fence != -1 || again.Deleted.Objects != 0 || !slices.Equal(before, allKeys(t, f.st, "")) {
		rt.Fatalf("a second reclaim did %+v", again)
	}
}

func (f *fixture) manifests(tb testing.TB) map[string][]byte {
	tb.Helper()
	out := map[string][]byte{}
	for _, key := range allKeys(tb, f.st, "points/") {
		out[key] = get(tb, f.st, key)
	}
	return out
}

// change changes a disk as a machine does.
func change(rnd *rand.Rand, d *[]byte) {
	switch rnd.IntN(6) {
	case 0: // grow
		*d = append(*d, noise(rnd.Uint64(), rnd.IntN(3*65536))...)
	case 1: // shrink
		*d = (*d)[:len(*d)-rnd.IntN(len(*d)/3+1)]
	case 2: // zeroes
		at := rnd.IntN(len(*d))
		clear((*d)[at:min(at+rnd.IntN(1<<20), len(*d))])
	}
	*d = bytes.Clone(*d)
	for range rnd.IntN(30) {
		at := rnd.IntN(len(*d)/4096+1) * 4096
		copy((*d)[min(at, len(*d)):min(at+(1+rnd.IntN(20))*4096, len(*d))], noise(rnd.Uint64(), 20*4096))
	}
	// The last page is never zeroes: a backup that fails there stored the rest.
	copy((*d)[max(len(*d)-10, 0):], noise(rnd.Uint64(), 10))
}
