// Package mapcache keeps parts of a remote store's objects in a local folder:
// map pages in the windows in which the repository reads them, the headers of
// segments, entries of machine logs and manifests. What is kept is sealed, as it
// lies in the store.
//
// It is not a replica, and no proof that the store still has anything: Stat,
// List, Delete and all that fails is the remote store's own answer, always.
// What is absent is never remembered. Whoever checks the store itself (a
// verification, a scrub) must not read through a cache: Under gives the store
// beneath, and store.Uncached marks a context whose reads go there.
//
// Its invariant: a key of a kind that is kept never names two contents (the
// repository draws names anew and modifies nothing), so an entry cannot be
// stale. It may outlive its object, which is harmless as nobody concludes from
// a read that an object is still there: they ask Stat or List. Whatever is
// wrong with an entry (damaged, cut off, another's) makes it a miss, never an error.
package mapcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"

	"github.com/lockstep-backup/lockstep/store"
)

const (
	// Window is the unit in which map objects are kept, the repository's own.
	Window = 256 << 10
	// headerSize bounds the reads of an object's head that are taken for its header.
	headerSize = 4096

	// DefaultMaxBytes is what a cache may take of the disk if nothing else is said.
	DefaultMaxBytes = 2 << 30
)

// Options of a cache; the zero value is right for production.
type Options struct {
	// MaxBytes bounds the folder, in bytes; 0: DefaultMaxBytes. Each process
	// that uses the folder may pass it by a sixteenth for a moment.
	MaxBytes int64
	// Log is told when the cache cannot be written; nil: nobody.
	Log *slog.Logger
}

// Counts says what the cache was good for since it was opened.
type Counts struct {
	Hits   int64 // reads answered without the store beneath
	Misses int64 // reads that could have been
}

// Store is a store with a cache before it. Use Open.
type Store struct {
	under        store.Store
	folder       *folder
	hits, misses atomic.Int64
}

var _ store.Store = (*Store)(nil)

// Open puts a cache in dir before under. The folder is made if it is absent; one
// that others may read or write is refused. Several stores and several
// processes may share it.
func Open(under store.Store, dir string, o Options) (*Store, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxBytes < minBytes {
		return nil, fmt.Errorf("open store cache: %d bytes are too few to keep anything (hint: at least %d)", o.MaxBytes, minBytes)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f, err := openFolder(dir, o)
	if err != nil {
		return nil, fmt.Errorf("open store cache: %w", err)
	}
	return &Store{under: under, folder: f}, nil
}

// Close lets go of the folder, not of the store beneath.
func (s *Store) Close() error { return s.folder.close() }

// Under is the store beneath, for those who must see it as it is.
func (s *Store) Under() store.Store { return s.under }

// Counts tells how the cache fared.
func (s *Store) Counts() Counts { return Counts{Hits: s.hits.Load(), Misses: s.misses.Load()} }

// Forget drops what is kept of an object: what a reader does who cannot
// authenticate it, before it reads again.
func (s *Store) Forget(key string) { s.folder.forget(s.object(key)) }

// Location implements store.Store.
func (s *Store) Location() string { return s.under.Location() }

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	return s.under.Stat(ctx, key)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return s.under.List(ctx, prefix, fn)
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := s.under.Delete(ctx, key)
	if kindOf(key) != kindNone {
		s.Forget(key)
	}
	return err
}

// Put implements store.Store. A small object that is kept when read is kept
// from here on.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := s.under.Put(ctx, key, data); err != nil {
		return err
	}
	switch k := kindOf(key); {
	case k == kindMap:
		for n := int64(0); n*Window < int64(len(data)); n++ {
			p := data[n*Window : min((n+1)*Window, int64(len(data)))]
			s.folder.keep(s.object(key), n, p, (n+1)*Window >= int64(len(data)))
		}
	case k == kindSmall && len(data) <= Window:
		s.folder.keep(s.object(key), 0, data, true)
	}
	return nil
}

// Create implements store.Store. A map object is kept from its commit on: the
// next backup begins by reading it.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := s.under.Create(ctx, key)
	if err != nil || kindOf(key) != kindMap {
		return w, err
	}
	return &writer{Writer: w, pending: s.folder.begin(s.object(key))}, nil
}

// kind says how much of an object is kept.
type kind int

const (
	kindNone   kind = iota
	kindMap         // all of it, by windows
	kindHeader      // its first page
	kindSmall       // all of it, if it fits one window
)

// kindOf leaves out what may be replaced by another of the same name (config,
// keys, trust: they are few, and decide who may read), and what must come from
// the store when it is needed at all: header copies, sidecars.
func kindOf(key string) kind {
	switch first, _, _ := strings.Cut(key, "/"); first {
	case "map":
		return kindMap
	case "seg":
		return kindHeader
	case "log", "points":
		return kindSmall
	}
	return kindNone
}

// want is the part of an object that is fetched and kept for a read.
type want struct {
	window int64
	off    int64 // of the read
	length int   // to be fetched from off on
}

// wanted says what is kept for a read of n bytes at off, and whether anything is.
func wanted(key string, off int64, n int) (want, bool) {
	if off < 0 || n == 0 {
		return want{}, false
	}
	switch kindOf(key) {
	case kindMap:
		if off%Window == 0 && n == Window {
			return want{off / Window, off, Window}, true
		}
		// Pages are wanted next, and a request costs more than a window's bytes.
		return want{0, 0, Window}, off == 0 && n <= headerSize
	case kindHeader:
		return want{0, 0, headerSize}, off == 0 && n <= headerSize
	case kindSmall:
		return want{0, 0, n}, off == 0 && n <= Window
	}
	return want{}, false
}

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	w, ok := wanted(key, off, len(p))
	if !ok || store.IsUncached(ctx) || store.CheckKey(key) != nil {
		return s.under.ReadRange(ctx, key, off, p)
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	object := s.object(key)
	if data, end, ok := s.folder.find(object, w.window); ok && (len(data) >= len(p) || end) {
		s.hits.Add(1)
		return answer(p, data, end)
	}
	s.misses.Add(1)
	q := p
	if w.length > len(p) {
		q = make([]byte, w.length)
	}
	n, err := s.under.ReadRange(ctx, key, w.off, q)
	end := errors.Is(err, io.EOF)
	if err != nil && !end {
		return 0, err
	}
	if n < len(q) && !end {
		return 0, fmt.Errorf("read %s: %d of %d bytes: %w", key, n, len(q), io.ErrUnexpectedEOF)
	}
	if n > 0 || w.window == 0 { // of what lies behind the end there is nothing to keep
		s.folder.keep(object, w.window, q[:n], end)
	}
	return answer(p, q[:n], end)
}

// answer gives the read what it asked for of data, which begins where it does.
// end: the object ends with data.
func answer(p, data []byte, end bool) (int, error) {
	n := copy(p, data)
	if n < len(p) || end && n == len(data) {
		return n, io.EOF
	}
	return n, nil
}

// object names an object among those of all stores.
func (s *Store) object(key string) string { return s.under.Location() + "\x00" + key }

type writer struct {
	store.Writer
	pending *pending
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.pending.write(p[:n])
	if err != nil {
		w.pending.drop()
	}
	return n, err
}

func (w *writer) Commit() error {
	if err := w.Writer.Commit(); err != nil {
		w.pending.drop()
		return err
	}
	w.pending.publish()
	return nil
}

func (w *writer) Abort() error {
	w.pending.drop()
	return w.Writer.Abort()
}
