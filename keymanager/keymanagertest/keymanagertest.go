// Package keymanagertest is the conformance suite of keymanager.Manager. Every
// adapter runs it; an operator can run it against a manager of his own. It
// leaves secrets behind under random ids that begin with "conformance-".
package keymanagertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Factory makes an empty key manager. reopen gives another Manager over the
// same state, as another process would have it; the first stays in use.
type Factory func(t *testing.T) (mgr keymanager.Manager, reopen func() keymanager.Manager)

// Run runs the suite, each part on a manager of its own.
func Run(t *testing.T, factory Factory) {
	for _, part := range []struct {
		name string
		run  func(*suite)
	}{
		{"versions are numbered and never overwritten", versions},
		{"equal bytes add nothing", equalBytes},
		{"equal bytes under two ids are two secrets", equalBytesTwice},
		{"invalid puts are refused", invalidPuts},
		{"get gives a copy", getCopies},
		{"what is not there is not found", notThere},
		{"labels are merged", labels},
		{"transitions", transitions},
		{"a disabled version is refused, a deactivated one is not", disabled},
		{"holds are idempotent and block destroying", holds},
		{"destroyed for ever", destroyed},
		{"list is ordered", listOrder},
		{"bytes show nowhere", redaction},
		{"everything is there for another process", reopened},
		{"puts from many goroutines and two managers", concurrentPuts},
		{"holds from many goroutines and two managers", concurrentHolds},
		{"a cancelled context changes nothing", cancelled},
	} {
		t.Run(part.name, func(t *testing.T) {
			mgr, reopen := factory(t)
			part.run(&suite{T: t, mgr: mgr, reopen: reopen, ctx: t.Context()})
		})
	}
}

const kind = "passphrase"

type suite struct {
	*testing.T
	mgr    keymanager.Manager
	reopen func() keymanager.Manager
	ctx    context.Context
}

func newID() string {
	return "conformance-" + strings.ToLower(rand.Text()[:16])
}

func (s *suite) put(id, content string) keymanager.Version {
	s.Helper()
	v, err := s.mgr.Put(s.ctx, request(id, content))
	if err != nil {
		s.Fatalf("put: %v", err)
	}
	return v
}

func request(id, content string) keymanager.Put {
	return keymanager.Put{
		ID: id, Kind: kind, State: keymanager.Active, Reason: "conformance",
		Labels: map[string]string{keymanager.LabelMachine: "m1"},
		Secret: envelope.CopySecret([]byte(content)),
	}
}

func (s *suite) wantBytes(m keymanager.Manager, ref keymanager.Ref, want string) {
	s.Helper()
	got, err := m.Get(s.ctx, ref)
	if err != nil {
		s.Errorf("get %s: %v", ref, err)
		return
	}
	defer got.Wipe()
	if string(got.Expose()) != want {
		s.Errorf("get %s: other bytes than were put", ref)
	}
}

func (s *suite) wantErr(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("%s: error %v, want one that is %q", what, err, want)
	}
}

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// info finds a secret; nil if List does not have it.
func (s *suite) info(m keymanager.Manager, id string) *keymanager.Info {
	s.Helper()
	infos, err := m.List(s.ctx)
	s.must(err)
	for i := range infos {
		if infos[i].ID == id {
			return &infos[i]
		}
	}
	return nil
}

func (s *suite) version(m keymanager.Manager, ref keymanager.Ref) keymanager.Version {
	s.Helper()
	if info := s.info(m, ref.ID); info != nil {
		for _, v := range info.Versions {
			if v.Ref == ref {
				return v
			}
		}
	}
	s.Fatalf("list has no %s", ref)
	return keymanager.Version{}
}

func versions(s *suite) {
	id := newID()
	var refs []keymanager.Ref
	contents := []string{"first", "second", string(bytes.Repeat([]byte{0, 255, '\n'}, 5000))}
	for i, content := range contents {
		v := s.put(id, content)
		if want := (keymanager.Ref{ID: id, Version: i + 1}); v.Ref != want {
			s.Fatalf("put gave %s, want %s", v.Ref, want)
		}
		if v.State != keymanager.Active || len(v.History) != 1 || v.History[0].Reason != "conformance" || v.Created.IsZero() {
			s.Errorf("new version: %+v", v)
		}
		refs = append(refs, v.Ref)
	}
	for i, ref := range refs {
		s.wantBytes(s.mgr, ref, contents[i])
	}
	if a, b := s.put("", "one"), s.put("", "one"); a.Ref.ID == "" || a.Ref.ID == b.Ref.ID {
		s.Errorf("two puts without an id gave %s and %s", a.Ref, b.Ref)
	}
}

