package image

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/sourcetest"
)

func write(tb testing.TB, content []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk image.img")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func fileSource(t *testing.T, content []byte) sourcetest.Source {
	path := write(t, content)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	return sourcetest.Source{
		Opener:      Opener{},
		Spec:        path,
		MissingSpec: path + ".missing",
		Resize:      func(size int64) { must(os.Truncate(path, size)) },
		Remove:      func() { must(os.Remove(path)) },
		Replace: func(content []byte) {
			must(os.WriteFile(path+".new", content, 0o600))
			must(os.Rename(path+".new", path))
		},
	}
}

func TestFilesAreSources(t *testing.T) {
	sourcetest.Run(t, fileSource)
}

func TestFileURL(t *testing.T) {
	content := bytes.Repeat([]byte{7}, 1000)
	path := write(t, content)
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path)}
	for _, spec := range []string{u.String(), strings.Replace(u.String(), "file://", "file://localhost", 1), u.String() + "?format=raw"} {
		if runtime.GOOS == "windows" {
			t.Skip("the URL of this path has another form there")
		}
		d, err := Opener{}.Open(t.Context(), spec, source.Options{})
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		if d.Size() != 1000 {
			t.Errorf("%s: size %d", spec, d.Size())
		}
		_ = d.Close()
	}
	for _, spec := range []string{"", "nbd://host/disk", "file://otherhost" + path, "file://", "qemu+unix:///x", "file:///%zz", u.String() + "?format=qcow2", "a\x00b"} {
		if _, err := (Opener{}).Open(t.Context(), spec, source.Options{}); !errors.Is(err, source.ErrUnsupported) {
			t.Errorf("%q: %v, want ErrUnsupported", spec, err)
		}
	}
	if _, err := (Opener{}).Open(t.Context(), "https://user:hunter2@host/x", source.Options{}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error repeats the password: %v", err)
	}
}

func TestWhatIsNoDisk(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	if l, err := net.Listen("unix", socket); err == nil {
		defer l.Close()
	}
	for path, word := range map[string]string{
		dir:                          "a folder",
		socket:                       "a socket",
		"/dev/zero":                  "a character device",
		filepath.Join(write(t, nil)): "empty",
	} {
		if runtime.GOOS == "windows" && word != "a folder" && word != "empty" {
			continue
		}
		_, err := Opener{}.Open(t.Context(), path, source.Options{})
		if !errors.Is(err, source.ErrUnsupported) || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNoPermissionIsNotAbsence(t *testing.T) {
	err := openError("p", &fs.PathError{Op: "open", Path: "p", Err: fs.ErrPermission})
	if !errors.Is(err, fs.ErrPermission) || errors.Is(err, source.ErrNotFound) {
		t.Error(err)
	}
}

func TestContainersAreRefused(t *testing.T) {
	for _, c := range containers {
		content := bytes.Repeat([]byte{0xA5}, 100_000)
		at := c.at
		if at < 0 {
			at += int64(len(content))
		}
		copy(content[at:], c.mark)
		path := write(t, content)
		_, err := Opener{}.Open(t.Context(), path, source.Options{})
		if !errors.Is(err, source.ErrUnsupported) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s at %d: %v", c.name, c.at, err)
		}
		u := url.URL{Scheme: "file", Path: path, RawQuery: "format=raw"}
		if d, err := (Opener{}).Open(t.Context(), u.String(), source.Options{}); runtime.GOOS != "windows" && err != nil {
			t.Errorf("%s with format=raw: %v", c.name, err)
		} else if err == nil {
			_ = d.Close()
		}
		copy(content[at:], "xxxx")
		d, err := Opener{}.Open(t.Context(), write(t, content), source.Options{})
		if err != nil {
			t.Errorf("without the mark: %v", err)
		} else {
			_ = d.Close()
		}
	}
}

func TestTinyFiles(t *testing.T) {
	for _, n := range []int{1, 3, 511, 513, 4095, 4097} {
		content := bytes.Repeat([]byte{byte(n)}, n)
		d, err := Opener{}.Open(t.Context(), write(t, content), source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, n)
		if got, err := d.ReadAt(p, 0); got != n || err != nil || !bytes.Equal(p, content) {
			t.Errorf("%d bytes: %d, %v", n, got, err)
		}
		_ = d.Close()
	}
}
