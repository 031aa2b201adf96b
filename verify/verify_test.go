package verify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/verify"
)

const block = 65536

type memDisk []byte

func (d memDisk) Size() int64 { return int64(len(d)) }
func (d memDisk) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, d[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d memDisk) NextData(off int64) (disk.Range, error) {
	if off >= int64(len(d)) {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: int64(len(d)) - off}, nil
}

func noise(seed byte, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// two is a repository with two machines of two disks. Of the first machine,
// block 1 of vda lives in points 0 and 1, block 5 of vda in 0 only; point 3 is
// like 2.
type two struct {
	mem      *memstore.Store
	repo     *repository.Repository
	identity envelope.Secret
	machines [2]repository.Machine
	points   [2][]repository.Point
	header   string
	known    []verify.Expected
}

func newTwo(t *testing.T) *two {
	t.Helper()
	ctx := t.Context()
	w := &two{mem: memstore.New()}
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
	w.identity = id
	if _, _, err := repository.Create(ctx, w.mem, repository.CreateOptions{
		Writer: keys["writer"].Public(), Prover: keys["prover"].Public(), Custodian: keys["custodian"],
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient}},
	}); err != nil {
		t.Fatal(err)
	}
	writer := keys["writer"]
	r, err := repository.Open(ctx, w.mem, repository.OpenOptions{Unlock: repository.Unlocker{Identities: id}, Writer: &writer})
	if err != nil {
		t.Fatal(err)
	}
	w.repo = r
	for i, name := range []string{"vm1", "vm2"} {
		if w.machines[i], err = r.CreateMachine(ctx, "", name); err != nil {
			t.Fatal(err)
		}
		vda, vdb := noise(byte(10*i), 8*block), noise(byte(10*i+1), 3*block)
		for n := range 4 {
			switch n {
			case 1:
				copy(vda[5*block:], noise(99, block))
			case 2:
				copy(vda[1*block:], noise(98, block))
			}
			w.points[i] = append(w.points[i], w.backup(t, i, vda, vdb))
		}
	}
	return w
}

