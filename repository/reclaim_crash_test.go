package repository_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// muchDead is mostlyDead with all the rest that goes: header copies, sidecars,
// what an attempt left, an uncommitted manifest.
func muchDead(tb testing.TB, mem *memstore.Store) (f *fixture, images map[string][]byte) {
	tb.Helper()
	f, kept, d := mostlyDead(tb, mem)
	images = map[string][]byte{kept.ID: d}
	ctx := tb.Context()
	point := func(p []byte, commit bool) string {
		tb.Helper()
		w, err := f.repo.Begin(ctx, f.machine.ID, repository.BeginOptions{})
		if err != nil {
			tb.Fatal(err)
		}
		dd, err := w.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: &memDisk{p: p}})
		if err != nil {
			tb.Fatal(err)
		}
		if err := w.FinishMaps(); err != nil {
			tb.Fatal(err)
		}
		hid, err := w.PutHeader(ctx, []disk.Range{{Length: 512}}, 4096, &memDisk{p: p})
		if err != nil {
			tb.Fatal(err)
		}
		dd.Headers = []repository.HeaderRef{{Volume: "v", ID: hid}}
		p0, err := w.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{dd}})
		if !commit {
			if err == nil {
				tb.Fatal("the attempt was committed")
			}
			return ""
		}
		if err != nil {
			tb.Fatal(err)
		}
		if _, err := f.repo.PutSidecar(ctx, f.machine.ID, p0.ID, repository.SidecarProof, []byte(p0.ID)); err != nil {
			tb.Fatal(err)
		}
		images[p0.ID] = bytes.Clone(p)
		return p0.ID
	}
	now := bytes.Clone(d)
	copy(now, noise(77, 65536))
	f.st = faultstore.New(mem, faultstore.Fail(faultstore.Put, 1, nil).On(func(key string) bool { return strings.HasPrefix(key, "log/") }))
	f.repo = f.open(tb)
	point(now, false) // an attempt that failed at the last step
	f.st = mem
	f.repo = f.open(tb)
	copy(now, noise(78, 65536))
	gone := point(now, true)
	copy(now, noise(79, 3*65536))
	point(now, true)
	if err := f.repo.Delete(ctx, f.machine.ID, gone, "test"); err != nil {
		tb.Fatal(err)
	}
	delete(images, gone)
	return f, images
}

// TestReclaimCrash: a kill, an error or a lost answer at every operation of a
// reclaim. All that is listed is whole, and the next reclaim finishes the work.
func TestReclaimCrash(t *testing.T) {
	base := memstore.New()
	f, images := muchDead(t, base)
	with := func(st store.Store) *fixture {
		g := *f
		g.st = st
		g.repo = g.open(t)
		return &g
	}
	whole := faultstore.New(base.Clone())
	g := with(whole)
	from := len(whole.Trace())
	res := g.reclaim(t, repository.ReclaimOptions{})
	if res.Rewritten.Objects < 2 || res.Deleted.Objects < 10 {
		t.Fatalf("%+v", res)
	}
	trace := whole.Trace()
	limit := lastBirth(t, g)
	for i := from; i < len(trace); i++ {
		e := trace[i]
		faults := []*faultstore.Fault{faultstore.KillBefore(faultstore.Any, i+1, nil), faultstore.Fail(faultstore.Any, i+1, nil)}
		if mutates(e.Op) {
			faults = append(faults, faultstore.KillAfter(faultstore.Any, i+1, nil), faultstore.FailAfter(faultstore.Any, i+1, nil))
		}
		for k, fault := range faults {
			if !mutates(e.Op) && i%16 != 8*k || mutates(e.Op) && (i+k)%2 != 0 { // neighbours are much alike
				continue
			}
			t.Run(fmt.Sprintf("%d %s %s/%d", i, e.Op, kindOf(e.Key), k), func(t *testing.T) {
				mem := base.Clone()
				st := faultstore.New(mem, fault)
				g := with(st)
				_, _ = g.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{})
				if _, err := st.Crash(); err != nil {
					t.Fatal(err)
				}
				g = with(mem)
				points, err := g.repo.Points(t.Context(), f.machine.ID)
				if err != nil || len(points) != len(images) {
					t.Fatalf("%d recovery points, %v", len(points), err)
				}
				for _, p := range points {
					if got, err := readPoint(g.repo, p); err != nil || !bytes.Equal(got, images[p.ID]) {
						t.Fatalf("recovery point %s after the fault: %v", p.ID, err)
					}
				}
				g.reclaim(t, repository.ReclaimOptions{})
				g.reclaimed(t, images, 0.5, limit)
			})
		}
	}
}

// TestFlippedReplica: a bit of a replica or a ledger that turned is found, and
// never taken for content.
func TestFlippedReplica(t *testing.T) {
	mem := memstore.New()
	f, kept, d := mostlyDead(t, mem)
	f.reclaim(t, repository.ReclaimOptions{})
	kinds := map[string]int{}
	for _, key := range allKeys(t, mem, "") {
		_, _, isReplica, ok := format.Original(key)
		if !(ok && isReplica) && !strings.HasPrefix(key, "ledger/") {
			continue
		}
		kinds[key[:3]]++
		size := len(get(t, mem, key))
		head := 64
		if strings.HasPrefix(key, "seg/") {
			head = format.SegmentHeaderSize
		}
		table := size - (size-head)%4096 - 4096 // the last page and what is behind: tables and trailers
		for at := 0; at < size; at++ {
			if at >= 128 && at < table && at%4001 != 0 || at >= table && at%23 != 0 {
				continue
			}
			other := mem.Clone()
			if err := other.Corrupt(key, func(p []byte) []byte { p[at] ^= 1 << (at % 8); return p }); err != nil {
				t.Fatal(err)
			}
			if err := repository.CheckStored(t.Context(), other, key); err == nil {
				t.Errorf("%s: bit %d of byte %d of %d turned, and nobody sees", key, at%8, at, size)
			}
			if at%5 != 0 || strings.HasPrefix(key, "ledger/") {
				continue
			}
			g := *f
			g.st = other
			g.repo = g.open(t)
			if got, err := readPoint(g.repo, kept); err == nil && !bytes.Equal(got, d) {
				t.Errorf("%s: byte %d of %d turned, and other content is read", key, at, size)
			}
		}
	}
	if kinds["seg"] == 0 || kinds["map"] == 0 || kinds["led"] == 0 {
		t.Fatalf("only %v", kinds)
	}
}

// TestReplicaLost: without original and replica it is damage, named as such.
func TestReplicaLost(t *testing.T) {
	mem := memstore.New()
	f, kept, _ := mostlyDead(t, mem)
	f.reclaim(t, repository.ReclaimOptions{})
	for _, key := range allKeys(t, mem, "seg/") {
		if _, _, isReplica, _ := format.Original(key); isReplica {
			if err := mem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := readPoint(f.open(t), kept); err == nil || !strings.Contains(err.Error(), "seg/") {
		t.Fatalf("read: %v", err)
	}
}