func equalBytes(s *suite) {
	id := newID()
	first := s.put(id, "first")
	s.put(id, "second")
	s.must(s.mgr.SetState(s.ctx, first.Ref, keymanager.Deactivated, "rotated"))
	again := s.put(id, "first")
	if again.Ref != first.Ref || again.State != keymanager.Deactivated {
		s.Errorf("put of known bytes gave %s in state %s, want %s as it was", again.Ref, again.State, first.Ref)
	}
	if n := len(s.info(s.mgr, id).Versions); n != 2 {
		s.Errorf("%d versions, want 2", n)
	}
	s.must(s.mgr.Destroy(s.ctx, first.Ref, "test"))
	if v := s.put(id, "first"); v.Ref.Version != 3 {
		s.Errorf("put of a destroyed version's bytes gave %s, want version 3", v.Ref)
	}
}

func equalBytesTwice(s *suite) {
	a, b := s.put(newID(), "same"), s.put(newID(), "same")
	if a.Ref.ID == b.Ref.ID {
		s.Fatalf("both are %s", a.Ref)
	}
	s.must(s.mgr.Destroy(s.ctx, a.Ref, "test"))
	s.wantBytes(s.mgr, b.Ref, "same")
}

func invalidPuts(s *suite) {
	id := newID()
	s.put(id, "first")
	for name, spoil := range map[string]func(*keymanager.Put){
		"no bytes":     func(p *keymanager.Put) { p.Secret = envelope.Secret{} },
		"no state":     func(p *keymanager.Put) { p.State = "" },
		"destroyed":    func(p *keymanager.Put) { p.State = keymanager.Destroyed },
		"another kind": func(p *keymanager.Put) { p.Kind = "key-file" },
		"id with @":    func(p *keymanager.Put) { p.ID = "a@1" },
		"id with line": func(p *keymanager.Put) { p.ID = "a\nb" },
	} {
		p := request(id, "next")
		spoil(&p)
		_, err := s.mgr.Put(s.ctx, p)
		s.wantErr(name, err, keymanager.ErrInvalid)
	}
	if n := len(s.info(s.mgr, id).Versions); n != 1 {
		s.Errorf("%d versions after refused puts, want 1", n)
	}
}

func getCopies(s *suite) {
	secret := envelope.CopySecret([]byte("mine"))
	p := request(newID(), "")
	p.Secret = secret
	v, err := s.mgr.Put(s.ctx, p)
	s.must(err)
	if string(secret.Expose()) != "mine" {
		s.Error("put changed the caller's secret")
	}
	secret.Wipe()
	got, err := s.mgr.Get(s.ctx, v.Ref)
	s.must(err)
	got.Wipe()
	s.wantBytes(s.mgr, v.Ref, "mine")
}

func notThere(s *suite) {
	v := s.put(newID(), "x")
	for _, ref := range []keymanager.Ref{
		{ID: newID(), Version: 1}, {ID: v.Ref.ID, Version: 2}, {ID: v.Ref.ID}, {ID: v.Ref.ID, Version: -1}, {},
	} {
		_, err := s.mgr.Get(s.ctx, ref)
		s.wantErr("get "+ref.String(), err, keymanager.ErrNotFound)
		s.wantErr("set state", s.mgr.SetState(s.ctx, ref, keymanager.Disabled, "r"), keymanager.ErrNotFound)
		s.wantErr("hold", s.mgr.Hold(s.ctx, ref, hold("p")), keymanager.ErrNotFound)
		s.wantErr("unhold", s.mgr.Unhold(s.ctx, ref, hold("p")), keymanager.ErrNotFound)
		s.wantErr("destroy", s.mgr.Destroy(s.ctx, ref, "r"), keymanager.ErrNotFound)
	}
}

