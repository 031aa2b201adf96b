package rebuild_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/rebuild"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

const (
	strict  = `{"format":1,"retention":{"keep_last":1}}`
	lenient = `{"format":1,"retention":{"keep_last":100}}`
)

// TestPolicies: what is stated comes back; what is not certain keeps everything.
func TestPolicies(t *testing.T) {
	type scene struct {
		*provetest.Env
		a, b  catalog.Machine
		state func(m catalog.Machine, doc string, ofAll bool)
	}
	statements := func(s scene, m catalog.Machine) (keys []string) {
		s.Must(s.Store.List(ctx, "side/"+m.ID+"/"+repository.MachineSidecars+"/", func(i store.Info) error {
			if strings.Contains(i.Key, "/policy-") {
				keys = append(keys, i.Key)
			}
			return nil
		}))
		return keys
	}
	for _, k := range []struct {
		name          string
		do            func(scene)
		own, ofAll    string
		unread, other string // of a and b
	}{
		{"nothing is stated", func(scene) {}, "", "", "", ""},
		{"own and default", func(s scene) { s.state(s.a, lenient, false); s.state(s.b, strict, true) }, lenient, strict, "", ""},
		{"the last one", func(s scene) {
			s.state(s.a, strict, false)
			s.state(s.a, lenient, false)
			s.state(s.b, "", true)
		}, lenient, "", "", ""},
		{"taken away", func(s scene) { s.state(s.a, strict, false); s.state(s.a, "", true); s.state(s.b, "", true) }, "", "", "", ""},
		{"the latest default", func(s scene) { s.state(s.a, strict, true); s.state(s.b, lenient, true) }, "", lenient, "", ""},
		{"not stated of all", func(s scene) { s.state(s.b, strict, true) }, "", strict, "no repository states it", ""},
		{"damaged", func(s scene) {
			s.state(s.a, lenient, false)
			s.state(s.b, strict, true)
			key := statements(s, s.a)[0]
			raw, err := store.GetAll(ctx, s.Store, key, 1<<20)
			s.Must(err)
			s.Must(s.Store.Delete(ctx, key))
			raw[len(raw)-1] ^= 1
			s.Must(s.Store.Put(ctx, key, raw))
		}, "", strict, "damaged", ""},
		{"of a later version", func(s scene) {
			s.state(s.b, strict, true)
			raw, err := envelope.Sign("application/vnd.lockstep.policy+json", []byte(`{"format":2}`), s.Deps.Custodian)
			s.Must(err)
			_, err = s.Repo.PutSidecar(ctx, s.a.ID, repository.MachineSidecars, repository.SidecarPolicy, raw)
			s.Must(err)
		}, "", strict, "format", ""},
		{"not a policy that can be read", func(s scene) {
			s.state(s.a, `{"format":1,"nobody":"knows it"}`, false)
			s.state(s.b, strict, true)
		}, "", strict, "nobody", ""},
		{"by somebody without a say", func(s scene) {
			s.state(s.a, lenient, false)
			s.state(s.b, strict, true)
			raw, err := envelope.Sign("application/vnd.lockstep.policy+json", []byte(`{"format":1,"sequence":9}`), s.ProverKey)
			s.Must(err)
			_, err = s.Repo.PutSidecar(ctx, s.a.ID, repository.MachineSidecars, repository.SidecarPolicy, raw)
			s.Must(err)
		}, lenient, strict, "", ""},
	} {
		t.Run(k.name, func(t *testing.T) {
			s := scene{Env: provetest.New(t)}
			s.a = s.Machine("alpha", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
			s.b = s.Machine("bravo", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
			s.Store1(s.a)
			s.Store1(s.b)
			key := func() (envelope.SigningKey, error) { return s.Deps.Custodian, nil }
			s.state = func(m catalog.Machine, doc string, ofAll bool) {
				var raw []byte
				if doc != "" {
					raw = []byte(doc)
				}
				s.Must(prove.StatePolicy(ctx, s.Deps, m.ID, raw, ofAll, true, key))
			}
			k.do(s)
			c := s.OpenCatalog("new.db")
			_, err := rebuild.Run(ctx, rebuild.Deps{Catalog: c, Now: s.Now}, rebuild.Source{Repo: s.OpenRepo(), URL: "mem:"})
			s.Must(err)
			doc := func(machine string) string {
				raw, err := c.Policies.Get(ctx, machine)
				s.Must(err)
				return string(raw)
			}
			if doc(s.a.ID) != k.own || doc("") != k.ofAll || doc(s.b.ID) != "" {
				t.Errorf("own %q, default %q, %q", doc(s.a.ID), doc(""), doc(s.b.ID))
			}
			for m, want := range map[string]string{s.a.ID: k.unread, s.b.ID: k.other} {
				why, err := c.Meta.Get(ctx, prove.UnreadPolicy(m))
				if err != nil || (why == "") != (want == "") || !strings.Contains(why, want) {
					t.Errorf("unread: %q, %v, want %q", why, err, want)
				}
			}
			// Once more: what the catalog knows stays.
			s.Must(c.Policies.Put(ctx, s.a.ID, []byte(strict)))
			_, err = rebuild.Run(ctx, rebuild.Deps{Catalog: c, Now: s.Now}, rebuild.Source{Repo: s.OpenRepo(), URL: "mem:"})
			s.Must(err)
			if doc(s.a.ID) != strict {
				t.Errorf("%s", doc(s.a.ID))
			}
		})
	}
}

// TestStatePolicy: it is written where it is not stated yet, and what could not
// be written is written later.
func TestStatePolicy(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("alpha", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
	asked := 0
	key := func() (envelope.SigningKey, error) { asked++; return e.Deps.Custodian, nil }
	state := func(doc []byte, changed bool, writes int) {
		t.Helper()
		asked = 0
		if err := prove.StatePolicy(ctx, e.Deps, m.ID, doc, false, changed, key); err != nil || asked != writes {
			t.Errorf("%d written, %v", asked, err)
		}
	}
	state([]byte(strict), true, 0) // the repository does not know the machine
	e.Store1(m)
	state([]byte(strict), false, 1)
	state([]byte(strict), false, 0)
	state([]byte(strict), true, 0)
	away := errors.New("no key")
	if err := prove.StatePolicy(ctx, e.Deps, m.ID, nil, true, true, func() (envelope.SigningKey, error) { return envelope.SigningKey{}, away }); !errors.Is(err, away) {
		t.Error(err)
	}
	if err := prove.StatePolicy(context.Background(), e.Deps, m.ID, nil, true, false, key); err != nil || asked != 1 {
		t.Errorf("%d, %v", asked, err)
	}
	// A catalog that never knew one takes none away.
	e.Deps.Catalog = e.OpenCatalog("new.db")
	state([]byte(strict), false, 1)
	e.Deps.Catalog = e.OpenCatalog("newer.db")
	state(nil, false, 0)
}
