package nbd_test

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/nbd"
	"github.com/lockstep-backup/lockstep/source/sourcetest"
)

// serve starts a server that makes the socket, until the test ends.
func serve(t *testing.T, socket string, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(judge.Tool(t, name), args...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			break
		}
		select {
		case <-ended:
			t.Fatalf("%s: %s", name, said.String())
		case <-time.After(2 * time.Millisecond):
		}
	}
	judge.Decided(t, name)
}

func write(t *testing.T, dir string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Zeroes stay holes, for block status to have something to say.
	for off := 0; off < len(content); off += disk.PageSize {
		p := content[off:min(off+disk.PageSize, len(content))]
		if strings.Trim(string(p), "\x00") == "" {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		t.Fatal(err)
	}
	return path
}

// shortDir is a folder whose path is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ls-nbd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

const quiet = "&consistency=crash-consistent"

func TestExportsAreSources(t *testing.T) {
	t.Run("qemu-nbd", func(t *testing.T) {
		judge.Tool(t, "qemu-nbd")
		sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
			dir := shortDir(t)
			socket := filepath.Join(dir, "s")
			serve(t, socket, "qemu-nbd", "--read-only", "--persistent", "--shared=8", "--export-name=vda", "--format=raw", "--socket="+socket, write(t, dir, content))
			return sourcetest.Source{
				Opener: nbd.Opener{}, Spec: "nbd+unix:///vda?socket=" + socket + quiet,
				MissingSpec: "nbd+unix:///vdb?socket=" + socket + quiet,
			}
		})
	})
	t.Run("nbdkit", func(t *testing.T) {
		judge.Tool(t, "nbdkit")
		sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
			dir := shortDir(t)
			socket := filepath.Join(dir, "s")
			serve(t, socket, "nbdkit", "--foreground", "--readonly", "--unix", socket, "file", write(t, dir, content))
			return sourcetest.Source{
				Opener: nbd.Opener{}, Spec: "nbd+unix:///?socket=" + socket + quiet,
				MissingSpec: "nbd+unix:///?socket=" + socket + ".missing" + quiet,
			}
		})
	})
}

