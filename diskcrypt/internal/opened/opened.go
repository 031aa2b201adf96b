// Package opened is a volume whose key is known, over its view: what the
// formats have in common once they opened one. Its invariant: keys are not wiped
// under a read, and nothing is read after they were.
package opened

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/envelope"
)

var errClosed = errors.New("it is closed")

// Volume implements diskcrypt.Opened. Its fields are set before it is used.
type Volume struct {
	Format    string // for errors
	ID        string // of the protector
	Check     string // that the key passed
	Container string // its id, in KeyMAC; "" = the format has none
	View      *plainview.View
	Key       []byte // the volume key, which Close wipes
	Wipe      func() // wipes whatever else holds keys; nil = nothing does

	mu     sync.RWMutex
	closed bool
}

var _ diskcrypt.Opened = (*Volume)(nil)

// Size is the length of the plaintext in bytes.
func (v *Volume) Size() int64 { return v.View.Size() }

// Protector is the id of what was opened.
func (v *Volume) Protector() string { return v.ID }

// KeyCheck names the check that the key passed.
func (v *Volume) KeyCheck() string { return v.Check }

// KeyMAC is that of docs/spec/fingerprints.md.
func (v *Volume) KeyMAC(key []byte) []byte {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return diskcrypt.KeyMAC(key, v.Container, v.Key)
}

// ReadAt gives plaintext; large reads are decrypted in parallel.
func (v *Volume) ReadAt(p []byte, off int64) (n int, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		err = errClosed
	} else {
		n, err = v.View.ReadAt(p, off)
	}
	if n < len(p) {
		clear(p[n:]) // it may hold what was not decrypted
	}
	if err != nil && err != io.EOF { //nolint:errorlint // io.ReaderAt's own value
		err = fmt.Errorf("read %s volume: %w", v.Format, err)
	}
	return n, err
}

// Close wipes the keys.
func (v *Volume) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	envelope.Wipe(v.Key)
	if v.Wipe != nil && !v.closed {
		v.Wipe()
	}
	v.closed = true
	return nil
}
