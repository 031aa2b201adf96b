package backup_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/image"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/target"
	targetimage "github.com/lockstep-backup/lockstep/target/image"
)

const machineID = "0123456789abcdef0123456789abcdef"

func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 7}).Read(p)
	return p
}

// bench is all that a backup works with.
type bench struct {
	backup.Deps
	st       store.Store
	writer   envelope.SigningKey
	identity envelope.Secret
	machine  catalog.Machine
	dir      string
}

func newBench(t *testing.T, st store.Store, disks ...string) *bench {
	t.Helper()
	ctx := t.Context()
	b := &bench{st: st, dir: t.TempDir()}
	key := func(role string) envelope.SigningKey {
		k, err := envelope.GenerateSigningKey(role)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	b.writer = key("writer")
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	b.identity = id
	if _, _, err := repository.Create(ctx, st, repository.CreateOptions{
		Writer: b.writer.Public(), Prover: key("prover").Public(), Custodian: key("custodian"),
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient}},
	}); err != nil {
		t.Fatal(err)
	}
	if b.Catalog, err = sqlite.Open(ctx, filepath.Join(b.dir, "catalog.db"), sqlite.Options{Create: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Catalog.Maintenance.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Open = image.Opener{}.Open
	b.Software = "test"
	b.machine = catalog.Machine{ID: machineID, Name: "vm", Created: time.Now()}
	for _, d := range disks {
		b.machine.Disks = append(b.machine.Disks, catalog.MachineDisk{ID: d, Source: filepath.Join(b.dir, d+".raw")})
	}
	if err := b.Catalog.Machines.Put(ctx, b.machine); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	if err := b.Catalog.Repositories.Put(ctx, catalog.Repository{ID: b.Repository.ID(), URL: "memory:"}); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bench) reopen(t *testing.T) {
	t.Helper()
	r, err := repository.Open(context.Background(), b.st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: b.identity}, Writer: &b.writer})
	if err != nil {
		t.Fatal(err)
	}
	b.Repository = r
}

func (b *bench) path(id string) string { return filepath.Join(b.dir, id+".raw") }