func (w *two) backup(t *testing.T, machine int, disks ...[]byte) repository.Point {
	t.Helper()
	ctx := t.Context()
	mid := w.machines[machine].ID
	pw, err := w.repo.Begin(ctx, mid, repository.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mf := &repository.Manifest{}
	for i, p := range disks {
		d, err := pw.WriteDisk(ctx, repository.DiskInput{ID: fmt.Sprintf("vd%c", 'a'+i), Source: memDisk(p)})
		if err != nil {
			t.Fatal(err)
		}
		mf.Disks = append(mf.Disks, d)
	}
	if w.header, err = pw.PutHeader(ctx, []disk.Range{{Offset: 0, Length: 512}}, 4096, memDisk(disks[0])); err != nil {
		t.Fatal(err)
	}
	mf.Disks[0].Headers = []repository.HeaderRef{{Volume: "vda/whole", ID: w.header}}
	p, err := pw.Commit(ctx, mf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.repo.PutSidecar(ctx, mid, p.ID, repository.SidecarTag, []byte("tag")); err != nil {
		t.Fatal(err)
	}
	return p
}

// run verifies with a reader that knows the store only.
func (w *two) run(t *testing.T, st store.Store, points ...repository.Point) (verify.Result, error) {
	t.Helper()
	r := w.open(t, st)
	defer r.Close()
	return verify.Run(t.Context(), verify.Request{Repository: r, Points: points})
}

func (w *two) open(t *testing.T, st store.Store) *repository.Repository {
	t.Helper()
	r, err := repository.Open(t.Context(), st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: w.identity}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (w *two) reader(t *testing.T) *repository.Repository { return w.open(t, w.mem) }

func (w *two) keys(t *testing.T, prefix string) (keys []string) {
	t.Helper()
	if err := w.mem.List(t.Context(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	return keys
}

func (w *two) key(t *testing.T, prefix string) string {
	t.Helper()
	var keys []string
	if err := w.mem.List(t.Context(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil || len(keys) == 0 {
		t.Fatalf("nothing below %s: %v", prefix, err)
	}
	return keys[0]
}

// segment finds the segment of point n that holds disk number d: they are
// written one disk after the other, so the larger first disk tells.
func (w *two) segment(t *testing.T, machine, n int, first bool) string {
	t.Helper()
	var best store.Info
	if err := w.mem.List(t.Context(), fmt.Sprintf("seg/%s/%08x/", w.machines[machine].ID, n), func(i store.Info) error {
		if best.Key == "" || (i.Size > best.Size) == first {
			best = i
		}
		return nil
	}); err != nil || best.Key == "" {
		t.Fatalf("no segment of point %d: %v", n, err)
	}
	return best.Key
}

func (w *two) flip(t *testing.T, key string, at int) {
	t.Helper()
	if err := w.mem.Replace(key, func(p []byte) {
		if at < 0 {
			at += len(p)
		}
		p[at] ^= 4
	}); err != nil {
		t.Fatal(err)
	}
}

// found is damage as a line, for tables.
func (w *two) found(d verify.Damage) string {
	names := map[string]string{w.machines[0].ID: "vm1", w.machines[1].ID: "vm2"}
	for m := range w.points {
		for i, p := range w.points[m] {
			names[p.ID] = fmt.Sprint(i)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", names[d.Machine], d.Disk)
	if d.Range != nil {
		fmt.Fprintf(&b, " %d+%d", d.Range.Offset/block, d.Range.Length/block)
	}
	points := []string{}
	for _, p := range d.Points {
		points = append(points, names[p])
	}
	slices.Sort(points)
	fmt.Fprintf(&b, " points %s", strings.Join(points, ","))
	return strings.Join(strings.Fields(b.String()), " ")
}

func TestSoundRepository(t *testing.T) {
	w := newTwo(t)
	res, err := w.run(t, w.mem)
	if err != nil || len(res.Damage) != 0 || res.Points != 8 {
		t.Fatalf("%+v, %v", res, err)
	}
	// Shared content is read once: 11 blocks of the first, and the changed ones.
	if want := int64(2 * (11 + 2) * block); res.Read < want || res.Read > want+8*2*block {
		t.Errorf("%d bytes were compared, %d are different ones", res.Read, want)
	}
	var objects int64
	if err := w.mem.List(t.Context(), "", func(store.Info) error { objects++; return nil }); err != nil || objects != res.Objects {
		t.Errorf("%d objects were looked at, %d are there: %v", res.Objects, objects, err)
	}
}

// TestDamageIsAttributed damages one thing at a time and compares every finding:
// machine, disk, range in blocks, and the recovery points it touches.
func TestDamageIsAttributed(t *testing.T) {
	page := func(block int) int { return 4096 * (1 + 16*block) }
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, w *two)
		want   []string
	}{
		{"block that two points share", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 0, true), page(1)+5) }, []string{"vm1 vda 1+1 points 0,1"}},
		{"block of one point", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 0, true), page(5)+4000) }, []string{"vm1 vda 5+1 points 0"}},
		{"block of all points", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 1, 0, true), page(7)) }, []string{"vm2 vda 7+1 points 0,1,2,3"}},
		{"block of the other disk", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 0, false), page(2)) }, []string{"vm1 vdb 2+1 points 0,1,2,3"}},
		{"block of a later point", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 2, true), page(0)+9) }, []string{"vm1 vda 1+1 points 2,3"}},
		{"segment missing", func(t *testing.T, w *two) { remove(t, w, w.segment(t, 0, 2, true)) }, []string{"vm1 vda 1+1 points 2,3"}},
		{"segment header", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 2, true), 100) }, []string{"vm1 points", "vm1 vda 1+1 points 2,3"}},
		{"segment's table of contents", func(t *testing.T, w *two) { w.flip(t, w.segment(t, 0, 2, true), -60) }, []string{"vm1 points"}},
		{"map of one point", func(t *testing.T, w *two) {
			w.flip(t, w.key(t, fmt.Sprintf("map/%s/00000001/", w.machines[0].ID)), 70)
		}, []string{"vm1 points", "vm1 vda 0+8 points 1"}},
		{"map missing", func(t *testing.T, w *two) {
			remove(t, w, w.key(t, fmt.Sprintf("map/%s/00000001/", w.machines[0].ID)))
		}, []string{"vm1 vda 0+8 points 1"}},
		{"manifest", func(t *testing.T, w *two) { w.flip(t, "points/"+w.machines[0].ID+"/"+w.points[0][2].ID, 50) }, []string{"vm1 points", "vm1 points 2"}},
		{"manifest missing", func(t *testing.T, w *two) { remove(t, w, "points/"+w.machines[0].ID+"/"+w.points[0][2].ID) }, []string{"vm1 points 2"}},
		{"log entry", func(t *testing.T, w *two) { w.flip(t, fmt.Sprintf("log/%s/%016x", w.machines[1].ID, 2), 50) }, []string{"vm2 points"}},
		{"log entry missing", func(t *testing.T, w *two) { remove(t, w, fmt.Sprintf("log/%s/%016x", w.machines[1].ID, 2)) }, []string{"vm2 points"}},
		{"header copy", func(t *testing.T, w *two) { w.flip(t, "headers-b/"+w.machines[1].ID+"/"+w.header, 50) }, []string{"vm2 points", "vm2 points 0,1,2,3"}},
		{"header copy missing", func(t *testing.T, w *two) { remove(t, w, "headers-a/"+w.machines[1].ID+"/"+w.header) }, []string{"vm2 points 0,1,2,3"}},
		{"sidecar", func(t *testing.T, w *two) {
			w.flip(t, w.key(t, "side/"+w.machines[0].ID+"/"+w.points[0][1].ID+"/"), 50)
		}, []string{"vm1 points"}},
		{"holder's second copy", func(t *testing.T, w *two) { w.flip(t, "copies/keys/recovery", 50) }, []string{"points"}},
		{"configuration's second copy", func(t *testing.T, w *two) { w.flip(t, "copies/config", 50) }, []string{"points"}},
		{"trust entry's second copy missing", func(t *testing.T, w *two) { remove(t, w, "copies/trust/0000000000000000") }, []string{"points"}},
		{"object of no kind", func(t *testing.T, w *two) {
			if err := w.mem.Put(t.Context(), "readme.txt", []byte("x")); err != nil {
				t.Fatal(err)
			}
		}, []string{"points"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwo(t)
			c.damage(t, w)
			res, err := w.run(t, w.mem)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string][]string{} // what is said of which place, by the points it names
			for _, d := range res.Damage {
				if d.Object == "" || d.Err == nil {
					t.Errorf("damage without object or cause: %+v", d)
				}
				line := w.found(d)
				place, points, _ := strings.Cut(line, "points")
				seen[place] = append(seen[place], strings.FieldsFunc(points, func(r rune) bool { return r == ',' || r == ' ' })...)
			}
			want := map[string][]string{}
			for _, line := range c.want {
				place, points, _ := strings.Cut(line, "points")
				want[place] = append(want[place], strings.FieldsFunc(points, func(r rune) bool { return r == ',' || r == ' ' })...)
			}
			for _, m := range []map[string][]string{seen, want} {
				for k := range m {
					slices.Sort(m[k])
					m[k] = slices.Compact(m[k])
				}
			}
			if fmt.Sprint(seen) != fmt.Sprint(want) {
				t.Errorf("found %v, want %v", seen, want)
				for _, d := range res.Damage {
					t.Logf("%s %s: %v", d.Object, w.found(d), d.Err)
				}
			}
		})
	}
}

