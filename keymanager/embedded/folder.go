package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/lockstep-backup/lockstep/envelope"
)

// durable runs one step that must be on the disk before the next begins.
func (m *Manager) durable(what string, step func() error) error {
	m.reach("before " + what)
	if err := step(); err != nil {
		return err
	}
	m.reach("after " + what)
	return nil
}

func (m *Manager) reach(point string) {
	if m.step != nil {
		m.step(point)
	}
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > limit {
		return nil, damaged("%s has more than %d bytes", filepath.Base(path), limit)
	}
	return data, nil
}

// makeFolder makes path and what is missing above it, durably.
func makeFolder(path string) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncFolder(parent)
}

func syncFolder(path string) error {
	// NTFS journals names by itself, and Windows cannot sync a folder.
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// wipeFile overwrites a file, then removes it; one that is gone is wiped. What
// overwriting does not reach is in the specification, under "Destroying".
func (m *Manager) wipeFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	zeroes := make([]byte, 4096)
	m.reach("before overwriting")
	for left := info.Size(); left > 0; left -= int64(len(zeroes)) {
		if _, err := f.Write(zeroes[:min(left, int64(len(zeroes)))]); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
		m.reach("while overwriting")
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	// Windows does not remove what is open.
	if err := f.Close(); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	m.reach("before unlinking")
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	m.reach("after unlinking")
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	return nil
}

// sweep wipes what interrupted writes left in folder.
func (m *Manager) sweep(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !isRemains(e.Name()) {
			continue
		}
		path := filepath.Join(folder, e.Name())
		shared, err := sharesItsBytes(path, entries)
		if err != nil {
			return err
		}
		if shared {
			err = os.Remove(path)
		} else {
			err = m.wipeFile(path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isRemains(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, ".tmp")
}

// sharesItsBytes says whether path is a second name of a file beside it: a new
// file is linked into its place, and a kill then leaves both names. To
// overwrite the one would wipe the other.
func sharesItsBytes(path string, beside []fs.DirEntry) (bool, error) {
	own, err := os.Lstat(path)
	if err != nil {
		return false, err
	}
	for _, e := range beside {
		if filepath.Base(path) == e.Name() {
			continue
		}
		other, err := os.Lstat(filepath.Join(filepath.Dir(path), e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if os.SameFile(own, other) {
			return true, nil
		}
	}
	return false, nil
}

func writeIndex(dir string, k *keys, x *index) error {
	data, err := encodeIndex(k, x)
	if err != nil {
		return err
	}
	return envelope.WriteFileDurable(filepath.Join(dir, indexFile), data, 0o600)
}

// lockFolder takes the directory's lock, shared or exclusive. The operating
// system drops it when the process dies. Waiting ends with ctx; the wait that
// is left behind in the kernel gives the lock back as soon as it has it.
func lockFolder(ctx context.Context, dir string, exclusive bool) (unlock func(), err error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil && !exclusive {
		// A directory that is mounted read-only can still be read.
		f, err = os.Open(path)
	}
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- lockFile(f, exclusive) }()
	select {
	case err := <-locked:
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { _ = f.Close() }, nil
	case <-ctx.Done():
		go func() {
			<-locked
			_ = f.Close()
		}()
		return nil, ctx.Err()
	}
}
