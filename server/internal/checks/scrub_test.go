package checks

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/verify"
)

// TestOverdue: what was not read back for longer than was set is said, and so
// is what nobody knows of.
func TestOverdue(t *testing.T) {
	ctx := t.Context()
	c, err := sqlite.Open(ctx, filepath.Join(t.TempDir(), "catalog.db"), sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Maintenance.Close()
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	after := func(days int) time.Time { return begin.Add(time.Duration(days) * 24 * time.Hour) }
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	says := func(when string, days int, want ...string) {
		t.Helper()
		got, err := Overdue(ctx, c, []frame.Place{{ID: "id1", Name: "r1", Primary: true}, {ID: "id2", Name: "r2"}, {ID: "id3", Name: "r3"}}, after(days))
		check(err)
		if len(got) != len(want) {
			t.Fatalf("%s: %q, want %q", when, got, want)
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("%s: %q, want %q in it", when, got[i], want[i])
			}
		}
	}
	says("nothing is there", 1000)
	check(c.Machines.Put(ctx, catalog.Machine{ID: "m", Name: "web01", Created: begin}))
	for i, repo := range []string{"id1", "id1", "id2", "forgotten"} {
		p := catalog.Point{ID: strings.Repeat(string(rune('a'+i)), 32), Machine: "m", Repository: repo, Sequence: int64(i), Time: after(i), Written: after(10 * i)}
		check(c.Points.Record(ctx, p))
	}
	says("never read, but young", 89)
	says("never read, one repository", 91, "not all of repository r1 has been read back since it was written, and its oldest recovery point is of 2026-01-01")
	says("never read, both", 111, "repository r1", "repository r2")
	check(c.Readings.Put(ctx, "id1", []catalog.Reading{{Key: "seg/a", Since: after(100)}, {Key: "seg/b"}}))
	check(c.Readings.Put(ctx, "id2", []catalog.Reading{{Key: "seg/a", Since: after(100)}}))
	says("of one, a part was never read", 111, "not all of repository r1")
	check(c.Readings.Put(ctx, "id1", []catalog.Reading{{Key: "seg/b", Since: after(105), Never: true}}))
	says("all read in time", 189)
	says("too long ago", 191, "data in repository r1 has not been read back since 2026-04-11: 'lockstep scrub' reads", "'lockstep scrub --repository r2' reads")
	check(c.Meta.Set(ctx, warnAfterKey, "864000"))
	says("another time was set", 111, "repository r1", "repository r2")
	check(c.Points.Delete(ctx, strings.Repeat("c", 32), after(111), ""))
	says("nothing is kept in a repository", 111, "repository r1")
	check(c.Meta.Set(ctx, warnAfterKey, "not a number"))
	says("what was set is of no use", 111)
}

func TestDepthOf(t *testing.T) {
	seed := verify.NewSeed()
	for _, c := range []struct {
		r     api.VerifyRequest
		depth verify.Depth
		ok    bool
	}{
		{api.VerifyRequest{}, verify.Data, true},
		{api.VerifyRequest{Structure: true}, verify.Structure, true},
		{api.VerifyRequest{Sample: 0.5}, verify.Sample, true},
		{api.VerifyRequest{Sample: 0.5, Seed: seed.String()}, verify.Sample, true},
		{api.VerifyRequest{Sample: 0.5, Seed: "abc"}, 0, false},
		{api.VerifyRequest{Seed: seed.String()}, 0, false},
		{api.VerifyRequest{Structure: true, Sample: 0.5}, 0, false},
	} {
		q, err := depthOf(c.r)
		if (err == nil) != c.ok || err == nil && q.Depth != c.depth || c.r.Seed != "" && c.ok && q.Seed != seed {
			t.Errorf("%+v: %+v, %v", c.r, q, err)
		}
	}
	a, err := depthOf(api.VerifyRequest{Sample: 0.5})
	if b, _ := depthOf(api.VerifyRequest{Sample: 0.5}); err != nil || a.Seed == b.Seed {
		t.Error("two samples have one seed")
	}
}