func remove(t *testing.T, w *two, key string) {
	t.Helper()
	if err := w.mem.Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
}

// TestSomePoints verifies what was asked for only.
func TestSomePoints(t *testing.T) {
	w := newTwo(t)
	w.flip(t, w.segment(t, 0, 0, true), 4096*(1+16*1)) // points 0 and 1
	for i, damaged := range []bool{true, true, false, false} {
		res, err := w.run(t, w.mem, w.points[0][i])
		if err != nil || res.Points != 1 || (len(res.Damage) > 0) != damaged {
			t.Errorf("point %d: %+v, %v", i, res, err)
		}
	}
}

// TestFailingStore: not being able to look is no damage; a bad sector below one
// object is.
func TestFailingStore(t *testing.T) {
	w := newTwo(t)
	seg := w.segment(t, 0, 2, true)
	on := func(key string) bool { return key == seg }
	for _, c := range []struct {
		err    error
		damage bool
	}{{nil, false}, {fmt.Errorf("disk: %w", syscall.EIO), true}} {
		st := faultstore.New(w.mem, faultstore.Fail(faultstore.Read, 0, c.err).On(on))
		res, err := w.run(t, st)
		if (err == nil) != c.damage || (len(res.Damage) > 0) != c.damage {
			t.Errorf("a store that fails with %v: %v, %v", c.err, res.Damage, err)
		}
		st.AssertExercised(t)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := verify.Run(ctx, verify.Request{Repository: w.repo}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled verification says %v", err)
	}
}

// TestTooMuchDamage: the list is bounded.
func TestTooMuchDamage(t *testing.T) {
	w := newTwo(t)
	for i := range 10001 {
		if err := w.mem.Put(t.Context(), fmt.Sprintf("junk/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	res, err := w.run(t, w.mem)
	if !errors.Is(err, verify.ErrTooMuch) || len(res.Damage) != 10000 {
		t.Errorf("%d findings, %v", len(res.Damage), err)
	}
}
