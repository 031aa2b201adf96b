// Package damage tells stored data that cannot be read as it was written from
// a store that fails. Its errors are the repository's.
package damage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// The repository's errors of these names.
var (
	ErrNotFound  = errors.New("not in the repository")
	ErrDamaged   = errors.New("damaged data")
	ErrUntrusted = errors.New("signature is not of a trusted key")
	ErrFormat    = errors.New("repository format is not known")
)

// Error reports stored data that cannot be read as it was written.
// errors.Is(err, ErrDamaged) holds.
type Error struct {
	Object  string     // key in the store
	Machine string     // machine id, where known
	Disk    string     // disk id, where known
	Range   disk.Range // of the disk, where known
	Err     error
}

func (e *Error) Error() string {
	if e.Disk != "" && e.Range.Length > 0 {
		return fmt.Sprintf("read %s: disk %s at %d, %d bytes: %v", e.Object, e.Disk, e.Range.Offset, e.Range.Length, e.Err)
	}
	return fmt.Sprintf("read %s: %v", e.Object, e.Err)
}

// Unwrap: an object of a later version is not readable here either, but it is
// ErrFormat that says what to do about it.
func (e *Error) Unwrap() []error {
	for _, unknown := range []error{format.ErrVersion, envelope.ErrFrameVersion, envelope.ErrFrameFeature} {
		if errors.Is(e.Err, unknown) {
			return []error{ErrDamaged, ErrFormat, e.Err}
		}
	}
	return []error{ErrDamaged, e.Err}
}

// FromStore tells a missing object (ErrNotFound) from damage and from a store
// that fails.
func FromStore(key string, err error) error {
	var large *store.TooLargeError
	switch {
	case errors.Is(err, store.ErrNotExist):
		return fmt.Errorf("read %s: %w: %w", key, ErrNotFound, err)
	case errors.As(err, &large), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.EIO): // a bad sector of the store's disk: the object is damaged, the store is there
		return &Error{Object: key, Err: err}
	}
	return fmt.Errorf("read %s: %w", key, err)
}

// Reader is what reads objects: a store, or a view of one.
type Reader interface {
	ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error)
}

// ReadChecked is ReadFull of what check accepts; it reads once more where check
// refuses, for a bit may have flipped on the way, or in a cache.
func ReadChecked(ctx context.Context, st Reader, key string, off int64, p []byte, check func([]byte) error) error {
	for again := false; ; again = true {
		if err := ReadFull(ctx, st, key, off, p); err != nil {
			return err
		}
		err := check(p)
		if err == nil {
			return nil
		}
		if again {
			return &Error{Object: key, Err: err}
		}
		store.Forget(st, key)
	}
}

// ReadFull fills p from an object that something refers to: if it is missing
// or ends before, that is damage.
func ReadFull(ctx context.Context, st Reader, key string, off int64, p []byte) error {
	n, err := st.ReadRange(ctx, key, off, p)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	if err = FromStore(key, err); errors.Is(err, ErrNotFound) {
		return &Error{Object: key, Err: err}
	}
	return err
}