func labels(s *suite) {
	id := newID()
	s.put(id, "first")
	p := request(id, "second")
	p.Labels = map[string]string{keymanager.LabelVolume: "vda/2"}
	_, err := s.mgr.Put(s.ctx, p)
	s.must(err)
	want := map[string]string{keymanager.LabelMachine: "m1", keymanager.LabelVolume: "vda/2"}
	if info := s.info(s.mgr, id); info.Kind != kind || !reflect.DeepEqual(info.Labels, want) {
		s.Errorf("kind %q, labels %v, want %q, %v", info.Kind, info.Labels, kind, want)
	}
}

var states = []keymanager.State{
	keymanager.PreActive, keymanager.Active, keymanager.Disabled,
	keymanager.Deactivated, keymanager.Compromised, keymanager.Destroyed,
}

// pathTo is how a version that begins pre-active gets into each state.
var pathTo = map[keymanager.State][]keymanager.State{
	keymanager.PreActive:   {},
	keymanager.Active:      {keymanager.Active},
	keymanager.Disabled:    {keymanager.Active, keymanager.Disabled},
	keymanager.Deactivated: {keymanager.Active, keymanager.Deactivated},
	keymanager.Compromised: {keymanager.Compromised},
}

func transitions(s *suite) {
	for from, path := range pathTo {
		for _, to := range append(states, "", "no-such-state") {
			s.transition(from, path, to, "because")
		}
	}
	s.transition(keymanager.Deactivated, pathTo[keymanager.Deactivated], keymanager.Active, " ")
}

func (s *suite) transition(from keymanager.State, path []keymanager.State, to keymanager.State, reason string) {
	s.Helper()
	p := request(newID(), "x")
	p.State = keymanager.PreActive
	v, err := s.mgr.Put(s.ctx, p)
	s.must(err)
	for _, next := range path {
		s.must(s.mgr.SetState(s.ctx, v.Ref, next, "on the way"))
	}
	before := s.version(s.mgr, v.Ref)
	err = s.mgr.SetState(s.ctx, v.Ref, to, reason)
	after := s.version(s.mgr, v.Ref)
	if keymanager.CheckTransition(v.Ref, from, to, reason) != nil {
		if te, ok := errors.AsType[*keymanager.TransitionError](err); !ok || te.From != from || te.To != to || te.Ref != v.Ref {
			s.Errorf("%s to %q: error %v, want a TransitionError", from, to, err)
		}
		if !reflect.DeepEqual(before, after) {
			s.Errorf("%s to %q was refused, but changed %+v to %+v", from, to, before, after)
		}
		return
	}
	if err != nil {
		s.Errorf("%s to %s: %v", from, to, err)
		return
	}
	wantSteps := len(before.History)
	if from != to {
		wantSteps++
	}
	if after.State != to || len(after.History) != wantSteps || after.History[len(after.History)-1].State != to {
		s.Errorf("%s to %s: now %+v", from, to, after)
	}
}

func disabled(s *suite) {
	v := s.put(newID(), "x")
	for _, step := range []struct {
		to   keymanager.State
		want error
	}{
		{keymanager.Disabled, keymanager.ErrDisabled},
		{keymanager.Active, nil},
		{keymanager.Deactivated, nil},
		{keymanager.Active, nil},
		{keymanager.Compromised, nil},
	} {
		s.must(s.mgr.SetState(s.ctx, v.Ref, step.to, "test"))
		got, err := s.mgr.Get(s.ctx, v.Ref)
		if !errors.Is(err, step.want) {
			s.Errorf("get in state %s: error %v, want %v", step.to, err, step.want)
		}
		if got.Len() > 0 && err != nil {
			s.Errorf("get in state %s gave bytes with its error", step.to)
		}
		got.Wipe()
	}
}

