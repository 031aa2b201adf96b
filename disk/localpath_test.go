package disk

import (
	"errors"
	"path/filepath"
	"runtime"
	"testing"
)

func TestLocalPath(t *testing.T) {
	for location, want := range map[string]string{
		"disk.img":                    "disk.img",
		"/dev/sda":                    "/dev/sda",
		"/srv/odd://name":             "/srv/odd://name",
		"file:///srv/a%20b.img":       "/srv/a b.img",
		"FILE://localhost/srv/d":      "/srv/d",
		"file:///srv/d.img?format=x":  "/srv/d.img",
		"https://user:pw@host/x":      "",
		"file://host/x":               "",
		"file://":                     "",
		"file:///a%00b":               "",
		"":                            "",
		"a\x00b":                      "",
		"azure://account/container/x": "",
	} {
		got, _, err := LocalPath(location)
		if runtime.GOOS == "windows" {
			got = filepath.ToSlash(got)
			if want != "" && location[0] != '/' && location != "disk.img" {
				want = want[1:]
			}
		}
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, ErrNotLocal) {
			t.Errorf("LocalPath(%q) = %q, %v, want %q", location, got, err, want)
		}
	}
}

func TestSameLocal(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"/srv/repo", "/srv/repo", true},
		{"/srv/repo", "file:///srv/repo", true},
		{"/srv/x/../repo/", "file://localhost/srv/repo", true},
		{"/srv/repo", "/srv/repo2", false},
		{"/srv/repo", "s3://srv/repo", false},
		{"s3://a", "s3://a", true},
	} {
		if got := SameLocal(c.a, c.b); got != c.same {
			t.Errorf("SameLocal(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
