package checks

import "testing"

func TestParseShare(t *testing.T) {
	for s, want := range map[string]float64{"5%": 0.05, "100%": 1, "0.25": 0.25, "0.1%": 0.001, "1": 1} {
		if got, err := parseShare(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "%", "0", "0%", "101%", "5", "-5%", "NaN", "NaN%", "Inf", "x"} {
		if got, err := parseShare(s); err == nil {
			t.Errorf("%q is taken for %v", s, got)
		}
	}
}
