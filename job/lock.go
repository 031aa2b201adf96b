package job

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Locks keeps work that names the same key apart: in this process, and by locks
// on files of one folder between processes. The system drops a file lock with
// the process that holds it, so a killed process leaves nothing locked.
type Locks struct {
	dir string

	mu     sync.Mutex
	held   map[string]string  // key → holder, for people
	shared map[string][]*Lock // key → who shares it
}

// NewLocks keeps its files in the folder dir, which it makes when it is needed;
// "" = only this process counts.
func NewLocks(dir string) *Locks {
	return &Locks{dir: dir, held: map[string]string{}, shared: map[string][]*Lock{}}
}

// Lock is a held key.
type Lock struct {
	locks  *Locks
	key    string
	holder string
	shared bool
	file   *os.File // nil without a folder
	once   sync.Once
}

// Acquire takes the key for one alone, or returns a *BusyError. It does not
// wait. what says for people what the key is taken for.
func (l *Locks) Acquire(key, what string) (*Lock, error) { return l.take(key, what, false) }

// shareTries and shareWait bound how long Share waits: who takes a key that
// others share holds it for moments.
const (
	shareTries = 600
	shareWait  = 50 * time.Millisecond
)

// Share takes the key beside others that share it. It waits for who has it
// alone, half a minute at most, and then returns a *BusyError.
func (l *Locks) Share(ctx context.Context, key, what string) (*Lock, error) {
	for n := 1; ; n++ {
		k, err := l.take(key, what, true)
		if !errors.Is(err, ErrBusy) || n == shareTries {
			return k, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(shareWait):
		}
	}
}

func (l *Locks) take(key, what string, shared bool) (*Lock, error) {
	k := &Lock{
		locks: l, key: key, shared: shared,
		holder: fmt.Sprintf("%s, process %d, since %s", what, os.Getpid(), time.Now().UTC().Format(time.RFC3339)),
	}
	if err := l.enter(k); err != nil {
		return nil, err
	}
	if l.dir == "" {
		return k, nil
	}
	file, err := l.lockFile(k)
	if err != nil {
		k.Release()
		return nil, err
	}
	k.file = file
	return k, nil
}

// enter keeps apart what is in this process.
func (l *Locks) enter(k *Lock) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if by, busy := l.held[k.key]; busy {
		return &BusyError{Key: k.key, Holder: by}
	}
	switch with := l.shared[k.key]; {
	case k.shared:
		l.shared[k.key] = append(with, k)
	case len(with) > 0:
		return &BusyError{Key: k.key, Holder: with[0].holder}
	default:
		l.held[k.key] = k.holder
	}
	return nil
}

// lockFile locks the file of a key and leaves the holder's name in it. The file
// stays when the key is given back: removing it then would let two processes
// lock two files of one name. See Discard.
func (l *Locks) lockFile(k *Lock) (*os.File, error) {
	fail := func(err error) (*os.File, error) { return nil, fmt.Errorf("lock %s: %w", k.key, err) }
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return fail(err)
	}
	sum := sha256.Sum256([]byte(k.key))
	path := filepath.Join(l.dir, "key-"+hex.EncodeToString(sum[:12])+".lock")
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return fail(err)
		}
		locked, err := tryLock(f, k.shared)
		if err == nil && !locked {
			defer f.Close()
			return nil, &BusyError{Key: k.key, Holder: holderIn(f)}
		}
		var same bool
		if err == nil {
			same, err = sameFile(f, path)
		}
		if err == nil && !same { // discarded between opening and locking
			f.Close()
			continue
		}
		if err == nil {
			err = name(f, k.holder, k.key)
		}
		if err != nil {
			f.Close()
			return fail(err)
		}
		return f, nil
	}
}

func sameFile(f *os.File, path string) (bool, error) {
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, now), err
}

// name leaves the holder's name in the file; of several that share it, the last's.
func name(f *os.File, holder, key string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(holder+"\n"+key+"\n"), 0)
	return err
}

func holderIn(f *os.File) string {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 400))
	if err != nil {
		return "" // who holds it is only told for people
	}
	by, _, _ := strings.Cut(string(text), "\n")
	return by
}

// Discard is Release of a key that is held alone, and removes its file: for keys
// of which there are many. Who opened it before finds out that it is not the one.
func (k *Lock) Discard() {
	if k.file != nil && !k.shared {
		_ = os.Remove(k.file.Name()) // one that stays does no harm
	}
	k.Release()
}

// Release gives the key back; a second call does nothing.
func (k *Lock) Release() {
	k.once.Do(func() {
		if k.file != nil {
			if k.shared && holderIn(k.file) == k.holder {
				_ = k.file.Truncate(0) // others may still share it, and this name would mislead
			}
			// Closing drops the lock; there is nothing to do where it fails.
			_ = k.file.Close()
		}
		k.locks.mu.Lock()
		defer k.locks.mu.Unlock()
		if !k.shared {
			delete(k.locks.held, k.key)
			return
		}
		left := slices.DeleteFunc(k.locks.shared[k.key], func(o *Lock) bool { return o == k })
		if k.locks.shared[k.key] = left; len(left) == 0 {
			delete(k.locks.shared, k.key)
		}
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
	if locked, err := tryLock(f, false); err != nil || !locked {
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
	locked, err := tryLock(f, false)
	if err != nil {
		return false, fmt.Errorf("look whether job is alive: %w", err)
	}
	return !locked, nil
}
