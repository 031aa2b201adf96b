package localdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/store"
)

var errDone = errors.New("writer was committed or aborted")

// writer writes a temporary file and links it to its key at the end.
type writer struct {
	s      *Store
	ctx    context.Context
	key    string
	temp   string
	f      *os.File
	direct bool
	offset int64
	err    error // first failure; nothing can be committed after it
}

// create opens a temporary file, around the page cache where the file system
// can: a backup that fills the page cache evicts what the host works with, and
// is slower. (Preallocating segments was measured too, and gained nothing.)
func (s *Store) create(ctx context.Context, key string) (*writer, error) {
	if err := check(ctx, key); err != nil {
		return nil, err
	}
	if err := s.makeFolder(tempFolder); err != nil {
		return nil, classify(err)
	}
	w := &writer{s: s, ctx: ctx, key: key, temp: newTempName(), direct: !s.options.Buffered && directFlag != 0}
	s.trace("create", w.temp)
	name := filepath.FromSlash(w.temp)
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	var err error
	if w.direct {
		if w.f, err = s.root.OpenFile(name, flags|directFlag, fileMode); err == nil {
			return w, nil
		}
		if !isRefusedDirect(err) {
			return nil, classify(err)
		}
		// The file may have been made before the flag was refused.
		_ = s.root.Remove(name)
		w.direct = false
	}
	if w.f, err = s.root.OpenFile(name, flags, fileMode); err != nil {
		return nil, classify(err)
	}
	return w, nil
}

// Write implements store.Writer.
func (w *writer) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, fmt.Errorf("write %s: %w", w.key, errDone)
	}
	if w.err == nil {
		w.err = w.ctx.Err()
	}
	if w.err != nil {
		return 0, fmt.Errorf("write %s: %w", w.key, w.err)
	}
	written := 0
	for len(p) > 0 {
		part := p
		if w.direct {
			if !isAligned(p, w.offset) {
				part = p[:len(p)/alignment*alignment]
				if len(part) == 0 || !isAligned(part, w.offset) {
					if w.err = w.leaveDirect(); w.err != nil {
						break
					}
					part = p
				}
			}
		}
		op := "write"
		if w.direct {
			op = "write direct"
		}
		w.s.trace(op, w.temp)
		n, err := w.f.Write(part)
		w.offset += int64(n)
		written += n
		p = p[n:]
		if err != nil && w.direct && isRefusedDirect(err) {
			err = w.leaveDirect()
		}
		if err != nil {
			w.err = classify(err)
			break
		}
	}
	if w.err != nil {
		return written, fmt.Errorf("write %s: %w", w.key, w.err)
	}
	return written, nil
}

// leaveDirect goes on in the page cache: the unaligned tail of an object, or
// a caller with unaligned buffers.
func (w *writer) leaveDirect() error {
	w.direct = false
	return clearDirect(w.f)
}

// Commit implements store.Writer.
func (w *writer) Commit() error {
	if err := w.commit(); err != nil {
		return fmt.Errorf("commit %s: %w", w.key, err)
	}
	return nil
}

// commit gives the temporary file its name. Whatever fails, the temporary file
// goes: after a failed fsync nobody knows what is on the disk, and a second
// fsync would report success.
func (w *writer) commit() error {
	if w.f == nil {
		return errDone
	}
	err := w.err
	if err == nil {
		err = w.ctx.Err()
	}
	if err == nil {
		w.s.trace("sync", w.temp)
		err = w.f.Sync()
	}
	if closeErr := w.f.Close(); err == nil {
		err = closeErr
	}
	w.f = nil
	if err != nil {
		_ = w.s.unlinkTemp(w.temp)
		return classify(err)
	}
	return w.publish()
}

func (w *writer) publish() error {
	folder := path.Dir(w.key)
	moved, err := w.name(folder)
	if errors.Is(err, fs.ErrNotExist) {
		// Somebody removed the folder since this process saw it.
		w.s.forgetFolders()
		moved, err = w.name(folder)
	}
	if err != nil {
		_ = w.s.unlinkTemp(w.temp)
		if errors.Is(err, fs.ErrExist) {
			if st, statErr := w.s.root.Lstat(filepath.FromSlash(w.key)); statErr == nil && st.IsDir() {
				return fmt.Errorf("%w: %q is a folder", store.ErrKey, w.key)
			}
			return fmt.Errorf("%w: %w", store.ErrExist, err)
		}
		return classify(err)
	}
	if err := w.s.syncFolder(folder); err != nil {
		// Not known to be durable, so it must not be visible.
		w.s.trace("unlink", w.key)
		_ = w.s.root.Remove(filepath.FromSlash(w.key))
		if !moved {
			_ = w.s.unlinkTemp(w.temp)
		}
		return classify(err)
	}
	if !moved {
		// The object is durable; a temporary name that stays is swept by CleanTemp.
		_ = w.s.unlinkTemp(w.temp)
	}
	return nil
}

// name links the temporary file to the key, which fails if the key exists.
// Where there are no hard links it renames, and says so with moved.
func (w *writer) name(folder string) (moved bool, err error) {
	if err := w.s.makeFolder(folder); err != nil {
		return false, err
	}
	w.s.trace("link", w.key)
	err = w.s.root.Link(filepath.FromSlash(w.temp), filepath.FromSlash(w.key))
	if err == nil || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) || isFull(err) {
		return false, err
	}
	w.s.trace("rename", w.key)
	if renameErr := w.rename(folder); renameErr != nil {
		if errors.Is(renameErr, fs.ErrExist) {
			return false, renameErr
		}
		return false, errors.Join(err, renameErr)
	}
	return true, nil
}

func (w *writer) rename(folder string) error {
	from, err := w.s.root.Open(tempFolder)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := w.s.root.Open(filepath.FromSlash(folder))
	if err != nil {
		return err
	}
	defer to.Close()
	return renameNoReplace(from, path.Base(w.temp), to, path.Base(w.key))
}

// Abort implements store.Writer.
func (w *writer) Abort() error {
	if w.f == nil {
		return nil
	}
	err := w.f.Close()
	w.f = nil
	if removeErr := w.s.unlinkTemp(w.temp); err == nil {
		err = removeErr
	}
	if err != nil {
		return fmt.Errorf("abort %s: %w", w.key, err)
	}
	return nil
}
