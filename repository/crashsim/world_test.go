package crashsim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// keys are what all worlds share: making them takes longer than a world lives.
type keys struct {
	writer, custodian envelope.SigningKey
	prover            envelope.PublicKey
	recipient         string
	identity          envelope.Secret
}

var sharedKeys = sync.OnceValue(func() (k keys) {
	for _, key := range []struct {
		at   *envelope.SigningKey
		role string
	}{{&k.writer, envelope.RoleWriter}, {&k.custodian, envelope.RoleCustodian}} {
		made, err := envelope.GenerateSigningKey(key.role)
		if err != nil {
			panic(err)
		}
		*key.at = made
	}
	prover, err := envelope.GenerateSigningKey(envelope.RoleProver)
	if err != nil {
		panic(err)
	}
	k.prover = prover.Public()
	if k.identity, k.recipient, err = envelope.GenerateIdentity(); err != nil {
		panic(err)
	}
	return k
})

const machine = "0123456789abcdef0123456789abcdef"

// side is one of the two repositories and what was acknowledged of it.
type side struct {
	mem     *memstore.Store
	listed  map[string]int  // acknowledged recovery points → version of the disk
	gone    map[string]bool // acknowledged deletions
	unknown map[string]bool // deletions begun whose end nobody heard of
}

func (s *side) clone() *side {
	return &side{s.mem.Clone(), cloneMap(s.listed), cloneMap(s.gone), cloneMap(s.unknown)}
}

func cloneMap[V any](m map[string]V) map[string]V {
	c := make(map[string]V, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

// world is a machine that is backed up to one repository, which is copied to
// another; points are deleted and space is reclaimed in both.
type world struct {
	keys
	versions [][]byte
	a, b     *side
	tried    map[string]int // every recovery point ever begun → version
	serial   int            // of attempts
	ctx      context.Context
}

func (w *world) clone() *world {
	c := *w
	c.a, c.b, c.tried = w.a.clone(), w.b.clone(), cloneMap(w.tried)
	return &c
}

// source is a disk in memory.
type source struct{ p []byte }

func (s source) Size() int64 { return int64(len(s.p)) }

func (s source) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(s.p).ReadAt(p, off) }

func (s source) NextData(off int64) (disk.Range, error) {
	if off >= int64(len(s.p)) {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: int64(len(s.p)) - off}, nil
}

// newWorld makes both repositories and the versions that the disk will have.
func newWorld(t testing.TB, rnd *rand.Rand, versions int) *world {
	t.Helper()
	ctx := context.Background()
	w := &world{keys: sharedKeys(), tried: map[string]int{}, ctx: context.Background()}
	for _, s := range []**side{&w.a, &w.b} {
		*s = &side{memstore.New(), map[string]int{}, map[string]bool{}, map[string]bool{}}
		_, _, err := repository.Create(ctx, (*s).mem, repository.CreateOptions{
			Writer: w.writer.Public(), Prover: w.prover, Custodian: w.custodian,
			Holders: []repository.NewHolder{{Name: "recovery", Recipient: w.recipient}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.open(w.a.mem)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.CreateMachine(ctx, machine, "vm"); err != nil {
		t.Fatal(err)
	}
	now := noise(rnd, 7*65536+4096*rnd.IntN(16)+rnd.IntN(4096))
	for range versions {
		w.versions = append(w.versions, bytes.Clone(now))
		for range 1 + rnd.IntN(12) {
			at := rnd.IntN(len(now)/4096) * 4096
			switch rnd.IntN(5) {
			case 0: // a block becomes zeroes
				clear(now[at:min(at+65536, len(now))])
			case 1: // it grows, once into the next leaf
				if len(now) < 1<<20 && rnd.IntN(8) == 0 {
					now = append(now, make([]byte, 2<<20)...)
				}
				now = append(now, noise(rnd, 1+rnd.IntN(40000))...)
			case 2: // it shrinks
				now = now[:max(len(now)*2/3, 65536)]
			default:
				copy(now[at:], noise(rnd, 4096*(1+rnd.IntN(20))))
			}
		}
	}
	return w
}

func noise(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := rnd.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

func (w *world) open(st store.Store) (*repository.Repository, error) {
	return repository.Open(w.ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: w.identity}, Writer: &w.writer})
}

// step is one operation of a user. It can be tried again after a crash.
type step struct {
	name string
	run  func(w *world, a, b store.Store) error
}

// backup makes a recovery point of a version, or leaves off before the commit.
func backup(version int, unfinished bool) step {
	name := fmt.Sprintf("backup of version %d", version)
	if unfinished {
		name += ", given up"
	}
	return step{name, func(w *world, a, _ store.Store) error {
		ctx := w.ctx
		for id, v := range w.a.listed {
			if v == version && !unfinished && w.tried[id] == v {
				return nil // it was done before the crash
			}
		}
		r, err := w.open(a)
		if err != nil {
			return err
		}
		defer r.Close()
		w.serial++
		id := fmt.Sprintf("%028x%04x", version, w.serial)
		w.tried[id] = version
		p, err := r.Begin(ctx, machine, repository.BeginOptions{PointID: id, Full: version%7 == 6})
		if err != nil {
			return err
		}
		src := source{w.versions[version]}
		d, err := p.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: src})
		if err != nil {
			p.Abort()
			return err
		}
		if err := p.FinishMaps(); err != nil {
			p.Abort()
			return err
		}
		if unfinished {
			p.Abort()
			return nil
		}
		hid, err := p.PutHeader(ctx, []disk.Range{{Offset: 0, Length: 512}}, 4096, bytes.NewReader(src.p))
		if err != nil {
			p.Abort()
			return err
		}
		d.Headers = []repository.HeaderRef{{Volume: "vda/whole", ID: hid}}
		if _, err := p.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{d}}); err != nil {
			p.Abort()
			return err
		}
		w.a.listed[id] = version
		_, err = r.PutSidecar(ctx, machine, id, repository.SidecarTag, []byte("tag of "+id))
		return err
	}}
}

