package show_test

import (
	"slices"
	"testing"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

// A clone is opened by its template's secret: the column shows that secret's
// state, and what was not proven on a recovery point is shown as a claim.
func TestStatusOfAClone(t *testing.T) {
	e := provetest.New(t)
	dev := e.Encrypted("a")
	template := e.Machine("template", map[string]*provetest.Device{"vda": dev})
	clone := e.Machine("clone", map[string]*provetest.Device{"vda": {Bytes: slices.Clone(dev.Bytes)}})
	added, err := e.Add(template, "a")
	e.Must(err)
	e.Backup(template)
	e.Backup(clone)
	e.Store1(clone)
	all, err := e.Catalog.Points.List(t.Context(), catalog.PointQuery{Machine: clone.ID})
	e.Must(err)
	view, err := prove.Load(t.Context(), e.Deps, clone.ID)
	e.Must(err)
	st := show.Status(clone, all, view)
	if !slices.Equal(st.Secrets, []string{added.Version.Ref.String()}) || !slices.Equal(st.States, []string{string(keymanager.Active)}) {
		t.Fatalf("columns %v %v", st.Secrets, st.States)
	}
	if got := []string{st.Points[0].Opens[0], st.Points[1].Opens[0]}; !slices.Equal(got, []string{"claims", "yes"}) {
		t.Errorf("cells, newest first: %v", got)
	}
	e.Manager.Away = true
	view, err = prove.Load(t.Context(), e.Deps, clone.ID)
	e.Must(err)
	if st = show.Status(clone, all, view); !slices.Equal(st.States, []string{"unknown"}) {
		t.Errorf("the manager is away: %v", st.States)
	}
	if v := show.Volume("vda", diskcrypt.Volume{ID: "disk"}, nil); v.Protectors == nil {
		t.Error("lists are never null")
	}
}
