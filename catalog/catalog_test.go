package catalog

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestNewestAcrossRepositories(t *testing.T) {
	at := func(h int) time.Time { return time.Date(2026, 1, 1, h, 0, 0, 0, time.UTC) }
	// Each repository has its own log: sequences of two do not compare.
	points := []Point{
		{ID: "a1", Repository: "a", Sequence: 90, Time: at(1), Written: at(1)},
		{ID: "a2", Repository: "a", Sequence: 91, Time: at(2), Written: at(2)},
		{ID: "b1", Repository: "b", Sequence: 1, Time: at(4), Written: at(4)},
		{ID: "b2", Repository: "b", Sequence: 2, Time: at(3), Written: at(3)},
		{ID: "b3", Repository: "b", Sequence: 3, Time: at(9), Written: at(9), DeletedAt: at(10)},
	}
	for _, k := range []struct {
		limit time.Time
		want  string
	}{
		{time.Time{}, "b2"},
		{at(3), "b2"},
		{at(2), "a2"},
		{at(1), "a1"},
		{at(0), ""},
	} {
		if p, ok := Newest(points, k.limit); p.ID != k.want || ok != (k.want != "") {
			t.Errorf("limit %v: %q, want %q", k.limit, p.ID, k.want)
		}
	}
}

func TestUnusableErrorSaysWhatToDo(t *testing.T) {
	cause := errors.New("disk image is malformed")
	err := &UnusableError{Path: "/x/catalog.db", Reason: ErrDamaged, Err: cause}
	if !errors.Is(err, ErrDamaged) || !errors.Is(err, cause) {
		t.Errorf("%v does not unwrap", err)
	}
	if !strings.Contains(err.Error(), "/x/catalog.db") || !strings.Contains(err.Hint(), "lockstep catalog rebuild") {
		t.Errorf("%q, %q", err.Error(), err.Hint())
	}
}
