package importing

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLayouts(t *testing.T) {
	for _, c := range []struct{ layout, name, want string }{
		{"%Y-%m-%d", "web01-2019-03-31.qcow2", "2019-03-31T00:00:00Z"},
		{"web01-%Y%m%dT%H%M%S", "web01-20190331T021500.raw", "2019-03-31T02:15:00Z"},
		{"%Y_%m_%d-%H.%M", "2020_02_29-23.59.img", "2020-02-29T23:59:00Z"},
		{"%d.%m.%Y", "1 31.12.2018 a.raw", "2018-12-31T00:00:00Z"},
		{"-%s.", "backup-1552531200.vmdk", "2019-03-14T02:40:00Z"},
		{"100%%-%Y%m%d", "100%-20190331.img", "2019-03-31T00:00:00Z"},
		{"(%Y*%m*%d)", "x(2019 month 03 day 31).img", "2019-03-31T00:00:00Z"},
		{"größe-%Y%m%d", "größe-20190331.img", "2019-03-31T00:00:00Z"},
		{"%Y-%m-%d", "web01-2019-02-30.qcow2", ""},
		{"%Y-%m-%d", "web01-2019-13-01.qcow2", ""},
		{"%Y-%m-%dT%H", "2019-01-01T24.raw", ""},
		{"%Y-%m-%d", "web01.qcow2", ""},
		{"a%Y%m%d", "b20190331", ""},
		{"%Y%m%d", "٢٠١٩٠٣٣١.raw", ""},
	} {
		find, err := parseLayout(c.layout)
		if err != nil {
			t.Errorf("%s: %v", c.layout, err)
			continue
		}
		got, ok := find(c.name)
		if ok != (c.want != "") || ok && got.Format(time.RFC3339) != c.want {
			t.Errorf("%s in %s: %s, %v, want %q", c.layout, c.name, got, ok, c.want)
		}
	}
	for _, bad := range []string{
		"", "web", "%Y", "%Y-%m", "%Y%m%d%M", "%Y%m%d%H%S", "%Y%m%d%Y", "%s%Y", "%s%H", "%Y%m%d%", "%Y%m%d%q", "%m%d%s", strings.Repeat("x", 300) + "%s",
	} {
		if _, err := parseLayout(bad); !errors.Is(err, ErrLayout) {
			t.Errorf("layout %q: %v", bad, err)
		}
	}
}

func FuzzLayout(f *testing.F) {
	f.Add("web-%Y-%m-%d", "web-2019-01-01.raw")
	f.Add("*%s*", "1")
	f.Add("[%Y](%m)%d\\", "x")
	f.Fuzz(func(t *testing.T, layout, name string) {
		find, err := parseLayout(layout)
		if err != nil {
			return
		}
		if at, ok := find(name); ok && (at.Year() < 0 || at.Year() > 9999) {
			t.Errorf("%q in %q: %s", layout, name, at)
		}
	})
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	day := func(n int) time.Time { return time.Date(2020, 1, n, 12, 0, 0, 0, time.UTC) }
	// The names are in another order than the times of writing.
	for name, at := range map[string]time.Time{
		"c-2020-01-01.raw": day(9), "a-2020-01-03.qcow2": day(8), "b-2020-01-02.vmdk": day(7),
		"b-2020-01-02-flat.vmdk": day(7), "d-2020-01-04-s001.vmdk": day(1), "notes.txt": day(1), ".hidden.raw": day(1), "undated.raw": day(6),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.raw"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "notes.txt"), filepath.Join(dir, "link.raw")); err != nil {
		t.Fatal(err)
	}
	names := func(items []Item) (out []string) {
		for _, i := range items {
			out = append(out, filepath.Base(i.Images[0].Path)[:1])
		}
		return out
	}
	items, other, err := Folder{Dir: dir, Disk: "vda", TimeFrom: "name:%Y-%m-%d"}.Items()
	if err != nil || !slices.Equal(names(items), []string{"c", "b", "a"}) || len(other) != 7 {
		t.Errorf("by name: %q, passed over %q, %v", names(items), other, err)
	}
	for _, from := range []string{"", "mtime"} {
		items, other, err = Folder{Dir: dir, Disk: "vda", TimeFrom: from}.Items()
		if err != nil || !slices.Equal(names(items), []string{"u", "b", "a", "c"}) || len(other) != 6 {
			t.Errorf("by time of writing: %q, passed over %q, %v", names(items), other, err)
		}
	}
	if !items[1].Time.Equal(day(7)) || items[0].Images[0].Disk != "vda" {
		t.Errorf("%+v", items[1])
	}
	if _, _, err := (Folder{Dir: dir, TimeFrom: "ctime"}).Items(); !errors.Is(err, ErrLayout) {
		t.Errorf("an unknown time: %v", err)
	}
	if err := os.Chtimes(filepath.Join(dir, "undated.raw"), day(9), day(9)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := (Folder{Dir: dir}).Items(); !errors.Is(err, ErrSameTime) || !strings.Contains(err.Error(), "c-2020-01-01.raw and undated.raw: are of the same time") {
		t.Errorf("two of one time: %v", err)
	}
	if _, _, err := (Folder{Dir: dir + ".missing"}).Items(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// TestFormatComesFromTheName: never from the content.
func TestFormatComesFromTheName(t *testing.T) {
	for _, c := range []struct {
		path, format, want string
	}{
		{"/a/x.raw", "", "/a/x.raw"},
		{"/a/x.img", "", "/a/x.img"},
		{"/a/x.img", "raw", "file:///a/x.img?format=raw"},
		{"/a/x.img", "qcow2", "file:///a/x.img?backing=%2Fb&format=qcow2"},
		{"/a/x y.QCOW2", "", "file:///a/x%20y.QCOW2?backing=%2Fb&format=qcow2"},
		{"/a/x.vhd", "", "file:///a/x.vhd?backing=%2Fb&format=vpc"},
		{"/a/x", "", ""},
		{"/a/x.ova", "", ""},
	} {
		got, err := Image{Path: c.path, Format: c.format, Backing: []string{"/b"}}.Spec()
		if got != c.want || (err == nil) != (c.want != "") || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%s as %q: %q, %v", c.path, c.format, got, err)
		}
	}
}
