package machines

import "testing"

func FuzzParseDisk(f *testing.F) {
	for _, s := range []string{"vda=/a", "vda=/a,header=/b", "vda=", "=x", "vda=,header=", "a=b=c,header=d,header=e", "vda"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDisk(s)
		if err != nil {
			return
		}
		back := d.ID + "=" + d.Source
		if d.Header != "" {
			back += ",header=" + d.Header
		}
		if back != s || d.ID == "" || d.Source == "" {
			t.Errorf("parseDisk(%q) = %+v", s, d)
		}
	})
}
