package nbdlisten

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	file, dead, live := filepath.Join(dir, "file"), filepath.Join(dir, "dead"), filepath.Join(dir, "live")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	other, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, k := range []struct {
		o    Options
		want error
	}{
		{Options{Address: "unix:" + filepath.Join(dir, "new")}, nil},
		{Options{Address: "unix:" + dead}, nil},
		{Options{Address: "unix:" + live}, ErrInUse},
		{Options{Address: "unix:" + file}, ErrNoSocket},
		{Options{Address: "unix:"}, ErrAddress},
		{Options{Address: "/some/path"}, ErrAddress},
		{Options{Address: "127.0.0.1:0"}, nil},
		{Options{Address: "localhost:0"}, nil},
		{Options{Address: "0.0.0.0:0"}, ErrNoTLS},
		{Options{Address: ":0"}, ErrNoTLS},
		{Options{Address: "0.0.0.0:0", Insecure: true}, nil},
		{Options{Address: "127.0.0.1:0", Certificates: dir}, os.ErrNotExist},
	} {
		l, err := Open(t.Context(), k.o)
		if !errors.Is(err, k.want) {
			t.Errorf("%+v: %v, want %v", k.o, err, k.want)
		}
		if err == nil && k.want == nil {
			if err := l.Close(); err != nil {
				t.Errorf("%+v: close: %v", k.o, err)
			}
		}
	}
}

func TestSocketIsPrivateAndGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b")
	l, err := Open(t.Context(), Options{Address: "unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if got := l.URI("vda"); got != "nbd+unix:///vda?socket="+filepath.Dir(path)+"/a%20b" {
		t.Error(got)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
