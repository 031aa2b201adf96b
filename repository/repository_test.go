package repository_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// memDisk is a disk in memory; holes says which ranges NextData leaves out.
type memDisk struct {
	p    []byte
	bad  map[int64]bool // pages that cannot be read
	skip []disk.Range   // holes
}

var errBadSector = errors.New("bad sector")

func (d *memDisk) Size() int64 { return int64(len(d.p)) }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	for page := off / disk.PageSize; page*disk.PageSize < off+int64(len(p)); page++ {
		if d.bad[page] {
			return 0, errBadSector
		}
	}
	if off >= int64(len(d.p)) {
		return 0, io.EOF
	}
	n := copy(p, d.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *memDisk) NextData(off int64) (disk.Range, error) {
	for _, h := range d.skip {
		if off >= h.Offset && off < h.End() {
			off = h.End()
		}
	}
	if off >= int64(len(d.p)) {
		return disk.Range{}, io.EOF
	}
	end := int64(len(d.p))
	for _, h := range d.skip {
		if h.Offset > off && h.Offset < end {
			end = h.Offset
		}
	}
	return disk.Range{Offset: off, Length: end - off}, nil
}

// bench is a repository with one machine and its keys.
type fixture struct {
	st        store.Store
	repo      *repository.Repository
	machine   repository.Machine
	writer    envelope.SigningKey
	custodian envelope.SigningKey
	identity  envelope.Secret
	trust     string
}

