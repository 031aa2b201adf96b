package shell

import "testing"

func TestRates(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "200M": 200 << 20, "200m": 200 << 20, "64K": 64 << 10, "65536": 65536, "1G": 1 << 30, "2T": 2 << 40,
	} {
		if got, err := ParseRate(s); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "M", "-1M", "+1M", "200", "1K", "1.5M", "20MB", "9999999999T", " 1M", "1e9", "0M"} {
		if got, err := ParseRate(s); err == nil {
			t.Errorf("Parse(%q) = %d", s, got)
		}
	}
}