func hold(point string) keymanager.Hold {
	return keymanager.Hold{
		Repository: "r1", Machine: "m1", Point: point, Installer: "i1",
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func holds(s *suite) {
	v := s.put(newID(), "x")
	first := hold("p1")
	s.must(s.mgr.Hold(s.ctx, v.Ref, first))
	later := first
	later.Since = later.Since.AddDate(1, 0, 0)
	s.must(s.mgr.Hold(s.ctx, v.Ref, later))
	other := first
	other.Installer = "i2"
	s.must(s.mgr.Hold(s.ctx, v.Ref, other))
	got := s.version(s.mgr, v.Ref).Holds
	if len(got) != 2 {
		s.Fatalf("%d holds, want 2: %+v", len(got), got)
	}
	for _, h := range got {
		if !h.Since.Equal(first.Since) {
			s.Errorf("hold %s is since %s, want the first time it was placed", h.Key(), h.Since)
		}
	}
	err := s.mgr.Destroy(s.ctx, v.Ref, "test")
	held, ok := errors.AsType[*keymanager.HeldError](err)
	if !ok || held.Ref != v.Ref || !slices.Equal(keysOf(held.Holds), keysOf([]keymanager.Hold{first, other})) {
		s.Fatalf("destroy of a held version: error %v, want a HeldError with both holds", err)
	}
	s.wantBytes(s.mgr, v.Ref, "x")
	s.must(s.mgr.Unhold(s.ctx, v.Ref, first))
	s.must(s.mgr.Unhold(s.ctx, v.Ref, first))
	if _, ok := errors.AsType[*keymanager.HeldError](s.mgr.Destroy(s.ctx, v.Ref, "test")); !ok {
		s.Error("destroyed with one hold left")
	}
	s.must(s.mgr.Unhold(s.ctx, v.Ref, other))
	s.must(s.mgr.Destroy(s.ctx, v.Ref, "test"))
}

func keysOf(holds []keymanager.Hold) []string {
	var keys []string
	for _, h := range holds {
		keys = append(keys, h.Key())
	}
	slices.Sort(keys)
	return keys
}

func destroyed(s *suite) {
	id := newID()
	v := s.put(id, "x")
	s.must(s.mgr.SetState(s.ctx, v.Ref, keymanager.Disabled, "first"))
	s.must(s.mgr.Destroy(s.ctx, v.Ref, "gone"))
	s.must(s.mgr.Destroy(s.ctx, v.Ref, "again"))
	for _, m := range []keymanager.Manager{s.mgr, s.reopen()} {
		_, err := m.Get(s.ctx, v.Ref)
		s.wantErr("get", err, keymanager.ErrDestroyed)
		s.wantErr("set state", m.SetState(s.ctx, v.Ref, keymanager.Active, "r"), keymanager.ErrDestroyed)
		s.wantErr("hold", m.Hold(s.ctx, v.Ref, hold("p1")), keymanager.ErrDestroyed)
		got := s.version(m, v.Ref)
		if got.State != keymanager.Destroyed || len(got.History) != 3 || got.History[2].Reason != "gone" {
			s.Errorf("destroyed version is listed as %+v", got)
		}
	}
	if next := s.put(id, "y"); next.Ref.Version != 2 {
		s.Errorf("put after destroying the only version gave %s, want version 2", next.Ref)
	}
}

func listOrder(s *suite) {
	var want []string
	for i := range 12 {
		v := s.put(newID(), fmt.Sprint(i))
		want = append(want, v.Ref.ID)
		s.put(v.Ref.ID, "second")
	}
	slices.Sort(want)
	infos, err := s.mgr.List(s.ctx)
	s.must(err)
	var got []string
	for _, info := range infos {
		if slices.Contains(want, info.ID) {
			got = append(got, info.ID)
		}
		for i, v := range info.Versions {
			if v.Ref != (keymanager.Ref{ID: info.ID, Version: i + 1}) {
				s.Errorf("secret %s: version %d is listed as %s", info.ID, i+1, v.Ref)
			}
		}
	}
	if !slices.Equal(got, want) {
		s.Errorf("listed %v, want %v", got, want)
	}
}

// redaction looks for the bytes, in the usual encodings, in all that a manager
// says about them.
func redaction(s *suite) {
	content := "Plaintext-That-Must-Not-Show-" + rand.Text()
	id := newID()
	v := s.put(id, content)
	again := s.put(id, content)
	s.must(s.mgr.Hold(s.ctx, v.Ref, hold("p1")))
	infos, err := s.mgr.List(s.ctx)
	s.must(err)
	secret, err := s.mgr.Get(s.ctx, v.Ref)
	s.must(err)
	defer secret.Wipe()
	said := []any{v, again, infos, secret, request(id, content), s.mgr}
	wrong := request(id, content)
	wrong.Kind = "key-file"
	_, err = s.mgr.Put(s.ctx, wrong)
	said = append(said, err, s.mgr.Destroy(s.ctx, v.Ref, "r"), s.mgr.SetState(s.ctx, v.Ref, keymanager.Destroyed, "r"))
	for _, x := range said {
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			s.wantSilent(content, fmt.Sprintf(format, x))
		}
		if b, err := json.Marshal(x); err == nil {
			s.wantSilent(content, string(b))
		}
	}
}

func (s *suite) wantSilent(content, said string) {
	s.Helper()
	for _, form := range []string{
		content, hex.EncodeToString([]byte(content)), base64.StdEncoding.EncodeToString([]byte(content)),
		fmt.Sprint([]byte(content)),
	} {
		if strings.Contains(said, form) {
			s.Errorf("the secret's bytes show in %q", said)
		}
	}
}

func reopened(s *suite) {
	id := newID()
	a, b, c := s.put(id, "a"), s.put(id, "b"), s.put(id, "c")
	s.must(s.mgr.SetState(s.ctx, a.Ref, keymanager.Deactivated, "rotated"))
	s.must(s.mgr.Hold(s.ctx, b.Ref, hold("p1")))
	s.must(s.mgr.Destroy(s.ctx, c.Ref, "test"))
	want := s.info(s.mgr, id)
	other := s.reopen()
	if got := s.info(other, id); !reflect.DeepEqual(got, want) {
		s.Errorf("another process sees %+v, want %+v", got, want)
	}
	s.wantBytes(other, a.Ref, "a")
	s.wantBytes(other, b.Ref, "b")
	s.must(other.Unhold(s.ctx, b.Ref, hold("p1")))
	if held := s.version(s.mgr, b.Ref).Holds; len(held) != 0 {
		s.Errorf("hold released by another process is still there: %+v", held)
	}
}

func concurrentPuts(s *suite) {
	const goroutines, each = 8, 4
	managers := []keymanager.Manager{s.mgr, s.reopen()}
	id := newID()
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[keymanager.Ref]string{}
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				// Two goroutines put the same bytes each time.
				content := fmt.Sprintf("content %d %d", g/2, i)
				v, err := managers[g%2].Put(s.ctx, request(id, content))
				if err != nil {
					s.Errorf("put: %v", err)
					return
				}
				mu.Lock()
				if before, ok := got[v.Ref]; ok && before != content {
					s.Errorf("%s was given to two contents", v.Ref)
				}
				got[v.Ref] = content
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(got) != goroutines/2*each {
		s.Errorf("%d versions, want %d", len(got), goroutines/2*each)
	}
	for ref, content := range got {
		if ref.Version < 1 || ref.Version > len(got) {
			s.Errorf("version number %d of %d versions", ref.Version, len(got))
		}
		s.wantBytes(managers[ref.Version%2], ref, content)
	}
}

func concurrentHolds(s *suite) {
	const goroutines = 8
	managers := []keymanager.Manager{s.mgr, s.reopen()}
	v := s.put(newID(), "x")
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			if err := managers[g%2].Hold(s.ctx, v.Ref, hold(fmt.Sprint("p", g))); err != nil {
				s.Errorf("hold: %v", err)
			}
			if _, ok := errors.AsType[*keymanager.HeldError](managers[g%2].Destroy(s.ctx, v.Ref, "r")); !ok {
				s.Error("destroyed though this goroutine had a hold")
			}
		})
	}
	wg.Wait()
	if n := len(s.version(s.mgr, v.Ref).Holds); n != goroutines {
		s.Errorf("%d holds, want %d", n, goroutines)
	}
}

func cancelled(s *suite) {
	id := newID()
	v := s.put(id, "x")
	before := s.info(s.mgr, id)
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	_, err := s.mgr.Put(ctx, request(id, "y"))
	s.wantErr("put", err, context.Canceled)
	_, err = s.mgr.Get(ctx, v.Ref)
	s.wantErr("get", err, context.Canceled)
	_, err = s.mgr.List(ctx)
	s.wantErr("list", err, context.Canceled)
	s.wantErr("set state", s.mgr.SetState(ctx, v.Ref, keymanager.Disabled, "r"), context.Canceled)
	s.wantErr("hold", s.mgr.Hold(ctx, v.Ref, hold("p")), context.Canceled)
	s.wantErr("unhold", s.mgr.Unhold(ctx, v.Ref, hold("p")), context.Canceled)
	s.wantErr("destroy", s.mgr.Destroy(ctx, v.Ref, "r"), context.Canceled)
	if after := s.info(s.mgr, id); !reflect.DeepEqual(before, after) {
		s.Errorf("cancelled calls changed %+v to %+v", before, after)
	}
}
