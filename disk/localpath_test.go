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
