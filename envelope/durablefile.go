package envelope

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFileDurable replaces or creates a file whole: a temporary file beside
// it, fsync, rename, fsync of the folder. When it returns nil the new content
// survives a power cut; otherwise the old one is untouched.
func WriteFileDurable(path string, data []byte, perm fs.FileMode) error {
	temp, err := writeTemp(path, data, perm)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// WriteNewFileDurable is WriteFileDurable for a file that must not exist yet;
// if it does, the error matches fs.ErrExist and the file stays as it is.
func WriteNewFileDurable(path string, data []byte, perm fs.FileMode) error {
	temp, err := writeTemp(path, data, perm)
	if err != nil {
		return fmt.Errorf("write new %s: %w", path, err)
	}
	err = os.Link(temp, path)
	_ = os.Remove(temp)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without hard links: FAT on a stick, where kits go.
		err = writeExclusive(path, data, perm)
	}
	if err != nil {
		return fmt.Errorf("write new %s: %w", path, err)
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("write new %s: %w", path, err)
	}
	return nil
}

func writeTemp(path string, data []byte, perm fs.FileMode) (string, error) {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text()+".tmp")
	return temp, writeExclusive(temp, data, perm)
}

// writeExclusive creates path, which must not exist, and removes it again if
// anything fails: after a failed fsync nobody knows what is on the disk.
func writeExclusive(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && perm != 0o600 { // FAT refuses chmod, and 0600 it was made with
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}
