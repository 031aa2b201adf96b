package job

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Locks keeps work that names the same key apart: in this process, and by locks
// on files of one folder between processes. The system drops a file lock with
// the process that holds it, so a killed process leaves nothing locked.
type Locks struct {
	dir string

	mu   sync.Mutex
	held map[string]string // key → holder, for people
}

// NewLocks keeps its files in the folder dir, which it makes when it is needed;
// "" = only this process counts.
func NewLocks(dir string) *Locks {
	return &Locks{dir: dir, held: map[string]string{}}
}

// Lock is a held key.
type Lock struct {
	locks *Locks
	key   string
	file  *os.File // nil without a folder
	once  sync.Once
}

// Acquire takes the key, or returns a *BusyError. It does not wait. what says
// for people what the key is taken for.
func (l *Locks) Acquire(key, what string) (*Lock, error) {
	holder := fmt.Sprintf("%s, process %d, since %s", what, os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	l.mu.Lock()
	if by, busy := l.held[key]; busy {
		l.mu.Unlock()
		return nil, &BusyError{Key: key, Holder: by}
	}
	l.held[key] = holder
	l.mu.Unlock()

	k := &Lock{locks: l, key: key}
	if l.dir == "" {
		return k, nil
	}
	file, err := l.lockFile(key, holder)
	if err != nil {
		k.Release()
		return nil, err
	}
	k.file = file
	return k, nil
}

// lockFile locks the file of a key and leaves the holder's name in it. The file
// stays for good: removing it would let two processes lock two files of one name.
func (l *Locks) lockFile(key, holder string) (*os.File, error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	sum := sha256.Sum256([]byte(key))
	path := filepath.Join(l.dir, "key-"+hex.EncodeToString(sum[:12])+".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	locked, err := tryLock(f)
	if err != nil || !locked {
		defer f.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", key, err)
		}
		text, err := io.ReadAll(io.LimitReader(f, 400))
		if err != nil {
			text = nil // who holds it is only told for people
		}
		by, _, _ := strings.Cut(string(text), "\n")
		return nil, &BusyError{Key: key, Holder: by}
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	if _, err := fmt.Fprintf(f, "%s\n%s\n", holder, key); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", key, err)
	}
	return f, nil
}

// Release gives the key back; a second call does nothing.
func (k *Lock) Release() {
	k.once.Do(func() {
		if k.file != nil {
			// Closing drops the lock; there is nothing to do where it fails.
			_ = k.file.Close()
		}
		k.locks.mu.Lock()
		delete(k.locks.held, k.key)
		k.locks.mu.Unlock()
	})
}

// pulse is the file that stays locked while a job runs.
func (l *Locks) pulse(id string) string { return filepath.Join(l.dir, "job-"+id+".lock") }

// startPulse locks the job's file; stop unlocks and removes it.
func (l *Locks) startPulse(id string) (stop func(), err error) {
	if l.dir == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock job: %w", err)
	}
	f, err := os.OpenFile(l.pulse(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock job: %w", err)
	}
	if locked, err := tryLock(f); err != nil || !locked {
		f.Close()
		return nil, fmt.Errorf("lock job: %w", errors.Join(err, ErrBusy))
	}
	return func() {
		_ = f.Close()
		_ = os.Remove(f.Name()) // an unlocked file that stays says the same as none
	}, nil
}

// alive reports whether some process runs the job.
func (l *Locks) alive(id string) (bool, error) {
	if l.dir == "" {
		return false, nil
	}
	f, err := os.OpenFile(l.pulse(id), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether job is alive: %w", err)
	}
	defer f.Close()
	locked, err := tryLock(f)
	if err != nil {
		return false, fmt.Errorf("look whether job is alive: %w", err)
	}
	return !locked, nil
}