func newFixture(tb testing.TB, st store.Store, sealing string) *fixture {
	tb.Helper()
	f := &fixture{st: st}
	key := func(role string) envelope.SigningKey {
		k, err := envelope.GenerateSigningKey(role)
		if err != nil {
			tb.Fatal(err)
		}
		return k
	}
	f.writer, f.custodian = key("writer"), key("custodian")
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		tb.Fatal(err)
	}
	f.identity = id
	_, f.trust, err = repository.Create(tb.Context(), st, repository.CreateOptions{
		Sealing: sealing, Writer: f.writer.Public(), Prover: key("prover").Public(), Custodian: f.custodian,
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient, Role: repository.RoleRecovery}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	f.repo = f.open(tb)
	f.machine, err = f.repo.CreateMachine(tb.Context(), "", "vm1")
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func (f *fixture) open(tb testing.TB) *repository.Repository {
	tb.Helper()
	r, err := repository.Open(context.Background(), f.st, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: envelope.CopySecret(f.identity.Expose())}, Writer: &f.writer, TrustRoot: f.trust,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func (f *fixture) backup(tb testing.TB, d *memDisk, o repository.BeginOptions) (repository.Point, *repository.Manifest) {
	tb.Helper()
	p, m, err := backup(f.repo, f.machine.ID, d, o)
	if err != nil {
		tb.Fatal(err)
	}
	return p, m
}

func backup(r *repository.Repository, mid string, d *memDisk, o repository.BeginOptions) (repository.Point, *repository.Manifest, error) {
	ctx := context.Background()
	w, err := r.Begin(ctx, mid, o)
	if err != nil {
		return repository.Point{}, nil, err
	}
	in := repository.DiskInput{ID: "vda", Source: d, Unreadable: func(err error) bool { return errors.Is(err, errBadSector) }}
	dd, err := w.WriteDisk(ctx, in)
	if err != nil {
		w.Abort()
		return repository.Point{}, nil, err
	}
	mf := &repository.Manifest{Disks: []repository.Disk{dd}}
	p, err := w.Commit(ctx, mf)
	return p, mf, err
}

// content reads a recovery point's disk both ways and compares them.
func content(tb testing.TB, r *repository.Repository, p repository.Point) []byte {
	tb.Helper()
	out, err := readPoint(r, p)
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func readPoint(r *repository.Repository, p repository.Point) ([]byte, error) {
	ctx := context.Background()
	m, err := r.Manifest(ctx, p)
	if err != nil {
		return nil, err
	}
	d, err := r.OpenDisk(ctx, p.Machine, m.Disks[0])
	if err != nil {
		return nil, err
	}
	out := make([]byte, d.Size())
	for i := range out {
		out[i] = 0xee // what Scan does not touch must show
	}
	whole, err := d.Scan(ctx, repository.ScanOptions{
		Data: func(off int64, p []byte) error { copy(out[off:], p); return nil },
		Zero: func(off, n int64) error { clear(out[off : off+n]); return nil },
	})
	if err != nil {
		return nil, err
	}
	if !whole {
		return nil, errors.New("scan is not whole")
	}
	again := make([]byte, len(out)+1)
	n, err := d.ReadAt(again, 0)
	if n != len(out) || !errors.Is(err, io.EOF) {
		return nil, errors.Join(errors.New("ReadAt over the end"), err)
	}
	if !bytes.Equal(again[:n], out) {
		return nil, errors.New("ReadAt and Scan differ")
	}
	return out, nil
}

func noise(seed uint64, n int) []byte {
	var s [32]byte
	s[0], s[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(s).Read(p)
	return p
}

// TestHistory makes a long history of all kinds of change and restores every
// recovery point of it.
func TestHistory(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		t.Run(sealing, func(t *testing.T) {
			f := newFixture(t, memstore.New(), sealing)
			rnd := rand.New(rand.NewPCG(1, 2))
			cur := noise(1, 5<<20+12345)
			clear(cur[1<<20 : 3<<20])
			var points []repository.Point
			var images [][]byte
			for round := range 30 {
				switch round {
				case 0, 1: // first, and unchanged
				case 10: // grows
					cur = append(cur, noise(10, 70<<20)...)
				case 15: // shrinks
					cur = cur[:3<<20+100]
				case 20: // grows again: old content must not come back
					cur = append(cur, make([]byte, 4<<20)...)
				case 22:
					clear(cur)
				case 23:
					cur = noise(23, len(cur))
				default:
					for range rnd.IntN(40) {
						n := 1 << rnd.IntN(18)
						at := rnd.IntN(len(cur))
						n = min(n, len(cur)-at)
						if rnd.IntN(4) == 0 {
							clear(cur[at : at+n])
						} else {
							copy(cur[at:], noise(rnd.Uint64(), n))
						}
					}
				}
				p, _ := f.backup(t, &memDisk{p: cur}, repository.BeginOptions{Full: round == 25})
				points = append(points, p)
				images = append(images, bytes.Clone(cur))
			}
			r := f.open(t) // nothing but the store
			listed, err := r.Points(t.Context(), f.machine.ID)
			if err != nil || len(listed) != len(points) {
				t.Fatalf("%d points listed, %d made: %v", len(listed), len(points), err)
			}
			for i, p := range listed {
				if p.ID != points[i].ID {
					t.Fatalf("point %d is %s, made %s", i, p.ID, points[i].ID)
				}
				if !bytes.Equal(content(t, r, p), images[i]) {
					t.Fatalf("point %d differs from what was backed up", i)
				}
			}
		})
	}
}

func TestUnchangedStoresNothing(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(3, 9<<20)}
	f.backup(t, d, repository.BeginOptions{})
	_, m := f.backup(t, d, repository.BeginOptions{})
	if s := m.Disks[0].Stats; s.Stored != 0 || s.Map != 0 || s.Changed != 0 || s.Read != 9<<20 {
		t.Fatalf("an unchanged disk cost %+v", s)
	}
}

func TestOnlyChangedPagesAreStored(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(3, 64<<20)}
	f.backup(t, d, repository.BeginOptions{})
	for i := range 20 {
		copy(d.p[i*3<<20+i*4096:], noise(uint64(i), 4096))
	}
	_, m := f.backup(t, d, repository.BeginOptions{})
	s := m.Disks[0].Stats
	if s.Changed != 20*4096 {
		t.Errorf("changed %d, want %d", s.Changed, 20*4096)
	}
	if s.Stored < s.Changed || s.Stored > s.Changed+4*(4096+2048) {
		t.Errorf("stored %d for %d changed", s.Stored, s.Changed)
	}
}

func TestUnread(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(4, 8<<20), bad: map[int64]bool{300: true, 301: true, 2047: true}}
	if _, _, err := backup(f.repo, f.machine.ID, d, repository.BeginOptions{}); !errors.Is(err, errBadSector) {
		t.Fatalf("a bad sector gives %v", err)
	}
	if ps, _ := f.repo.Points(t.Context(), f.machine.ID); len(ps) != 0 {
		t.Fatal("a failed backup is listed")
	}
	p, m := f.backup(t, d, repository.BeginOptions{Unread: true})
	want := []disk.Range{{Offset: 300 * 4096, Length: 8192}, {Offset: 2047 * 4096, Length: 4096}}
	if got := m.Disks[0].Unread; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Fatalf("unread %v, want %v", got, want)
	}
	img := bytes.Clone(d.p)
	for page := range d.bad {
		clear(img[page*4096 : (page+1)*4096])
	}
	if !bytes.Equal(content(t, f.repo, p), img) {
		t.Fatal("an incomplete recovery point reads otherwise")
	}
	d.bad = nil // the next run reads what was unread
	p, m = f.backup(t, d, repository.BeginOptions{})
	if len(m.Disks[0].Unread) != 0 || !bytes.Equal(content(t, f.repo, p), d.p) {
		t.Fatal("unread pages were inherited")
	}
	if m.Disks[0].Stats.Changed != 3*4096 {
		t.Fatalf("%d bytes changed", m.Disks[0].Stats.Changed)
	}
}