// remove deletes the nth of the listed recovery points, never the newest.
func remove(n int, there bool) step {
	which := "a"
	if there {
		which = "b"
	}
	return step{fmt.Sprintf("delete number %d in %s", n, which), func(w *world, a, b store.Store) error {
		ctx := w.ctx
		st, s := a, w.a
		if there {
			st, s = b, w.b
		}
		r, err := w.open(st)
		if err != nil {
			return err
		}
		defer r.Close()
		points, err := r.Points(ctx, machine)
		if there && errors.Is(err, repository.ErrNotFound) {
			return nil // nothing was copied yet
		}
		if err != nil || len(points) < 2 || len(s.unknown) > 0 {
			s.unknown = map[string]bool{} // check has seen how the one before ended
			return err
		}
		id := points[n%(len(points)-1)].ID
		s.unknown[id] = true
		if err := r.Delete(ctx, machine, id, "test"); err != nil {
			return err
		}
		delete(s.unknown, id)
		s.gone[id] = true
		return nil
	}}
}

// reclaim frees what nothing needs.
func reclaim(o repository.ReclaimOptions, there bool) step {
	which := "a"
	if there {
		which = "b"
	}
	return step{fmt.Sprintf("reclaim in %s %+v", which, o.Unfinished), func(w *world, a, b store.Store) error {
		st := a
		if there {
			st = b
		}
		r, err := w.open(st)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.Reclaim(w.ctx, machine, o)
		if there && errors.Is(err, repository.ErrNotFound) {
			return nil
		}
		return err
	}}
}

// copyOver copies from a to b what is not there.
func copyOver() step {
	return step{"copy", func(w *world, a, b store.Store) error {
		ctx := w.ctx
		src, err := w.open(a)
		if err != nil {
			return err
		}
		defer src.Close()
		dst, err := w.open(b)
		if err != nil {
			return err
		}
		defer dst.Close()
		res, err := copies.Copy(ctx, src, dst, machine, copies.Options{Custodian: &w.custodian})
		if err != nil {
			return err
		}
		if len(res.Failed) > 0 {
			return res.Failed[0].Err
		}
		points, err := src.Points(ctx, machine)
		if err != nil {
			return err
		}
		for _, p := range points {
			if v, ok := w.tried[p.ID]; ok && !w.b.gone[p.ID] {
				w.b.listed[p.ID] = v
			}
		}
		return nil
	}}
}

// script is a life of steps, drawn from rnd.
func script(rnd *rand.Rand, backups int) []step {
	var steps []step
	for v := range backups {
		if rnd.IntN(4) == 0 {
			steps = append(steps, backup((v+1)%backups, true))
		}
		steps = append(steps, backup(v, false))
		if rnd.IntN(2) == 0 {
			steps = append(steps, copyOver())
		}
		for range rnd.IntN(3) {
			steps = append(steps, remove(rnd.IntN(8), false))
		}
		if rnd.IntN(3) == 0 {
			steps = append(steps, remove(rnd.IntN(8), true))
		}
		o := repository.ReclaimOptions{Unfinished: rnd.IntN(5) == 0, MaxDead: 0.2, Recount: rnd.IntN(6) == 0}
		if rnd.IntN(2) == 0 {
			steps = append(steps, reclaim(o, false))
		}
		if rnd.IntN(2) == 0 {
			steps = append(steps, reclaim(o, true))
		}
	}
	return append(steps, copyOver(), reclaim(repository.ReclaimOptions{}, false), reclaim(repository.ReclaimOptions{}, true))
}

// check opens both repositories as the next process would and compares them
// with what was acknowledged. What nobody heard of may be there or not.
func (w *world) check() error {
	for name, s := range map[string]*side{"a": w.a, "b": w.b} {
		if err := w.checkSide(s, name == "b"); err != nil {
			return fmt.Errorf("repository %s: %w", name, err)
		}
	}
	return nil
}

func (w *world) checkSide(s *side, copied bool) error {
	ctx := context.Background()
	r, err := w.open(s.mem)
	if err != nil {
		return err
	}
	defer r.Close()
	points, err := r.Points(ctx, machine)
	if errors.Is(err, repository.ErrNotFound) && copied && len(s.listed) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, p := range points {
		there[p.ID] = true
		v, ok := w.tried[p.ID]
		if !ok || s.gone[p.ID] {
			return fmt.Errorf("recovery point %s is listed", p.ID)
		}
		m, err := r.Manifest(ctx, p)
		if err != nil {
			return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
		}
		d, err := r.OpenDisk(ctx, machine, m.Disks[0])
		if err != nil {
			return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
		}
		got := make([]byte, d.Size())
		if n, err := d.ReadAt(got, 0); n != len(got) {
			return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
		}
		if !bytes.Equal(got, w.versions[v]) {
			return fmt.Errorf("recovery point %s is not what was backed up", p.ID)
		}
		for _, h := range m.Disks[0].Headers {
			if err := r.CheckHeader(ctx, machine, h.ID); err != nil {
				return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
			}
		}
		s.listed[p.ID] = v
	}
	for id := range s.listed {
		if !there[id] && !s.gone[id] && !s.unknown[id] {
			return fmt.Errorf("recovery point %s was acknowledged and is not listed", id)
		}
	}
	for id := range s.unknown {
		if !there[id] {
			s.gone[id] = true
		}
	}
	s.unknown = map[string]bool{}
	return nil
}
