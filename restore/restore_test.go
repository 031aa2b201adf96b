package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/image"
)

type memDisk struct {
	p   []byte
	bad int64 // this page cannot be read; 0: none
}

var errBad = errors.New("bad sector")

func (d memDisk) Size() int64 { return int64(len(d.p)) }
func (d memDisk) ReadAt(p []byte, off int64) (int, error) {
	if d.bad != 0 && off < (d.bad+1)*4096 && off+int64(len(p)) > d.bad*4096 {
		return 0, errBad
	}
	n := copy(p, d.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d memDisk) NextData(off int64) (disk.Range, error) {
	if off >= d.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: d.Size() - off}, nil
}

// stored is a repository with one recovery point of two disks.
type stored struct {
	mem      *memstore.Store
	repo     *repository.Repository
	writer   *repository.Repository // somebody else's, elsewhere
	manifest *repository.Manifest
	a, b     []byte
}

func newStored(t *testing.T) *stored {
	t.Helper()
	ctx := t.Context()
	s := &stored{mem: memstore.New(), a: make([]byte, 9<<20+1000), b: make([]byte, 3<<20)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(s.a)
	clear(s.a[3<<20 : 7<<20])
	_, _ = rand.NewChaCha8([32]byte{2}).Read(s.b[1<<20 : 1<<20+5000])
	keys := map[string]envelope.SigningKey{}
	for _, role := range []string{"writer", "prover", "custodian"} {
		k, err := envelope.GenerateSigningKey(role)
		if err != nil {
			t.Fatal(err)
		}
		keys[role] = k
	}
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := repository.Create(ctx, s.mem, repository.CreateOptions{
		Writer: keys["writer"].Public(), Prover: keys["prover"].Public(), Custodian: keys["custodian"],
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient}},
	}); err != nil {
		t.Fatal(err)
	}
	writer := keys["writer"]
	w, err := repository.Open(ctx, s.mem, repository.OpenOptions{Unlock: repository.Unlocker{Identities: id}, Writer: &writer})
	if err != nil {
		t.Fatal(err)
	}
	m, err := w.CreateMachine(ctx, "", "vm")
	if err != nil {
		t.Fatal(err)
	}
	pw, err := w.Begin(ctx, m.ID, repository.BeginOptions{Unread: true})
	if err != nil {
		t.Fatal(err)
	}
	s.manifest = &repository.Manifest{}
	for i, d := range []memDisk{{s.a, 2000}, {s.b, 0}} {
		dd, err := pw.WriteDisk(ctx, repository.DiskInput{ID: fmt.Sprintf("vd%c", 'a'+i), Source: d, Unreadable: func(err error) bool { return errors.Is(err, errBad) }})
		if err != nil {
			t.Fatal(err)
		}
		s.manifest.Disks = append(s.manifest.Disks, dd)
	}
	clear(s.a[2000*4096 : 2001*4096])
	if _, err := pw.Commit(ctx, s.manifest); err != nil {
		t.Fatal(err)
	}
	s.writer = w
	// A reader that has nothing but the store and an identity.
	s.repo, err = repository.Open(ctx, s.mem, repository.OpenOptions{Unlock: repository.Unlocker{Identities: id}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stored) request(open func(context.Context, string, int64, target.Options) (target.Disk, error), targets ...restore.Target) restore.Request {
	return restore.Request{Repository: s.repo, Manifest: s.manifest, Targets: targets, Open: open}
}

func TestRestore(t *testing.T) {
	s := newStored(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	req := s.request(image.Opener{}.Open, restore.Target{Disk: "vda", Target: a}, restore.Target{Disk: "vdb", Target: b})
	var mu sync.Mutex
	var last, total int64
	req.Progress = func(_ string, done, all int64) { mu.Lock(); last, total = max(last, done), all; mu.Unlock() }
	done, err := restore.Run(t.Context(), req)
	if err != nil || len(done) != 2 {
		t.Fatal(done, err)
	}
	for path, want := range map[string][]byte{a: s.a, b: s.b} {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs, %v", path, err)
		}
	}
	if last != total || total != int64(len(s.a)+len(s.b)) {
		t.Errorf("progress ends at %d of %d", last, total)
	}
	if u := done[0].Unread; len(u) != 1 || u[0] != (disk.Range{Offset: 2000 * 4096, Length: 4096}) {
		t.Errorf("unread ranges are %v", u)
	}
	if done[1].Written > 2*65536 || done[0].Written < 5<<20 || done[0].ContentRoot == "" {
		t.Errorf("written: %+v", done)
	}
	// Targets that have content are refused before anything is read.
	if _, err := restore.Run(t.Context(), req); !errors.Is(err, target.ErrNotEmpty) {
		t.Errorf("over what is there: %v", err)
	}
	req.Options.Force = true
	if _, err := restore.Run(t.Context(), req); err != nil {
		t.Errorf("over what is there, by force: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	s := newStored(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, []byte("something"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		targets []restore.Target
		want    error
	}{
		{"no such disk", []restore.Target{{Disk: "vda", Target: a}, {Disk: "vdz", Target: b}}, restore.ErrNoDisk},
		{"a disk twice", []restore.Target{{Disk: "vda", Target: a}, {Disk: "vda", Target: b}}, target.ErrNotNamed},
		{"a target twice", []restore.Target{{Disk: "vda", Target: a}, {Disk: "vdb", Target: a}}, target.ErrNotNamed},
		{"the second target is full", []restore.Target{{Disk: "vda", Target: a}, {Disk: "vdb", Target: full}}, target.ErrNotEmpty},
		{"a folder", []restore.Target{{Disk: "vda", Target: a}, {Disk: "vdb", Target: dir}}, target.ErrNotNamed},
	} {
		done, err := restore.Run(t.Context(), s.request(image.Opener{}.Open, c.targets...))
		if !errors.Is(err, c.want) || len(done) != 0 {
			t.Errorf("%s: %v, %v", c.name, done, err)
		}
		for _, path := range []string{a, b} {
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s was left", c.name, path)
			}
		}
	}
	if p, err := os.ReadFile(full); err != nil || string(p) != "something" {
		t.Error("a refused target was written to")
	}
}

// recorder is a target that compares what it gets with what is right, and may fail.
type recorder struct {
	t        *testing.T
	want     []byte
	failAt   int64 // a write that reaches it fails; 0: none
	failZero error
	failDone error

	mu        sync.Mutex
	bytes     int64
	committed bool
	aborted   bool
}

var errTarget = errors.New("target broke")

func (r *recorder) WriteAt(p []byte, off int64) (int, error) {
	if !bytes.Equal(p, r.want[off:off+int64(len(p))]) {
		r.t.Errorf("bytes that are not the disk's were written at %d", off)
	}
	if r.failAt != 0 && off+int64(len(p)) > r.failAt {
		return 0, errTarget
	}
	r.mu.Lock()
	r.bytes += int64(len(p))
	r.mu.Unlock()
	return len(p), nil
}

func (r *recorder) Zero(off, length int64) error {
	for _, b := range r.want[off : off+length] {
		if b != 0 {
			r.t.Errorf("%d bytes at %d were made zero, and are not", length, off)
			break
		}
	}
	r.mu.Lock()
	r.bytes += length
	r.mu.Unlock()
	return r.failZero
}

func (r *recorder) ReadAt([]byte, int64) (int, error) { return 0, errTarget }
func (r *recorder) Commit() error                     { r.committed = r.failDone == nil; return r.failDone }
func (r *recorder) Capacity() int64                   { return int64(len(r.want)) }
func (r *recorder) Abort() error                      { r.aborted = true; return nil }

// TestNothingUnverifiedIsWritten damages the store in many places: the restore
// fails naming what it met, writes nothing wrong, and commits nothing.
func TestNothingUnverifiedIsWritten(t *testing.T) {
	s := newStored(t)
	var keys []store.Info
	for _, prefix := range []string{"seg/", "map/"} {
		if err := s.mem.List(t.Context(), prefix, func(i store.Info) error { keys = append(keys, i); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	failed := 0
	for _, key := range keys {
		step := key.Size/9 + 1
		for at := step / 2; at < key.Size; at += step {
			flip := func() {
				if err := s.mem.Replace(key.Key, func(p []byte) { p[at] ^= 0x20 }); err != nil {
					t.Fatal(err)
				}
			}
			flip()
			rec := map[string]*recorder{"a": {t: t, want: s.a}, "b": {t: t, want: s.b}}
			r, err := restore.Run(t.Context(), s.request(func(_ context.Context, spec string, _ int64, _ target.Options) (target.Disk, error) {
				return rec[spec], nil
			}, restore.Target{Disk: "vda", Target: "a"}, restore.Target{Disk: "vdb", Target: "b"}))
			flip()
			if err != nil {
				failed++
				var de *repository.DamageError
				if !errors.As(err, &de) || de.Disk == "" {
					t.Errorf("%s at %d: %v", key.Key, at, err)
				}
				if rec["b"].committed && rec["a"].committed || !rec["a"].aborted && !rec["b"].aborted {
					t.Errorf("%s at %d: a damaged disk was committed", key.Key, at)
				}
			} else if len(r) != 2 {
				t.Errorf("%s at %d: %d disks without an error", key.Key, at, len(r))
			}
		}
	}
	if failed < len(keys) {
		t.Errorf("only %d restores met the damage of %d objects", failed, len(keys))
	}
}

func TestTargetFails(t *testing.T) {
	s := newStored(t)
	for name, rec := range map[string]*recorder{
		"write": {failAt: 2 << 20}, "zero": {failZero: errTarget}, "commit": {failDone: errTarget},
	} {
		rec.t, rec.want = t, s.a
		_, err := restore.Run(t.Context(), s.request(func(context.Context, string, int64, target.Options) (target.Disk, error) { return rec, nil }, restore.Target{Disk: "vda", Target: "a"}))
		if !errors.Is(err, errTarget) || rec.committed || !rec.aborted {
			t.Errorf("%s fails: %v, committed %v, aborted %v", name, err, rec.committed, rec.aborted)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	rec := &recorder{t: t, want: s.a}
	req := s.request(func(context.Context, string, int64, target.Options) (target.Disk, error) { return rec, nil }, restore.Target{Disk: "vda", Target: "a"})
	req.Progress = func(string, int64, int64) { cancel() }
	if _, err := restore.Run(ctx, req); !errors.Is(err, context.Canceled) || rec.committed || !rec.aborted {
		t.Errorf("cancelled: %v, committed %v", err, rec.committed)
	}
}

// TestFailedRestoreLeavesNoFile: a new file that could not be completed is removed.
func TestFailedRestoreLeavesNoFile(t *testing.T) {
	s := newStored(t)
	if err := s.mem.List(t.Context(), "seg/", func(i store.Info) error {
		return s.mem.Replace(i.Key, func(p []byte) { p[len(p)/2] ^= 1 })
	}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err := restore.Run(t.Context(), s.request(image.Opener{}.Open, restore.Target{Disk: "vda", Target: filepath.Join(dir, "a")}))
	if !errors.Is(err, repository.ErrDamaged) {
		t.Fatalf("it says %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v was left, %v", fmt.Sprint(left), err)
	}
}