func TestHoles(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: make([]byte, 200<<20+5)}
	copy(d.p[150<<20:], noise(1, 100))
	d.skip = []disk.Range{{Offset: 0, Length: 150 << 20}, {Offset: 151 << 20, Length: 49<<20 + 5}}
	p, m := f.backup(t, d, repository.BeginOptions{})
	if m.Disks[0].Stats.Read > 4<<20 {
		t.Errorf("%d bytes of holes were read", m.Disks[0].Stats.Read)
	}
	if !bytes.Equal(content(t, f.repo, p), d.p) {
		t.Fatal("content differs")
	}
	r, err := f.repo.OpenDisk(t.Context(), f.machine.ID, m.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if g, err := r.NextData(0); err != nil || g.Offset != 150<<20 || g.Length != 65536 {
		t.Errorf("next data %v %v", g, err)
	}
	d.skip = nil
	copy(d.p[len(d.p)-5:], "tail!") // of a block that the disk's end cuts
	_, m = f.backup(t, d, repository.BeginOptions{})
	if r, err = f.repo.OpenDisk(t.Context(), f.machine.ID, m.Disks[0]); err != nil {
		t.Fatal(err)
	}
	if g, err := r.NextData(151 << 20); err != nil || g.Offset != 200<<20 || g.Length != 5 {
		t.Errorf("the tail is %v %v", g, err)
	}
	if _, err := r.NextData(r.Size()); !errors.Is(err, io.EOF) {
		t.Errorf("behind the data: %v", err)
	}
}

func TestEmptyDisk(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	for _, n := range []int{0, 1, 65536} {
		p, _ := f.backup(t, &memDisk{p: make([]byte, n)}, repository.BeginOptions{})
		if got := content(t, f.repo, p); len(got) != n {
			t.Fatalf("%d bytes come back from %d", len(got), n)
		}
	}
}

