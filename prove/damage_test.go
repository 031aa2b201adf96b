package prove_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/store"
)

// objects lists the keys below prefix.
func objects(e *provetest.Env, prefix string) (keys []string) {
	e.T.Helper()
	e.Must(e.Store.List(context.Background(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }))
	return keys
}

func removeAll(e *provetest.Env, prefixes ...string) {
	e.T.Helper()
	for _, p := range prefixes {
		keys := objects(e, p)
		if len(keys) == 0 {
			e.T.Fatalf("nothing below %s", p)
		}
		for _, key := range keys {
			e.Must(e.Store.Delete(context.Background(), key))
		}
	}
}

// TestDamageIsNotProven: what was proven once and cannot be read is said to be damaged.
func TestDamageIsNotProven(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(e *provetest.Env, machine, point string)
	}{
		{"content", func(e *provetest.Env, machine, _ string) { removeAll(e, "seg/"+machine+"/", "map/"+machine+"/") }},
		{"manifest", func(e *provetest.Env, machine, _ string) { removeAll(e, "points/"+machine+"/") }},
		{"log", func(e *provetest.Env, machine, _ string) { removeAll(e, "log/"+machine+"/") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := provetest.New(t)
			m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
			id := e.Store1(m)
			if _, err := e.Add(m, "one"); err != nil {
				t.Fatal(err)
			}
			if s := e.State(id); s.State != custody.Proven {
				t.Fatalf("before: %+v", s)
			}
			c.damage(e, m.ID, id)
			e.Repo = e.OpenRepo()
			e.Deps.Repo = e.Repo
			var events []audit.Event
			e.Deps.Audit = func(_ context.Context, x audit.Event) error { events = append(events, x); return nil }
			res, err := prove.Points(t.Context(), e.Deps, []string{id}, nil)
			if err != nil || len(res) != 1 || len(res[0].Damaged) == 0 || res[0].Machine != m.ID || len(res[0].Problems) == 0 {
				t.Fatalf("%+v, %v", res, err)
			}
			if len(events) != 1 || events[0].Outcome != audit.Failed || events[0].Object != id {
				t.Errorf("audit entries: %+v", events)
			}
		})
	}
}

// TestLostSidecarsAreMadeAgain: the repository has to carry the proofs and
// packages, whatever the catalog remembers of them.
func TestLostSidecarsAreMadeAgain(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
	id := e.Store1(m)
	if _, err := e.Add(m, "one"); err != nil {
		t.Fatal(err)
	}
	kinds := func() string {
		seen := map[string]int{}
		for _, key := range objects(e, "side/"+m.ID+"/") {
			name := key[strings.LastIndexByte(key, '/')+1:]
			seen[name[:strings.LastIndexByte(name, '-')]]++
		}
		var out []string
		for _, k := range []string{"proof", "keypackage", "headerpackage"} {
			out = append(out, k+"="+string(rune('0'+seen[k])))
		}
		return strings.Join(out, " ")
	}
	const whole = "proof=1 keypackage=1 headerpackage=1"
	again := func() prove.Result {
		res, err := prove.Points(t.Context(), e.Deps, []string{id}, nil)
		if err != nil || len(res[0].Damaged) != 0 || res[0].Verdict.State != custody.Proven {
			t.Fatalf("%+v, %v", res, err)
		}
		return res[0]
	}
	again()
	if got := kinds(); got != whole {
		t.Fatalf("before: %s", got)
	}
	for _, key := range objects(e, "side/"+m.ID+"/") {
		if strings.Contains(key, "/tag-") {
			continue
		}
		e.Must(e.Store.Delete(t.Context(), key))
		if got := kinds(); got == whole {
			t.Fatalf("%s was none of them", key)
		}
		if res := again(); len(res.Problems) != 1 {
			t.Errorf("without %s: %q", key, res.Problems)
		}
		if got := kinds(); got != whole {
			t.Errorf("without %s, and again: %s", key, got)
		}
		if res := again(); len(res.Problems) != 0 {
			t.Errorf("and once more: %q", res.Problems)
		}
	}
	// A damaged one counts as lost; the damaged object stays for verify to report.
	for _, key := range objects(e, "side/"+m.ID+"/") {
		e.Must(e.Store.Replace(key, func(p []byte) { p[len(p)/2] ^= 1 }))
	}
	again()
	if got := kinds(); got != "proof=2 keypackage=2 headerpackage=2" {
		t.Errorf("after damage: %s", got)
	}
}

func TestHoldThatCannotBePlacedIsTold(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
	if _, err := e.Add(m, "one"); err != nil {
		t.Fatal(err)
	}
	id := e.Store1(m)
	e.Deps.Manager = holdless{e.Manager}
	res, err := prove.Points(t.Context(), e.Deps, []string{id}, nil)
	if err != nil || len(res[0].Unheld) != 1 || len(res[0].Opened) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
}

// holdless takes no holds.
type holdless struct{ keymanager.Manager }

func (holdless) Hold(context.Context, keymanager.Ref, keymanager.Hold) error {
	return errors.New("read-only file system")
}

// TestLeases: what secrets are tried on has a lease, one at a time, and what was
// deleted before it had one is no damage.
func TestLeases(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
	ids := []string{e.Store1(m), e.Store1(m), e.Store1(m)}
	if _, err := e.Add(m, "one"); err != nil {
		t.Fatal(err)
	}
	held := ""
	tried := 0
	p := e.Deps.Prover
	e.Deps.Prover = tries{p, func(ctx context.Context, r custody.Request, points custody.PointReader) (custody.Outcome, error) {
		if tried++; held != r.Point {
			t.Errorf("secrets are tried on %s, and the lease is on %q", r.Point, held)
		}
		return p.Try(ctx, r, points)
	}}
	e.Deps.Lease = func(ctx context.Context, point string) (func(), error) {
		if held != "" {
			t.Errorf("a lease on %s beside that on %s", point, held)
		}
		if held = point; point == ids[1] { // somebody without a lease comes first
			e.Must(e.Repo.Delete(ctx, m.ID, point, "test"))
			e.Must(e.Store.Delete(ctx, "points/"+m.ID+"/"+point))
		}
		return func() { held = "" }, nil
	}
	res, err := prove.Points(t.Context(), e.Deps, ids, nil)
	if err != nil || len(res) != 3 || held != "" || tried != 2 {
		t.Fatalf("%+v, %v; %d tried, %q held", res, err, tried, held)
	}
	for i, r := range res {
		if r.Point != ids[i] || r.Machine != m.ID || len(r.Damaged) != 0 || (len(r.Problems) == 1) != (i == 1) {
			t.Errorf("%+v", r)
		}
	}
	e.Deps.Lease = func(context.Context, string) (func(), error) { return nil, context.DeadlineExceeded }
	if _, err := prove.Points(t.Context(), e.Deps, ids[:1], nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without the lease: %v", err)
	}
}

// tries is a prover with another way of trying.
type tries struct {
	custody.Prover
	try func(context.Context, custody.Request, custody.PointReader) (custody.Outcome, error)
}

func (p tries) Try(ctx context.Context, r custody.Request, points custody.PointReader) (custody.Outcome, error) {
	return p.try(ctx, r, points)
}
