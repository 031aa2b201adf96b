package opened

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
)

// broken gives some bytes and then an error.
type broken struct{ n int }

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	n := max(min(len(p), b.n-int(off)), 0)
	for i := range n {
		p[i] = 'c'
	}
	if n < len(p) {
		return n, errors.New("the disk is gone")
	}
	return n, nil
}

func TestClose(t *testing.T) {
	wiped := 0
	plain := []byte("plaintext of a volume that is not encrypted at all, for once")
	v := &Volume{
		Format: "test", Key: []byte("key"), Wipe: func() { wiped++ },
		View: plainview.New(bytes.NewReader(plain), int64(len(plain)), plainview.Runs{{Length: int64(len(plain)), Kind: plainview.Plain}}),
	}
	got := make([]byte, len(plain)+5)
	if n, err := v.ReadAt(got, 0); n != len(plain) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], plain) {
		t.Fatalf("%d, %v", n, err)
	}
	for range 2 {
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if wiped != 1 || !bytes.Equal(v.Key, make([]byte, 3)) {
		t.Errorf("wiped %d times, the key is %q", wiped, v.Key)
	}
	if n, err := v.ReadAt(got, 0); n != 0 || !errors.Is(err, errClosed) {
		t.Errorf("read after it was closed: %d, %v", n, err)
	}
}

// What could not be read is not given out half done.
func TestFailedRead(t *testing.T) {
	const size = 8192
	v := &Volume{Format: "test", View: plainview.New(broken{1000}, size, plainview.Runs{{Length: size, Kind: plainview.Plain}})}
	got := bytes.Repeat([]byte{'x'}, size)
	n, err := v.ReadAt(got, 0)
	if err == nil || n >= size {
		t.Fatalf("%d, %v", n, err)
	}
	if !bytes.Equal(got[n:], make([]byte, size-n)) {
		t.Error("something is left behind what was read")
	}
}