func TestTwoWriters(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 3<<20)}
	f.backup(t, d, repository.BeginOptions{})
	other := f.open(t)
	begin := func(r *repository.Repository) *repository.PointWriter {
		w, err := r.Begin(t.Context(), f.machine.ID, repository.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	commit := func(w *repository.PointWriter) error {
		dd, err := w.WriteDisk(t.Context(), repository.DiskInput{ID: "vda", Source: d})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Commit(t.Context(), &repository.Manifest{Disks: []repository.Disk{dd}})
		return err
	}
	a, b := begin(f.repo), begin(other)
	if err := commit(a); err != nil {
		t.Fatal(err)
	}
	if err := commit(b); !errors.Is(err, repository.ErrConflict) {
		t.Fatalf("a second commit on the same parent gives %v", err)
	}
	// The deletion of another recovery point does not disturb a writer, that of its parent does.
	ps, _ := f.repo.Points(t.Context(), f.machine.ID)
	c := begin(f.repo)
	if err := other.Delete(t.Context(), f.machine.ID, ps[0].ID, "test"); err != nil {
		t.Fatal(err)
	}
	if err := commit(c); err != nil {
		t.Fatal(err)
	}
	e := begin(f.repo)
	if err := other.Delete(t.Context(), f.machine.ID, e.Parent().Point, "test"); err != nil {
		t.Fatal(err)
	}
	if err := commit(e); !errors.Is(err, repository.ErrConflict) {
		t.Fatalf("a commit on a deleted parent gives %v", err)
	}
	if ps, _ = f.repo.Points(t.Context(), f.machine.ID); len(ps) != 1 {
		t.Fatalf("%d points are listed", len(ps))
	}
}

func TestResume(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 200<<20), bad: map[int64]bool{(199 << 20) / 4096: true}}
	if _, _, err := backup(f.repo, f.machine.ID, d, repository.BeginOptions{}); err == nil {
		t.Fatal("the bad sector was not met")
	}
	d.bad = nil
	f.repo = f.open(t)
	p, m := f.backup(t, d, repository.BeginOptions{})
	if m.Disks[0].Stats.Reused < 150<<20 {
		t.Errorf("%d bytes of the interrupted attempt were used", m.Disks[0].Stats.Reused)
	}
	if !bytes.Equal(content(t, f.open(t), p), d.p) {
		t.Fatal("content differs")
	}
}

func TestHealsDamagedParent(t *testing.T) {
	mem := memstore.New()
	f := newFixture(t, mem, repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 4<<20)}
	p1, _ := f.backup(t, d, repository.BeginOptions{})
	flipIn(t, mem, "seg/", 4096+1000)
	f.repo = f.open(t)
	var de *repository.DamageError
	if _, err := readPoint(f.repo, p1); !errors.As(err, &de) || de.Disk != "vda" || de.Range.Length != 65536 {
		t.Fatalf("damage is reported as %v", err)
	}
	for i := 0; i < 4<<20; i += 65536 {
		d.p[i] ^= 1 // every block changes, none may be patched onto damaged content
	}
	p2, _ := f.backup(t, d, repository.BeginOptions{})
	if !bytes.Equal(content(t, f.repo, p2), d.p) {
		t.Fatal("content differs")
	}
}

// flipIn flips a bit of the first object below prefix.
func flipIn(tb testing.TB, mem *memstore.Store, prefix string, at int) {
	tb.Helper()
	done := false
	err := mem.List(context.Background(), prefix, func(i store.Info) error {
		if done {
			return nil
		}
		done = true
		return mem.Replace(i.Key, func(p []byte) { p[at] ^= 0x10 })
	})
	if err != nil || !done {
		tb.Fatalf("flip below %s: %v", prefix, err)
	}
}

func TestUnlock(t *testing.T) {
	st := memstore.New()
	f := newFixture(t, st, repository.SealingAESGCM)
	if err := f.repo.AddHolder(t.Context(), repository.NewHolder{Name: "pass", Passphrase: envelope.CopySecret([]byte("correct horse")), WorkFactor: 10}); err != nil {
		t.Fatal(err)
	}
	open := func(u repository.Unlocker) error {
		_, err := repository.Open(t.Context(), st, repository.OpenOptions{Unlock: u})
		return err
	}
	if err := open(repository.Unlocker{Passphrase: envelope.CopySecret([]byte("correct horse"))}); err != nil {
		t.Errorf("the passphrase does not open: %v", err)
	}
	if err := open(repository.Unlocker{Passphrase: envelope.CopySecret([]byte("wrong"))}); !errors.Is(err, repository.ErrNoKey) {
		t.Errorf("a wrong passphrase gives %v", err)
	}
	if err := open(repository.Unlocker{}); !errors.Is(err, repository.ErrNoKey) {
		t.Errorf("no key gives %v", err)
	}
	other, _, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if err := open(repository.Unlocker{Identities: other}); !errors.Is(err, repository.ErrNoKey) {
		t.Errorf("another identity gives %v", err)
	}
}
