package custody

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

func goodPolicy() Policy {
	return Policy{
		Format: 1, Repository: repoID, Machine: machineID, Document: json.RawMessage(`{"format":1}`),
		Sequence: 3, Actor: "uid:0", Time: day,
	}
}

func TestPolicy(t *testing.T) {
	custodian := key(t, envelope.RoleCustodian)
	here := map[string]bool{repoID: true}
	none := goodPolicy()
	none.Document, none.Default = nil, true
	for _, p := range []Policy{goodPolicy(), none} {
		raw, err := SignPolicy(p, custodian)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := VerifyPolicyOf(raw, trust(custodian), here, machineID); err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v, %v", got, err)
		}
		for _, k := range []struct {
			name    string
			trust   Trust
			in      map[string]bool
			machine string
			want    error
		}{
			{"unknown key", trust(key(t, envelope.RoleCustodian)), here, machineID, envelope.ErrSignature},
			{"another repository", trust(custodian), map[string]bool{pointID: true}, machineID, ErrMismatch},
			{"another machine", trust(custodian), here, pointID, ErrMismatch},
			{"revoked", revoking{trust(custodian), custodian.ID()}, here, machineID, ErrRevoked},
		} {
			got, err := VerifyPolicyOf(raw, k.trust, k.in, k.machine)
			if !errors.Is(err, k.want) || (got.Sequence != 0) != (k.want == ErrRevoked) {
				t.Errorf("%s: %+v, %v", k.name, got, err)
			}
		}
	}
	if _, err := SignPolicy(goodPolicy(), key(t, envelope.RoleProver)); err == nil {
		t.Error("a prover states a policy")
	}
	m, err := SignMark(goodMark(), custodian)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyPolicyOf(m, trust(custodian), here, machineID); err == nil {
		t.Error("a mark passes for a policy")
	}
	for name, edit := range map[string]func(*Policy){
		"no machine":   func(p *Policy) { p.Machine = "" },
		"sequence 0":   func(p *Policy) { p.Sequence = 0 },
		"sequence max": func(p *Policy) { p.Sequence = maxSequence },
		"no time":      func(p *Policy) { p.Time = time.Time{} },
		"list":         func(p *Policy) { p.Document = json.RawMessage(`[]`) },
		"not JSON":     func(p *Policy) { p.Document = json.RawMessage(`{`) },
		"empty":        func(p *Policy) { p.Document = json.RawMessage{} },
		"too large":    func(p *Policy) { p.Document = json.RawMessage(`{"a":"` + strings.Repeat("x", maxPolicy) + `"}`) },
		"control":      func(p *Policy) { p.Actor = "a\nb" },
	} {
		p := goodPolicy()
		edit(&p)
		if _, err := SignPolicy(p, custodian); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestLaterPolicy(t *testing.T) {
	a := goodPolicy()
	for _, k := range []struct {
		name string
		edit func(*Policy)
		want int
	}{
		{"sequence before time", func(p *Policy) { p.Sequence, p.Time = 4, day.Add(-time.Hour) }, -1},
		{"time", func(p *Policy) { p.Time = day.Add(time.Second) }, -1},
		{"nothing decides", func(p *Policy) { p.Document = json.RawMessage(`{"format":1,"keep_last":1}`) }, 0},
	} {
		b := goodPolicy()
		k.edit(&b)
		if LaterPolicy(a, b) != k.want || LaterPolicy(b, a) != -k.want {
			t.Errorf("%s: %d", k.name, LaterPolicy(a, b))
		}
	}
	if n := NextPolicy([]Policy{a, {Sequence: 1}}); n != 4 || NextPolicy(nil) != 1 {
		t.Error(n)
	}
}
