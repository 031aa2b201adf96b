package keymanager

import (
	"errors"
	"testing"
)

func TestCheckTransition(t *testing.T) {
	all := []State{PreActive, Active, Disabled, Deactivated, Compromised, Destroyed}
	allowed := map[State]string{ // one letter for each of all: y allowed, r with a reason, - refused
		PreActive:   "yy--y-",
		Active:      "-yyyy-",
		Disabled:    "-yyyy-",
		Deactivated: "-r-yy-",
		Compromised: "----y-",
		Destroyed:   "------",
	}
	ref := Ref{ID: "s", Version: 1}
	for from, row := range allowed {
		for i, to := range all {
			with := CheckTransition(ref, from, to, "because")
			without := CheckTransition(ref, from, to, " \t")
			if want := row[i] != '-'; (with == nil) != want {
				t.Errorf("%s to %s with a reason: %v", from, to, with)
			}
			if want := row[i] == 'y'; (without == nil) != want {
				t.Errorf("%s to %s without a reason: %v", from, to, without)
			}
			_, typed := errors.AsType[*TransitionError](with)
			if with != nil && !typed && !(from == Destroyed && errors.Is(with, ErrDestroyed)) {
				t.Errorf("%s to %s: error %v is not typed", from, to, with)
			}
		}
	}
}

func TestHoldKeysDoNotMeet(t *testing.T) {
	holds := []Hold{
		{Installer: "a/b", Repository: "c"},
		{Installer: "a", Repository: "b/c"},
		{Installer: "a%2Fb", Repository: "c"},
		{Installer: "a", Repository: "b", Machine: "c"},
	}
	seen := map[string]Hold{}
	for _, h := range holds {
		if other, ok := seen[h.Key()]; ok {
			t.Errorf("%+v and %+v share the key %s", h, other, h.Key())
		}
		seen[h.Key()] = h
	}
	if got := (Hold{Installer: "i", Repository: "r", Machine: "m", Point: "p"}).Key(); got != "i/r/m/p" {
		t.Errorf("key %q", got)
	}
}
