// Package localdir keeps a store's objects as files below one folder, each at
// the path its key names.
//
// It is not a cache and does not lock anything: several processes, also on
// several hosts over a network file system, may use one folder at once. Its
// invariant: a name in the tree is a whole object whose content was synced
// before the name was made; a name is never given to other content.
package localdir

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

const (
	// tempFolder is not a segment of any key, so no object can lie in it.
	tempFolder = "~tmp"

	folderMode = 0o700
	fileMode   = 0o600
)

// Trace is told of every step of writing, in order: op is "mkdir", "create",
// "write", "write direct", "sync", "link", "rename", "unlink" or "sync folder", name is a path
// below the root. It is called from several goroutines.
type Trace func(op, name string)

// Options change how a store works; the zero value is right for production.
type Options struct {
	Trace Trace
	// Buffered keeps reading and writing in the page cache.
	Buffered bool
}

// Store is a folder. Its methods are safe for concurrent use.
type Store struct {
	path    string
	root    *os.Root
	options Options
	handles handleCache

	mu      sync.Mutex
	durable map[string]bool // folders whose names are known to be synced
}

var _ store.Store = (*Store)(nil)

// Create makes the folder, if it is absent, durably, and opens it.
func Create(location string, options Options) (*Store, error) {
	dir, err := pathOf(location)
	if err != nil {
		return nil, err
	}
	if err := makeRoot(dir); err != nil {
		return nil, fmt.Errorf("create store: %w", err)
	}
	return Open(location, options)
}

// Open opens an existing folder, given as a path or as a file:// URL. A
// missing one matches store.ErrNotExist.
func Open(location string, options Options) (*Store, error) {
	dir, err := pathOf(location)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w: %w", store.ErrNotExist, err)
		}
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{path: dir, root: root, options: options, durable: map[string]bool{".": true}}
	s.handles.init(s.openForReading)
	return s, nil
}

// Close lets go of the open files. The store must not be used afterwards.
func (s *Store) Close() error {
	s.handles.closeAll()
	return s.root.Close()
}

// Location is the folder as a file:// URL.
func (s *Store) Location() string {
	p := filepath.ToSlash(s.path)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p // a drive letter
	}
	return (&url.URL{Scheme: "file", Path: p}).String()
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	w, err := s.create(ctx, key)
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if _, err := w.Write(data); err != nil {
		_ = w.Abort()
		return fmt.Errorf("put %s: %w", key, err)
	}
	if err := w.commit(); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := s.create(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", key, err)
	}
	return w, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := check(ctx, key); err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	st, err := s.root.Lstat(filepath.FromSlash(key))
	if err == nil && !st.Mode().IsRegular() {
		err = store.ErrNotExist
	}
	if err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, classify(err))
	}
	return store.Info{Key: key, Size: st.Size()}, nil
}

// Delete implements store.Store. Folders stay, empty ones too: removing them
// would race with writers.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	name := filepath.FromSlash(key)
	st, err := s.root.Lstat(name)
	if err == nil && st.IsDir() {
		err = store.ErrNotExist // Remove would take an empty folder
	}
	if err == nil {
		s.trace("unlink", key)
		err = s.root.Remove(name)
	}
	s.handles.drop(key)
	if err == nil {
		err = s.syncFolder(path.Dir(key))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, classify(err))
	}
	return nil
}

// List implements store.Store. It holds the names of one folder per level in memory.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	folder := strings.TrimSuffix(prefix, "/")
	if folder == "" {
		folder = "."
	}
	return s.list(ctx, folder, prefix, fn)
}

func (s *Store) list(ctx context.Context, folder, prefix string, fn func(store.Info) error) error {
	names, err := s.sortedNames(folder)
	if err != nil {
		if err = classify(err); errors.Is(err, store.ErrNotExist) {
			return nil // no such prefix, or deleted meanwhile
		}
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if below, ok := strings.CutSuffix(name, "/"); ok {
			if len(prefix)+len(name) >= store.MaxKey {
				continue
			}
			if err := s.list(ctx, path.Join(folder, below), prefix+name, fn); err != nil {
				return err
			}
			continue
		}
		key := prefix + name
		st, err := s.root.Lstat(filepath.FromSlash(key))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !st.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", key, err)
		}
		if err := fn(store.Info{Key: key, Size: st.Size()}); err != nil {
			return err
		}
	}
	return nil
}

