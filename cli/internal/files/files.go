// Package files reads secrets from files and writes files that hold what nobody
// else may see. It never writes over a file, and leaves no copy of a secret
// behind in memory that it gave up.
package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// MaxSecret bounds a secret; it is also the longest key file that
// cryptsetup takes.
const MaxSecret = 8 << 20

// ReadSecret reads all of r, or its first line without the newline, and leaves
// no copy behind in memory that it gave up.
func ReadSecret(r io.Reader, line bool) ([]byte, error) {
	buf := make([]byte, 0, 4<<10)
	for {
		if len(buf) == cap(buf) {
			if cap(buf) > MaxSecret {
				clear(buf)
				return nil, fmt.Errorf("read the secret: it is longer than %d bytes", MaxSecret)
			}
			grown := make([]byte, len(buf), 2*cap(buf))
			copy(grown, buf)
			clear(buf)
			buf = grown
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		start := len(buf)
		buf = buf[:start+n]
		if line {
			if i := bytes.IndexByte(buf[start:], '\n'); i >= 0 {
				clear(buf[start+i:])
				return limitSecret(buf[:start+i])
			}
		}
		if errors.Is(err, io.EOF) {
			return limitSecret(buf)
		}
		if err != nil {
			clear(buf)
			return nil, fmt.Errorf("read the secret: %w", err)
		}
	}
}

func limitSecret(b []byte) ([]byte, error) {
	if len(b) > MaxSecret {
		clear(b)
		return nil, fmt.Errorf("read the secret: it is longer than %d bytes", MaxSecret)
	}
	return b, nil
}

// CreateNew makes a file with mode 0600 that must not exist, lets fill write
// it, and makes it durable. What could not be finished is removed.
func CreateNew(path string, fill func(io.Writer) error) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if d, derr := os.Open(filepath.Dir(path)); derr == nil {
		_ = d.Sync() // some systems cannot; the file itself is down
		_ = d.Close()
	}
	return nil
}

// CheckNew tells whether CreateNew could make a file, and leaves none.
func CheckNew(path string) error {
	if err := CreateNew(path, func(io.Writer) error { return nil }); err != nil {
		return err // what is there is somebody's
	}
	return os.Remove(path)
}

// Interruptible calls fn, which may block on input for ever, and gives up on it
// when ctx ends; what fn reads later is wiped.
func Interruptible(ctx context.Context, fn func() ([]byte, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	ch := make(chan result, 1)
	go func() {
		b, err := fn()
		ch <- result{b, err}
	}()
	select {
	case r := <-ch:
		return r.b, r.err
	case <-ctx.Done():
		go func() { clear((<-ch).b) }()
		return nil, ctx.Err()
	}
}
