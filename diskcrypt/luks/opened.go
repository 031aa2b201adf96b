package luks

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/envelope"
)

// opened is a volume whose keys are known.
type opened struct {
	id       string
	keyCheck string
	uuid     string
	bound    bool

	mu   sync.RWMutex // a read holds it: keys are not wiped under one
	view *plainview.View
	size int64
	key  []byte // the volume key
	used []any  // what holds keys
}

var _ diskcrypt.Opened = (*opened)(nil)

func (o *opened) Size() int64       { return o.size }
func (o *opened) Protector() string { return o.id }
func (o *opened) KeyCheck() string  { return o.keyCheck }

// BoundToData reports that the volume cannot be read over other data that have
// the same header: what was read of the data when it was opened decides what
// lies where.
func (o *opened) BoundToData() bool { return o.bound }

func (o *opened) KeyMAC(key []byte) []byte {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return diskcrypt.KeyMAC(key, o.uuid, o.key)
}

func (o *opened) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	envelope.Wipe(o.key)
	for _, c := range o.used {
		if w, ok := c.(interface{ Wipe() }); ok {
			w.Wipe()
		}
	}
	o.view, o.used = nil, nil
	return nil
}

var errClosed = errors.New("read luks volume: it is closed")

// ReadAt gives plaintext. It is safe for concurrent use; large reads are
// decrypted in parallel.
func (o *opened) ReadAt(p []byte, off int64) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.view == nil {
		return 0, errClosed
	}
	n, err := o.view.ReadAt(p, off)
	if n < len(p) {
		clear(p[n:]) // it may hold what was not decrypted
	}
	if err != nil && err != io.EOF { //nolint:errorlint // io.ReaderAt's own value
		err = fmt.Errorf("read luks volume: %w", err)
	}
	return n, err
}
