// Package store is the contract of the dumb object store beneath a
// repository. A store is untrusted: it may lose, keep, show or corrupt what it
// likes, and the repository must notice; but what Put or Commit has
// acknowledged is durable, and creating an object that exists fails.
package store

import (
	"bytes"
	"context"
	"errors"
	"io"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrNotExist = errors.New("object does not exist")
	ErrExist    = errors.New("object exists already")
	ErrFull     = errors.New("store is full")
	ErrKey      = errors.New("object key is not valid")
)

// Info describes an object.
type Info struct {
	Key  string
	Size int64
}

// Store keeps immutable objects. Keys are slash-separated segments of
// [a-z0-9._-], none of them empty, "." or ".."; at most 512 bytes in all.
// All methods are safe for concurrent use.
type Store interface {
	// Put creates an object whole and durable, or fails with ErrExist. It never overwrites.
	Put(ctx context.Context, key string, data []byte) error
	// Create starts an object of unknown size; nothing is visible before Commit.
	Create(ctx context.Context, key string) (Writer, error)
	// ReadRange reads len(p) bytes at off. At the end of the object it returns
	// what there is and io.EOF. Where p, off and len(p) are multiples of 4096 a
	// local store may read around the page cache.
	ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error)
	Stat(ctx context.Context, key string) (Info, error)
	// List calls fn for every object below prefix (a whole number of segments,
	// ending in "/", or empty) in ascending byte order of the keys.
	List(ctx context.Context, prefix string, fn func(Info) error) error
	// Delete removes an object durably; ErrNotExist if there is none.
	Delete(ctx context.Context, key string) error
	// Location is the store's URL, for people; it holds no credentials.
	Location() string
}

// Writer is an object being written. Writes of buffers aligned to 4096 in
// address and length go around the page cache where the store can.
type Writer interface {
	io.Writer
	// Commit makes the object durable and visible, or fails with ErrExist.
	Commit() error
	// Abort drops what was written; after Commit it does nothing.
	Abort() error
}

// MaxSmallObject bounds what GetAll reads: no object other than a segment or map is larger.
const MaxSmallObject = 64 << 20

// firstRead is what GetAll asks for before it knows an object's size.
const firstRead = 64 << 10

// GetAll reads a whole object of at most max bytes. Nearly all that it is for
// take one request; those larger than 64 KiB take three.
func GetAll(ctx context.Context, s Store, key string, max int64) ([]byte, error) {
	p := make([]byte, min(firstRead, max+1))
	n, err := s.ReadRange(ctx, key, 0, p)
	if errors.Is(err, io.EOF) && int64(n) <= max {
		return bytes.Clone(p[:n]), nil // the rest of p would stay with it
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	info, err := s.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if info.Size > max {
		return nil, &TooLargeError{Key: key, Size: info.Size, Max: max}
	}
	if info.Size < int64(n) { // objects never shrink
		return nil, io.ErrUnexpectedEOF
	}
	all := make([]byte, info.Size)
	copy(all, p[:n])
	m, err := s.ReadRange(ctx, key, int64(n), all[n:])
	if err != nil && !(errors.Is(err, io.EOF) && int64(n+m) == info.Size) {
		return nil, err
	}
	return all[:n+m], nil
}

// TooLargeError says that an object is larger than its kind may be.
type TooLargeError struct {
	Key       string
	Size, Max int64
}

func (e *TooLargeError) Error() string {
	return "read " + e.Key + ": object is larger than its kind may be"
}
