package frame

import (
	"fmt"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/repository"
)

// TestKnownDamage: what was found stays known until what would find it again
// looked and did not; and the list is bounded.
func TestKnownDamage(t *testing.T) {
	now := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	all := func(KnownDamage) bool { return true }
	none := func(KnownDamage) bool { return false }
	structural := func(d KnownDamage) bool { return d.By == FoundByStructure }
	k := knownDamage{}
	says := func(when string, want ...string) {
		t.Helper()
		got := []string{}
		for _, d := range k.Objects {
			got = append(got, d.Object+" "+d.By)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || k.More {
			t.Errorf("%s: %v (more: %v), want %v", when, got, k.More, want)
		}
	}
	k = k.after(FoundByReading, []KnownDamage{{Object: "a", Points: []string{"1"}}, {Object: "a", Points: []string{"2"}}, {Object: "b"}}, all, now)
	says("found", "a reading", "b reading")
	if !k.Objects[0].Only([]repository.Point{{ID: "1"}, {ID: "2"}, {ID: "3"}}) || k.Objects[0].Only([]repository.Point{{ID: "1"}}) || k.Objects[1].Only(nil) {
		t.Errorf("points of %+v", k.Objects)
	}
	k = k.after(FoundByStructure, []KnownDamage{{Object: "b"}}, structural, now)
	says("the structure finds one again", "b structure", "a reading")
	k = k.after(FoundByReading, []KnownDamage{{Object: "b"}}, none, now)
	says("reading finds it, too", "b structure", "a reading")
	k = k.after(FoundByStructure, nil, structural, now)
	says("the structure is whole", "a reading")
	k = k.after(FoundByReading, nil, all, now)
	says("all is whole")

	var many []KnownDamage
	for i := range maxKnown + 10 {
		many = append(many, KnownDamage{Object: fmt.Sprint(i)})
	}
	for i := range maxKnownPoints + 10 {
		many = append(many, KnownDamage{Object: "0", Points: []string{fmt.Sprint(i)}})
	}
	k = k.after(FoundByReading, many, all, now)
	if len(k.Objects) != maxKnown || !k.More || len(k.Objects[0].Points) != maxKnownPoints || !k.Objects[0].Many {
		t.Errorf("%d objects, more: %v, the first: %+v", len(k.Objects), k.More, k.Objects[0])
	}
	if k = k.after(FoundByStructure, nil, structural, now); !k.More {
		t.Error("what is not listed was forgotten")
	}
	k = k.after(FoundByReading, nil, all, now)
	says("all is whole again")
}