func (b *bench) write(t *testing.T, id string, p []byte) {
	t.Helper()
	if err := os.WriteFile(b.path(id), p, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) run(req backup.Request) (catalog.Point, error) {
	req.Machine = b.machine
	res, err := backup.Run(context.Background(), b.Deps, req)
	return res.Point, err
}

func (b *bench) points(t *testing.T) []repository.Point {
	t.Helper()
	ps, err := b.Repository.Points(t.Context(), machineID)
	if err != nil && !errors.Is(err, repository.ErrNotFound) {
		t.Fatal(err)
	}
	return ps
}

// restored restores a recovery point to files and reads them.
func (b *bench) restored(t *testing.T, point string, disks ...string) [][]byte {
	t.Helper()
	for _, p := range b.points(t) {
		if p.ID != point {
			continue
		}
		m, err := b.Repository.Manifest(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		req := restore.Request{
			Repository: b.Repository, Manifest: m,
			Open: targetimage.Opener{}.Open, Options: target.Options{},
		}
		for _, d := range disks {
			req.Targets = append(req.Targets, restore.Target{Disk: d, Target: filepath.Join(to, d)})
		}
		if _, err := restore.Run(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		var out [][]byte
		for _, d := range disks {
			p, err := os.ReadFile(filepath.Join(to, d))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, p)
		}
		return out
	}
	t.Fatalf("point %s is not listed", point)
	return nil
}

// TestDisksComeAndGo: disks grow, shrink, are added and removed between
// recovery points, and every point restores to what it was.
func TestDisksComeAndGo(t *testing.T) {
	b := newBench(t, memstore.New(), "vda", "vdb")
	type shot struct {
		point string
		disks map[string][]byte
	}
	var shots []shot
	cur := map[string][]byte{"vda": noise(1, 5<<20+512), "vdb": noise(2, 1<<20)}
	take := func(change func()) {
		change()
		s := shot{disks: map[string][]byte{}}
		b.machine.Disks = nil
		for _, id := range []string{"vda", "vdb", "vdc"} {
			if p := cur[id]; p != nil {
				b.write(t, id, p)
				s.disks[id] = bytes.Clone(p)
				b.machine.Disks = append(b.machine.Disks, catalog.MachineDisk{ID: id, Source: b.path(id)})
			}
		}
		p, err := b.run(backup.Request{})
		if err != nil {
			t.Fatal(err)
		}
		s.point = p.ID
		shots = append(shots, s)
	}
	take(func() {})
	take(func() { cur["vda"] = append(cur["vda"], noise(3, 3<<20)...) })
	take(func() { cur["vda"] = cur["vda"][:2<<20-512] })
	take(func() { cur["vda"] = append(cur["vda"], make([]byte, 6<<20)...) })
	take(func() { cur["vdc"] = noise(4, 512) })
	take(func() { delete(cur, "vdb") })
	take(func() { cur["vdb"] = noise(2, 1<<20) })
	take(func() { copy(cur["vdb"][4096:], noise(5, 512)) })
	b.reopen(t)
	for i, s := range shots {
		ids := []string{}
		for id := range s.disks {
			ids = append(ids, id)
		}
		for j, got := range b.restored(t, s.point, ids...) {
			if !bytes.Equal(got, s.disks[ids[j]]) {
				t.Errorf("point %d: disk %s differs", i, ids[j])
			}
		}
	}
	listed, err := b.Catalog.Points.List(t.Context(), catalog.PointQuery{Machine: machineID})
	if err != nil || len(listed) != len(shots) {
		t.Errorf("the catalog has %d points, %v", len(listed), err)
	}
}

// TestSourceChangesUnderneath changes a real file while it is read: nothing is
// listed, the error says what happened, and the next backup succeeds.
func TestSourceChangesUnderneath(t *testing.T) {
	other := noise(9, 24<<20)
	for _, c := range []struct {
		name   string
		change func(path string) error
		want   error
	}{
		{"shrinks", func(path string) error { return os.Truncate(path, 1<<20) }, source.ErrSizeChanged},
		{"grows", func(path string) error { return os.Truncate(path, 30<<20) }, source.ErrSizeChanged},
		{"is replaced", func(path string) error {
			if err := os.WriteFile(path+".new", other, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, source.ErrSizeChanged},
		{"disappears", os.Remove, source.ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, memstore.New(), "vda")
			b.write(t, "vda", noise(1, 24<<20))
			var once sync.Once
			var changeErr error
			_, err := b.run(backup.Request{Progress: func(phase string, _, _ int64) {
				if phase == "store" {
					once.Do(func() { changeErr = c.change(b.path("vda")) })
				}
			}})
			if changeErr != nil {
				t.Fatal(changeErr)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("it says %v, want %v", err, c.want)
			}
			if n := len(b.points(t)); n != 0 {
				t.Errorf("%d points are listed", n)
			}
			b.write(t, "vda", other)
			p, err := b.run(backup.Request{})
			if err != nil {
				t.Fatal(err)
			}
			if got := b.restored(t, p.ID, "vda")[0]; !bytes.Equal(got, other) {
				t.Error("the next backup differs")
			}
		})
	}
}

// scripted is a source that does what a test wants.
type scripted struct {
	p           []byte
	bad         map[int64]bool // pages
	fail        error          // of every read behind failAt
	failAt      int64
	check       error
	next        error
	consistency source.Consistency
	changed     func(parent string) ([]disk.Range, bool, string, error)
	reads       atomic.Int64
}

func (s *scripted) Size() int64                     { return int64(len(s.p)) }
func (s *scripted) Close() error                    { return nil }
func (s *scripted) Check() error                    { return s.check }
func (s *scripted) Consistency() source.Consistency { return s.consistency }
func (s *scripted) Changed(_ context.Context, parent string) ([]disk.Range, bool, string, error) {
	if s.changed == nil {
		return nil, false, "", nil
	}
	return s.changed(parent)
}

func (s *scripted) NextData(off int64) (disk.Range, error) {
	if s.next != nil {
		return disk.Range{}, s.next
	}
	if off >= s.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: s.Size() - off}, nil
}

func (s *scripted) ReadAt(p []byte, off int64) (int, error) {
	s.reads.Add(int64(len(p)))
	if s.fail != nil && off+int64(len(p)) > s.failAt {
		return 0, s.fail
	}
	for page := off / 4096; page*4096 < off+int64(len(p)); page++ {
		if s.bad[page] {
			return 0, &source.UnreadableError{Range: disk.Range{Offset: page * 4096, Length: 4096}, Err: errors.New("medium error")}
		}
	}
	n := copy(p, s.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (b *bench) from(s *scripted) {
	b.Open = func(context.Context, string, source.Options) (source.Disk, error) { return s, nil }
}

func TestBadSector(t *testing.T) {
	b := newBench(t, memstore.New(), "vda")
	s := &scripted{p: noise(1, 3<<20+100), bad: map[int64]bool{17: true, 600: true}}
	b.from(s)
	if _, err := b.run(backup.Request{}); !source.IsUnreadable(err) {
		t.Fatalf("a bad sector gives %v", err)
	}
	if len(b.points(t)) != 0 {
		t.Fatal("an incomplete recovery point is listed though nobody asked for it")
	}
	p, err := b.run(backup.Request{AllowIncomplete: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []disk.Range{{Offset: 17 * 4096, Length: 4096}, {Offset: 600 * 4096, Length: 4096}}
	if !p.Incomplete || !slices.Equal(p.Disks[0].Unread, want) {
		t.Errorf("incomplete %v, unread %v, want %v", p.Incomplete, p.Disks[0].Unread, want)
	}
	hole := bytes.Clone(s.p)
	for page := range s.bad {
		clear(hole[page*4096 : (page+1)*4096])
	}
	if !bytes.Equal(b.restored(t, p.ID, "vda")[0], hole) {
		t.Error("an incomplete recovery point restores otherwise")
	}
	// Even where the change source swears that nothing changed, what was not read is read again.
	s.bad = nil
	s.changed = func(string) ([]disk.Range, bool, string, error) { return nil, true, "test", nil }
	if p, err = b.run(backup.Request{}); err != nil {
		t.Fatal(err)
	}
	if p.Incomplete || len(p.Disks[0].Unread) != 0 || !bytes.Equal(b.restored(t, p.ID, "vda")[0], s.p) {
		t.Error("what could not be read was inherited")
	}
}

// TestSourceFails: whatever goes wrong with a source ends the backup with that
// error, and nothing is listed.
func TestSourceFails(t *testing.T) {
	gone := errors.New("connection to the hypervisor lost")
	for name, s := range map[string]*scripted{
		"a read fails":                 {fail: gone, failAt: 5 << 20},
		"data cannot be listed":        {next: gone},
		"it changed meanwhile":         {check: gone},
		"bad sectors, then it changed": {bad: map[int64]bool{3: true}, check: gone},
	} {
		for _, incomplete := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				b := newBench(t, memstore.New(), "vda")
				s.p = noise(1, 8<<20)
				b.from(s)
				if _, err := b.run(backup.Request{AllowIncomplete: incomplete}); !errors.Is(err, gone) {
					t.Errorf("it says %v", err)
				}
				if n := len(b.points(t)); n != 0 {
					t.Errorf("%d points are listed", n)
				}
			})
		}
	}
}

func TestSecondDiskFails(t *testing.T) {
	gone := errors.New("gone")
	b := newBench(t, memstore.New(), "vda", "vdb")
	good := &scripted{p: noise(1, 3<<20)}
	bad := &scripted{p: noise(2, 3<<20), fail: gone}
	b.Open = func(_ context.Context, spec string, _ source.Options) (source.Disk, error) {
		if spec == b.path("vdb") {
			return bad, nil
		}
		return good, nil
	}
	if _, err := b.run(backup.Request{}); !errors.Is(err, gone) {
		t.Fatal(err)
	}
	if n := len(b.points(t)); n != 0 {
		t.Fatalf("%d points are listed: all disks of a machine or none", n)
	}
	bad.fail = nil
	p, err := b.run(backup.Request{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := b.Repository.Manifest(t.Context(), b.points(t)[0])
	if err != nil || m.Disks[0].Stats.Reused != 3<<20 {
		t.Errorf("%d bytes of the failed attempt were used, %v", m.Disks[0].Stats.Reused, err)
	}
	for i, got := range b.restored(t, p.ID, "vda", "vdb") {
		if want := [][]byte{good.p, bad.p}[i]; !bytes.Equal(got, want) {
			t.Errorf("disk %d differs", i)
		}
	}
}

func TestChangeSource(t *testing.T) {
	b := newBench(t, memstore.New(), "vda")
	s := &scripted{p: noise(1, 20<<20), consistency: source.ConsistencyCrash}
	b.from(s)
	first, err := b.run(backup.Request{})
	if err != nil {
		t.Fatal(err)
	}
	copy(s.p[10<<20+5000:], noise(2, 10))
	s.changed = func(parent string) ([]disk.Range, bool, string, error) {
		if parent != first.ID {
			t.Errorf("changes since %s are asked for, want %s", parent, first.ID)
		}
		return []disk.Range{{Offset: 10<<20 + 4096, Length: 4096}}, true, "bitmap", nil
	}
	s.reads.Store(0)
	p, err := b.run(backup.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.reads.Load(); n > 2<<20 {
		t.Errorf("%d bytes were read for one changed page", n)
	}
	if !bytes.Equal(b.restored(t, p.ID, "vda")[0], s.p) {
		t.Error("content differs")
	}
	if p.Disks[0].Changes != "cbt: bitmap" || p.Consistency != string(source.ConsistencyCrash) || p.FullTransfer {
		t.Errorf("recorded as %q, %q", p.Disks[0].Changes, p.Consistency)
	}
	s.changed = func(string) ([]disk.Range, bool, string, error) { return nil, false, "", errors.New("tracking broke") }
	if _, err := b.run(backup.Request{}); err == nil {
		t.Error("a change source that fails is taken for one that does not know")
	}
}

func TestClockWarning(t *testing.T) {
	b := newBench(t, memstore.New(), "vda")
	b.from(&scripted{p: noise(1, 1000)})
	now := time.Now()
	b.Now = func() time.Time { return now }
	if _, err := b.run(backup.Request{}); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-time.Hour)
	res, err := backup.Run(t.Context(), b.Deps, backup.Request{Machine: b.machine})
	if err != nil || len(res.Warnings) != 1 {
		t.Errorf("a clock that went backwards gives %q, %v", res.Warnings, err)
	}
	if ps := b.points(t); ps[1].ID != res.Point.ID {
		t.Error("the newest is not the last")
	}
}
