package prove_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/repository"
)

// TestMarks: pins, tags and legal holds are in the repository, for whoever has
// that alone, and in the catalog, for whoever lost something of the repository.
func TestMarks(t *testing.T) {
	ctx := context.Background()
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
	p := e.Store1(m)
	inForce := func() custody.Marks {
		t.Helper()
		all, err := prove.MarksOf(ctx, e.Deps.Catalog, m.ID)
		e.Must(err)
		return all[p]
	}
	e.Mark(p, custody.Mark{Kind: custody.MarkPin, Set: true, Reason: " before the move "})
	e.Mark(p, custody.Mark{Kind: custody.MarkTag, Name: "env", Value: "test", Set: true})
	e.Mark(p, custody.Mark{Kind: custody.MarkTag, Name: "env", Value: "prod", Set: true})
	e.Mark(p, custody.Mark{Kind: custody.MarkLegalHold, Name: "CASE-12", Set: true, Reason: "asked for"})
	got := inForce()
	if got.Pin == nil || got.Pin.Reason != "before the move" || got.Pin.Actor != "uid:0" || got.Tags["env"] != "prod" || len(got.LegalHolds) != 1 {
		t.Fatalf("%+v", got)
	}
	var actions []string
	for _, a := range e.Audit {
		actions = append(actions, a.Action)
	}
	if s := strings.Join(actions, " "); !strings.Contains(s, "point.pin point.tag point.tag point.hold") {
		t.Errorf("audit log: %s", s)
	}

	// A catalog that knows nothing has it all from the repository.
	first := e.Deps.Catalog
	e.Deps.Catalog = e.OpenCatalog("second.db")
	doubtful, err := prove.SyncMarks(ctx, e.Deps, m.ID)
	if err != nil || len(doubtful) != 0 {
		t.Fatalf("%v, %v", doubtful, err)
	}
	if got := inForce(); got.Pin == nil || got.Tags["env"] != "prod" || len(got.LegalHolds) != 1 {
		t.Fatalf("from the repository: %+v", got)
	}
	// What one takes back counts for the other, whatever the clock says.
	point, err := first.Points.Get(ctx, p)
	e.Must(err)
	clock := e.Clock
	e.Clock = clock.AddDate(-1, 0, 0)
	e.Must(prove.SetMark(ctx, e.Deps, point, custody.Mark{Kind: custody.MarkPin}))
	e.Clock = clock
	e.Deps.Catalog = first
	_, err = prove.SyncMarks(ctx, e.Deps, m.ID)
	e.Must(err)
	if got := inForce(); got.Pin != nil || len(got.LegalHolds) != 1 {
		t.Fatalf("taken back: %+v", got)
	}

	// A custodian that the repository does not know marks nothing.
	deps := e.Deps
	if deps.Custodian, err = envelope.GenerateSigningKey(envelope.RoleCustodian); err != nil {
		t.Fatal(err)
	}
	if err := prove.SetMark(ctx, deps, point, custody.Mark{Kind: custody.MarkPin, Set: true, Reason: "x"}); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("foreign custodian: %v", err)
	}
	if err := prove.SetMark(ctx, e.Deps, point, custody.Mark{Kind: custody.MarkLegalHold, Name: "CASE-1", Set: true}); !errors.Is(err, custody.ErrStatement) {
		t.Errorf("no reason: %v", err)
	}

	// What the store lost or spoilt still counts where it is known, and is told where it is not.
	for _, key := range objects(e, "side/"+m.ID+"/"+repository.MachineSidecars+"/") {
		e.Must(e.Store.Delete(ctx, key))
		e.Must(e.Store.Put(ctx, key, []byte("spoilt")))
	}
	if _, err := prove.SyncMarks(ctx, e.Deps, m.ID); err != nil {
		t.Errorf("known from before: %v", err)
	}
	if got := inForce(); len(got.LegalHolds) != 1 {
		t.Errorf("known from before: %+v", got)
	}
	e.Deps.Catalog = e.OpenCatalog("third.db")
	if _, err := prove.SyncMarks(ctx, e.Deps, m.ID); !errors.Is(err, prove.ErrMarkUnread) {
		t.Errorf("not known: %v", err)
	}
}
