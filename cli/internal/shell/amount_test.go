package shell

import (
	"testing"
	"time"
)

func TestAmount(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "100G": 100 << 30, "4k": 4096, "8388607T": 8388607 << 40} {
		var a Amount
		if err := a.Set(s); err != nil || int64(a) != want {
			t.Errorf("%q: %d, %v", s, a, err)
		}
	}
	for _, s := range []string{"", "0", "G", "-1", "+1", "1.5G", "1GB", "1 G", "8388608T", "99999999999999999999"} {
		var a Amount
		if err := a.Set(s); err == nil {
			t.Errorf("%q is taken for %d", s, a)
		}
	}
}

func TestAge(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1h": time.Hour, "30d": 720 * time.Hour, "1d12h": 36 * time.Hour, "2w": 14 * 24 * time.Hour, "1w1d1h1m1s": 193*time.Hour + 61*time.Second, "90m": 90 * time.Minute,
	} {
		var a Age
		if err := a.Set(s); err != nil || time.Duration(a) != want {
			t.Errorf("%q: %v, %v", s, time.Duration(a), err)
		}
	}
	for _, s := range []string{"", "0", "0d", "30", "d", "-1d", "1.5h", "1h1d", "1d1d", "1y", "1d ", "101w9999999999d", "5300w"} {
		var a Age
		if err := a.Set(s); err == nil {
			t.Errorf("%q is taken for %v", s, time.Duration(a))
		}
	}
}

func FuzzAge(f *testing.F) {
	for _, s := range []string{"1h", "30d", "1d12h", "1w1d1h1m1s", "99999999999w"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var a Age
		if err := a.Set(s); err == nil && (a <= 0 || time.Duration(a) > maxAge) {
			t.Errorf("%q is %v", s, time.Duration(a))
		}
	})
}
