package verify_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/verify"
)

// rewritten is a repository of which a reclaim made replicas of segments.
func rewritten(t *testing.T) (w *two, replicas []string) {
	t.Helper()
	w = newTwo(t)
	p := noise(50, 64*block)
	w.backup(t, 0, p, noise(51, 3*block))
	copy(p[:48*block], noise(52, 48*block))
	last := w.backup(t, 0, p, noise(51, 3*block))
	mid := w.machines[0].ID
	points, err := w.repo.Points(t.Context(), mid)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if p.ID != last.ID {
			if err := w.repo.Delete(t.Context(), mid, p.ID, "test"); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.points[0] = []repository.Point{last}
	if _, err := w.repo.Reclaim(t.Context(), mid, repository.ReclaimOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, key := range w.keys(t, "seg/"+mid+"/") {
		if _, _, isReplica, _ := format.Original(key); isReplica {
			replicas = append(replicas, key)
		}
	}
	if len(replicas) == 0 {
		t.Fatal("reclaim made no replica of a segment")
	}
	return w, replicas
}

// look verifies in every way that tells of objects that are there.
func (w *two) look(t *testing.T) map[string][]verify.Damage {
	t.Helper()
	out := map[string][]verify.Damage{}
	r := w.reader(t)
	defer r.Close()
	for name, req := range map[string]verify.Request{
		"data": {All: true}, "structure": {All: true, Depth: verify.Structure},
		"structure of points": {Points: w.points[0], Depth: verify.Structure},
		"sample":              {All: true, Depth: verify.Sample, Share: 0.3},
	} {
		req.Repository = r
		res, err := verify.Run(t.Context(), req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out[name] = res.Damage
	}
	res, err := verify.Scrub(t.Context(), verify.ScrubRequest{Repository: r, Readings: readings(t), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	out["scrub"] = res.Damage
	stored, err := verify.Stored(t.Context(), w.mem, nil)
	if err != nil {
		t.Fatal(err)
	}
	out["stored"] = stored.Damage
	return out
}

// TestReplicasAreNoDamage: a segment that reclaim rewrote is where its replica
// is, whether the original is there too or not.
func TestReplicasAreNoDamage(t *testing.T) {
	sound := func(t *testing.T, w *two) {
		t.Helper()
		for name, found := range w.look(t) {
			if len(found) > 0 {
				t.Errorf("%s finds %+v", name, found)
			}
		}
	}
	t.Run("replica", func(t *testing.T) {
		w, _ := rewritten(t)
		sound(t, w)
	})
	t.Run("replica gone", func(t *testing.T) {
		w, replicas := rewritten(t)
		for _, key := range replicas {
			remove(t, w, key)
		}
		for name, found := range w.look(t) {
			some := slices.ContainsFunc(found, func(d verify.Damage) bool { return d.Range != nil && d.Disk == "vda" })
			if want := name != "stored" && name != "scrub"; some != want {
				t.Errorf("%s finds %+v, want damage: %v", name, found, want)
			}
		}
	})
	t.Run("replica with damaged table", func(t *testing.T) {
		w, replicas := rewritten(t)
		w.flip(t, replicas[0], -60)
		for name, found := range w.look(t) {
			if len(found) == 0 {
				t.Errorf("%s finds nothing", name)
			}
		}
	})
	t.Run("replica with damaged content", func(t *testing.T) {
		w, replicas := rewritten(t)
		w.flip(t, replicas[0], 4096+5)
		for name, found := range w.look(t) {
			want := name == "data" || name == "scrub" || name == "stored"
			if want && len(found) == 0 || !want && strings.HasPrefix(name, "structure") && len(found) > 0 {
				t.Errorf("%s finds %+v", name, found)
			}
			for _, d := range found {
				if name == "scrub" && (d.Range == nil || len(d.Points) != 1) {
					t.Errorf("scrub does not say what the damage of a replica touches: %+v", d)
				}
			}
		}
	})
}

// TestReplicaLacksWhatIsNeeded: the replica is as it was written, but recovery
// points need more of the original, which is gone.
func TestReplicaLacksWhatIsNeeded(t *testing.T) {
	w := newTwo(t)
	mid := w.machines[0].ID
	p := noise(50, 64*block)
	first := w.backup(t, 0, p, noise(51, 3*block))
	copy(p[:48*block], noise(52, 48*block))
	last := w.backup(t, 0, p, noise(51, 3*block))
	before := w.mem.Clone()
	if err := w.repo.Delete(t.Context(), mid, first.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.repo.Reclaim(t.Context(), mid, repository.ReclaimOptions{}); err != nil {
		t.Fatal(err)
	}
	after := w.mem
	w.mem = before
	var originals []string
	for _, key := range (&two{mem: after}).keys(t, "seg/"+mid+"/") {
		original, _, isReplica, _ := format.Original(key)
		if !isReplica {
			continue
		}
		data, err := store.GetAll(t.Context(), after, key, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		if err := before.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		originals = append(originals, original)
		w.points[0] = []repository.Point{first, last}
		for name, found := range w.look(t) {
			if len(found) > 0 {
				t.Errorf("original and replica: %s finds %+v", name, found)
			}
		}
	}
	if len(originals) == 0 {
		t.Fatal("no replica was made")
	}
	for _, key := range originals {
		remove(t, w, key)
	}
	sums := map[string]int64{}
	for name, found := range w.look(t) {
		if name == "stored" || name == "scrub" {
			continue
		}
		var missing int64
		for _, d := range found {
			if d.Range == nil || d.Range.End() > 48*block || !slices.Equal(d.Points, []string{first.ID}) {
				t.Errorf("%s finds %+v", name, d)
				continue
			}
			missing += d.Range.Length
		}
		sums[name] = missing
	}
	if want := sums["data"]; want == 0 || sums["structure"] != want || sums["structure of points"] != want {
		t.Errorf("bytes that are missing: %v", sums)
	}
}

// TestNeighboursAreOneFinding: a segment that is gone is named once for each
// run of its blocks, and its key once in a line.
func TestNeighboursAreOneFinding(t *testing.T) {
	w := many(t)
	key := w.segment(t, 1, 4, true)
	remove(t, w, key)
	for _, depth := range []verify.Depth{verify.Data, verify.Structure} {
		res, err := verify.Run(t.Context(), verify.Request{Repository: w.reader(t), All: true, Depth: depth})
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range res.Damage {
			if d.Object != key || d.Range == nil || strings.Contains(d.Why(), key) || !strings.Contains(d.Why(), "not in the repository") {
				t.Errorf("%+v: %s", d, d.Why())
				continue
			}
			if i > 0 && slices.Equal(d.Points, res.Damage[i-1].Points) && d.Range.Offset <= res.Damage[i-1].Range.End() {
				t.Errorf("%v is neighbour of %v", *d.Range, *res.Damage[i-1].Range)
			}
		}
		// Each unit of 2 MiB goes to one of the segments that are written at the same time.
		if n := len(res.Damage); n == 0 || n > 45 || !slices.ContainsFunc(res.Damage, func(d verify.Damage) bool { return d.Range.Length > 16*block }) {
			t.Errorf("depth %d: %d findings: %+v", depth, n, res.Damage)
		}
	}
}