// sortedNames gives files, and folders with a slash behind them: only so does
// "a.b" come before "a/b", as it does in the order of keys. Names that are no
// segments ("lost+found", the temporary folder) are not ours.
func (s *Store) sortedNames(folder string) ([]string, error) {
	d, err := s.root.Open(filepath.FromSlash(folder))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var names []string
	for {
		entries, err := d.ReadDir(1024)
		for _, e := range entries {
			switch {
			case !store.IsSegment(e.Name()):
			case e.IsDir():
				names = append(names, e.Name()+"/")
			default:
				names = append(names, e.Name())
			}
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// CleanTemp removes temporary files that were last written longer than age
// ago: what killed writers left. Removing one that is still being written
// makes its Commit fail and harms nothing else.
func (s *Store) CleanTemp(ctx context.Context, age time.Duration) (removed int, err error) {
	d, err := s.root.Open(tempFolder)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("clean temporary files: %w", err)
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return 0, fmt.Errorf("clean temporary files: %w", err)
	}
	before := time.Now().Add(-age)
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return removed, fmt.Errorf("clean temporary files: %w", err)
		}
		st, err := e.Info()
		if err != nil || !st.Mode().IsRegular() || st.ModTime().After(before) {
			continue
		}
		if err := s.unlinkTemp(path.Join(tempFolder, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("clean temporary files: %w", err)
		}
		removed++
	}
	return removed, nil
}

func (s *Store) trace(op, name string) {
	if s.options.Trace != nil {
		s.options.Trace(op, name)
	}
}

// makeFolder makes a folder and its parents, and syncs the names it makes. A
// folder that exists is synced once per process as well: whoever made it may
// not have come to that yet.
func (s *Store) makeFolder(folder string) error {
	s.mu.Lock()
	known := s.durable[folder]
	s.mu.Unlock()
	if known {
		return nil
	}
	parent := path.Dir(folder)
	if err := s.makeFolder(parent); err != nil {
		return err
	}
	s.trace("mkdir", folder)
	if err := s.root.Mkdir(filepath.FromSlash(folder), folderMode); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if st, err := s.root.Stat(filepath.FromSlash(folder)); err != nil || !st.IsDir() {
			return fmt.Errorf("%w: %q is an object, no folder", store.ErrKey, folder)
		}
	}
	if err := s.syncFolder(parent); err != nil {
		return err
	}
	s.mu.Lock()
	s.durable[folder] = true
	s.mu.Unlock()
	return nil
}

func (s *Store) forgetFolders() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable = map[string]bool{".": true}
}

func (s *Store) syncFolder(folder string) error {
	s.trace("sync folder", folder)
	d, err := s.root.Open(filepath.FromSlash(folder))
	if err != nil {
		return err
	}
	defer d.Close()
	return syncFolderFile(d)
}

func (s *Store) unlinkTemp(name string) error {
	s.trace("unlink", name)
	return s.root.Remove(filepath.FromSlash(name))
}

func newTempName() string { return path.Join(tempFolder, strings.ToLower(rand.Text())) }

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckKey(key)
}

// classify gives an error of the operating system the store's meaning.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case isNotFolder(err), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", store.ErrNotExist, err)
	case isFull(err):
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return err
}

func pathOf(location string) (string, error) {
	dir := location
	if scheme, _, ok := strings.Cut(location, "://"); ok {
		u, err := url.Parse(location)
		if err != nil {
			return "", fmt.Errorf("store location: %w", err)
		}
		if scheme != "file" || u.Host != "" && u.Host != "localhost" || u.RawQuery != "" || u.Fragment != "" {
			return "", fmt.Errorf("store location %q: want file:///path or a path", u.Redacted())
		}
		dir = u.Path
		if runtime.GOOS == "windows" {
			dir = strings.TrimPrefix(dir, "/")
		}
	}
	if dir == "" {
		return "", errors.New("store location is empty")
	}
	abs, err := filepath.Abs(filepath.FromSlash(dir))
	if err != nil {
		return "", fmt.Errorf("store location: %w", err)
	}
	return abs, nil
}

func makeRoot(dir string) error {
	if st, err := os.Stat(dir); err == nil {
		if !st.IsDir() {
			return fmt.Errorf("%s is not a folder", dir)
		}
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeRoot(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer d.Close()
	return syncFolderFile(d)
}
