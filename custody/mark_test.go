package custody

import (
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

func goodMark() Mark {
	return Mark{
		Format: 1, Repository: repoID, Machine: machineID, Point: pointID, Kind: MarkPin, Set: true,
		Sequence: 1, Reason: "before the move", Actor: "uid:0", Time: day,
	}
}

func TestMark(t *testing.T) {
	custodian := key(t, envelope.RoleCustodian)
	raw, err := SignMark(goodMark(), custodian)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := VerifyMark(raw, trust(custodian), repoID, machineID); err != nil || got != goodMark() {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, k := range []struct {
		name    string
		trust   Trust
		repo    string
		machine string
		want    error
	}{
		{"unknown key", trust(key(t, envelope.RoleCustodian)), repoID, machineID, envelope.ErrSignature},
		{"another repository", trust(custodian), pointID, machineID, ErrMismatch},
		{"another machine", trust(custodian), repoID, pointID, ErrMismatch},
		{"revoked", revoking{trust(custodian), custodian.ID()}, repoID, machineID, ErrRevoked},
	} {
		got, err := VerifyMark(raw, k.trust, k.repo, k.machine)
		if !errors.Is(err, k.want) {
			t.Errorf("%s: %v, want %v", k.name, err, k.want)
		}
		if told := got.Point != ""; told != (k.want == ErrRevoked) {
			t.Errorf("%s: the mark is returned: %v", k.name, told)
		}
	}
	if _, err := SignMark(goodMark(), key(t, envelope.RoleProver)); err == nil {
		t.Error("a prover signs a mark")
	}
	// A statement of another type must not pass for a mark.
	d, err := SignDeclaration(Declaration{Repository: repoID, Machine: machineID, Disk: "vda", Volume: "p2", Time: day}, custodian)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyMark(d, trust(custodian), repoID, machineID); err == nil {
		t.Error("a declaration passes for a mark")
	}
}

func TestMarkRefuses(t *testing.T) {
	custodian := key(t, envelope.RoleCustodian)
	for name, edit := range map[string]func(*Mark){
		"no recovery point":         func(m *Mark) { m.Point = "" },
		"unknown kind":              func(m *Mark) { m.Kind = "sticker" },
		"pin without a reason":      func(m *Mark) { m.Reason = " " },
		"pin with a name":           func(m *Mark) { m.Name = "x" },
		"tag without a key":         func(m *Mark) { m.Kind = MarkTag },
		"tag with a bad key":        func(m *Mark) { m.Kind, m.Name = MarkTag, "a=b" },
		"tag with a long value":     func(m *Mark) { m.Kind, m.Name, m.Value = MarkTag, "a", strings.Repeat("x", 257) },
		"case without a name":       func(m *Mark) { m.Kind = MarkLegalHold },
		"case without a reason":     func(m *Mark) { m.Kind, m.Name, m.Reason = MarkLegalHold, "CASE-1", "" },
		"case lifted for no reason": func(m *Mark) { m.Kind, m.Name, m.Reason, m.Set = MarkLegalHold, "CASE-1", "", false },
		"escape sequence":           func(m *Mark) { m.Reason = "\x1b[2J" },
		"sequence 0":                func(m *Mark) { m.Sequence = 0 },
		"sequence without a next":   func(m *Mark) { m.Sequence = maxSequence },
		"no time":                   func(m *Mark) { m.Time = time.Time{} },
	} {
		m := goodMark()
		edit(&m)
		if _, err := SignMark(m, custodian); !errors.Is(err, ErrStatement) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMarksInForce(t *testing.T) {
	mark := func(kind, name, value string, set bool, seq int64, at time.Time) Mark {
		m := goodMark()
		m.Kind, m.Name, m.Value, m.Set, m.Sequence, m.Time = kind, name, value, set, seq, at
		return m
	}
	early, late := day, day.Add(time.Hour)
	all := []Mark{
		mark(MarkPin, "", "", true, 1, late),
		mark(MarkPin, "", "", false, 2, early), // the sequence counts before the clock
		mark(MarkTag, "env", "test", true, 1, early),
		mark(MarkTag, "env", "prod", true, 1, late), // two writers at once: the later one
		mark(MarkTag, "gone", "", true, 1, early),
		mark(MarkTag, "gone", "", false, 2, early),
		mark(MarkLegalHold, "CASE-2", "", true, 1, early),
		mark(MarkLegalHold, "CASE-2", "", false, 1, early), // a tie keeps
		mark(MarkLegalHold, "CASE-1", "", true, 7, early),
		mark(MarkLegalHold, "CASE-3", "", false, 1, early),
	}
	for range 20 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		got := MarksInForce(all)[pointID]
		if got.Pin != nil {
			t.Fatalf("pin %+v", got.Pin)
		}
		if !maps.Equal(got.Tags, map[string]string{"env": "prod"}) {
			t.Fatalf("tags %v", got.Tags)
		}
		if len(got.LegalHolds) != 2 || got.LegalHolds[0].Name != "CASE-1" || got.LegalHolds[1].Name != "CASE-2" {
			t.Fatalf("legal holds %+v", got.LegalHolds)
		}
	}
	if n := NextSequence(all, mark(MarkPin, "", "", true, 0, day)); n != 3 {
		t.Errorf("next sequence of a pin: %d", n)
	}
	if n := NextSequence(all, mark(MarkTag, "new", "", true, 0, day)); n != 1 {
		t.Errorf("next sequence of a new tag: %d", n)
	}
}