// TestHolesAreNotRead: the server says where the data is.
func TestHolesAreNotRead(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	content := make([]byte, 64<<20)
	copy(content[32<<20:], "data")
	serve(t, socket, "qemu-nbd", "--read-only", "--persistent", "--format=raw", "--socket="+socket, write(t, dir, content))
	d, err := nbd.Opener{}.Open(t.Context(), "nbd+unix:///?socket="+socket+quiet, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := d.NextData(0)
	if err != nil || r.Offset == 0 || r.Offset > 32<<20 || r.End() <= 32<<20 || r.Length > 1<<20 {
		t.Errorf("NextData(0) = %+v, %v", r, err)
	}
	if r, err := d.NextData(r.End()); err != io.EOF {
		t.Errorf("behind it: %+v, %v", r, err)
	}
}

// TestBadRangesAreNamed: an error of the server's disk is one of a range.
func TestBadRangesAreNamed(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	judge.Tool(t, "nbdkit")
	serve(t, socket, "nbdkit", "--foreground", "--unix", socket, "--filter=error", "memory", "1M", "error=EIO", "error-pread-rate=100%")
	d, err := nbd.Opener{}.Open(t.Context(), "nbd+unix:///?socket="+socket+quiet, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	_, err = d.ReadAt(make([]byte, 4096), 8192)
	var u *source.UnreadableError
	if !errors.As(err, &u) || u.Range != (disk.Range{Offset: 8192, Length: 4096}) {
		t.Errorf("%v", err)
	}
	if err := d.Check(); err != nil {
		t.Errorf("a bad sector is no reason to call the source gone: %v", err)
	}
}

// TestServerGoesAway: what cannot be read any more is not a bad sector.
func TestServerGoesAway(t *testing.T) {
	dir := shortDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	back := filepath.Join(dir, "s")
	serve(t, back, "qemu-nbd", "--read-only", "--persistent", "--format=raw", "--socket="+back, write(t, dir, make([]byte, 1<<20)))
	cut := make(chan func(), 1)
	go func() {
		in, err := l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("unix", back)
		if err != nil {
			_ = in.Close()
			return
		}
		go func() { _, _ = io.Copy(in, out) }()
		cut <- func() { _, _ = in.Close(), out.Close() }
		_, _ = io.Copy(out, in)
	}()
	d, err := nbd.Opener{}.Open(t.Context(), "nbd+unix:///?socket="+l.Addr().String()+quiet, source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	(<-cut)()
	if _, err := d.ReadAt(make([]byte, 4096), 0); err == nil || errors.Is(err, io.EOF) || source.IsUnreadable(err) {
		t.Errorf("ReadAt: %v", err)
	}
	if _, err := d.NextData(0); err == nil || err == io.EOF {
		t.Errorf("NextData: %v", err)
	}
	if err := d.Check(); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("Check: %v", err)
	}
}

func TestConsistencyIsWhatWasSaid(t *testing.T) {
	dir := shortDir(t)
	socket := filepath.Join(dir, "s")
	serve(t, socket, "qemu-nbd", "--read-only", "--persistent", "--shared=8", "--format=raw", "--socket="+socket, write(t, dir, make([]byte, 1<<20)))
	base := "nbd+unix:///?socket=" + socket
	for _, c := range []struct {
		query string
		live  bool
		want  source.Consistency // "": refused
	}{
		{"", false, ""},
		{"", true, source.ConsistencyNone},
		{"&consistency=none", false, source.ConsistencyNone},
		{"&consistency=crash-consistent", false, source.ConsistencyCrash},
		{"&consistency=file-system-consistent", false, source.ConsistencyFileSystem},
		{"&consistency=application-consistent", false, source.ConsistencyApplication},
		{"&consistency=application-consistent", true, source.ConsistencyNone},
	} {
		d, err := nbd.Opener{}.Open(t.Context(), base+c.query, source.Options{AllowLive: c.live})
		if c.want == "" {
			if !errors.Is(err, source.ErrInUse) || !strings.Contains(err.Error(), "consistency=crash-consistent") {
				t.Errorf("%q: %v", c.query, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%q: %v", c.query, err)
		}
		if d.Consistency() != c.want {
			t.Errorf("%q, live %v: %s, want %s", c.query, c.live, d.Consistency(), c.want)
		}
		_ = d.Close()
	}
}

func TestURLs(t *testing.T) {
	for spec, want := range map[string]nbd.Address{
		"nbd://host/vda":                                      {Network: "tcp", Address: "host:10809", Export: "vda"},
		"nbd://[::1]:10900/a/b":                               {Network: "tcp", Address: "[::1]:10900", Export: "a/b"},
		"nbd://host":                                          {Network: "tcp", Address: "host:10809"},
		"NBD://host/%20x":                                     {Network: "tcp", Address: "host:10809", Export: " x"},
		"nbds://host/v?tls-certificates=/c":                   {Network: "tcp", Address: "host:10809", Export: "v", TLS: true, Certificates: "/c"},
		"nbd+unix:///v?socket=/run/a%20b":                     {Network: "unix", Address: "/run/a b", Export: "v"},
		"nbd+unix:///?socket=/s&consistency=crash-consistent": {Network: "unix", Address: "/s", Consistency: source.ConsistencyCrash},
	} {
		if got, err := nbd.ParseURL(spec); err != nil || got != want {
			t.Errorf("%s: %+v, %v", spec, got, err)
		}
		if !nbd.IsURL(spec) {
			t.Errorf("%s is said to be no nbd url", spec)
		}
	}
	for _, spec := range []string{
		"nbd:host:10809", "nbd://", "nbd:///vda", "nbd://user:hunter2@host/x", "nbd+unix:///v", "nbd+unix://host/v?socket=/s",
		"nbd://host/v?socket=/s", "nbd://host/v?consistency=perfect", "nbd://host/v?x=hunter2", "nbds://host/v", "nbd://host/#hunter2",
		"nbd+unix:///?socket=/a&socket=/b", "nbd://ho st/", "http://host/", "nbd://%zz", "",
	} {
		_, err := nbd.ParseURL(spec)
		if !errors.Is(err, source.ErrUnsupported) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", spec, err)
		}
	}
	for _, spec := range []string{"nbd", "/nbd://x/y", "file:///x", "nbd:x"} {
		if nbd.IsURL(spec) {
			t.Errorf("%s is said to be an nbd url", spec)
		}
	}
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"nbd://host/v", "nbd+unix:///?socket=/s", "nbds://h/v?tls-certificates=/c", "nbd://[::1]:1/%2f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		a, err := nbd.ParseURL(spec)
		if err != nil {
			return
		}
		if a.Address == "" || a.Network != "tcp" && a.Network != "unix" || a.TLS && a.Certificates == "" {
			t.Errorf("%q: %+v", spec, a)
		}
	})
}
