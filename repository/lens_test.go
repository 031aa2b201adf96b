package repository_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// lens opens and makes objects of a repository by docs/spec/repository.md
// alone: what a test wants to see or to forge goes past the code under test.
type lens struct {
	dek               [32]byte
	machine           string
	metadata, content envelope.Secret
}

func newLens(tb testing.TB, st store.Store, identity envelope.Secret, machine string) *lens {
	tb.Helper()
	l := &lens{machine: machine}
	var holder struct{ Wrapped []byte }
	l.unframe(tb, st, "keys/recovery", 2, nil, &holder)
	dek, err := envelope.OpenWithIdentities(holder.Wrapped, identity)
	if err != nil {
		tb.Fatal(err)
	}
	copy(l.dek[:], dek.Expose())
	var rec struct{ Metadata, Content string }
	l.unframe(tb, st, "machines/"+machine+"/key", 4, &l.dek, &rec)
	secret := func(s string) envelope.Secret {
		p, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(p) != 32 {
			tb.Fatalf("machine record: %d bytes, %v", len(p), err)
		}
		return envelope.NewSecret(p)
	}
	l.metadata, l.content = secret(rec.Metadata), secret(rec.Content)
	return l
}

func (l *lens) unframe(tb testing.TB, st store.Store, key string, kind uint16, k *[32]byte, into any) {
	tb.Helper()
	raw, err := store.GetAll(context.Background(), st, key, 64<<20)
	if err != nil {
		tb.Fatal(err)
	}
	body, err := envelope.OpenFrame(raw, kind, k, []byte(key))
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(body, into); err != nil {
		tb.Fatal(err)
	}
}

// key derives one of the machine's keys.
func (l *lens) key(purpose string) *[32]byte {
	mid, err := hex.DecodeString(l.machine)
	if err != nil {
		panic(err)
	}
	return (*[32]byte)(envelope.DeriveKey(l.metadata, "lockstep repository 1 "+purpose, mid).Expose())
}

// payload opens a sealed, signed object and gives what was signed.
func (l *lens) payload(tb testing.TB, st store.Store, key string, kind uint16, into any) {
	tb.Helper()
	raw, err := store.GetAll(context.Background(), st, key, 64<<20)
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := envelope.OpenFrame(raw, kind, l.key("metadata"), []byte(key))
	if err != nil {
		tb.Fatal(err)
	}
	d, err := envelope.ParseDSSE(signed)
	if err != nil {
		tb.Fatal(err)
	}
	if err := json.Unmarshal(d.Payload, into); err != nil {
		tb.Fatal(err)
	}
}

// forge makes a sealed, signed object.
func (l *lens) forge(tb testing.TB, key string, kind uint16, payloadType string, body any, signer envelope.SigningKey) []byte {
	tb.Helper()
	p, err := json.Marshal(body)
	if err != nil {
		tb.Fatal(err)
	}
	signed, err := envelope.Sign("application/vnd.lockstep."+payloadType+"+json", p, signer)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := envelope.SealFrame(kind, l.key("metadata"), []byte(key), signed)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// replace puts other bytes at a key, as a store that lies would.
func replace(tb testing.TB, mem *memstore.Store, key string, p []byte) {
	tb.Helper()
	if err := mem.Corrupt(key, func([]byte) []byte { return p }); err != nil {
		tb.Fatal(err)
	}
}

func put(tb testing.TB, st store.Store, key string, p []byte) {
	tb.Helper()
	if err := st.Put(context.Background(), key, p); err != nil {
		tb.Fatal(err)
	}
}

func get(tb testing.TB, st store.Store, key string) []byte {
	tb.Helper()
	raw, err := store.GetAll(context.Background(), st, key, 1<<30)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

func allKeys(tb testing.TB, st store.Store, prefix string) (keys []string) {
	tb.Helper()
	if err := st.List(context.Background(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		tb.Fatal(err)
	}
	return keys
}

// kindOf is an object's kind for tables: the first part of its key.
func kindOf(key string) string {
	rest, twin := strings.CutPrefix(key, "copies/")
	kind, _, _ := strings.Cut(rest, "/")
	if twin {
		return "copies/" + kind
	}
	return kind
}

// memKEK is a KEK in memory.
type memKEK struct{ key envelope.Secret }

func (k memKEK) ID() string { return "test/kek" }
func (k memKEK) Wrap(_ context.Context, key envelope.Secret, about []byte) ([]byte, error) {
	return envelope.WrapKey(k.key, key, about)
}

func (k memKEK) Unwrap(_ context.Context, wrapped, about []byte) (envelope.Secret, error) {
	return envelope.UnwrapKey(k.key, wrapped, about)
}

// sample is a small repository with one of everything.
type sample struct {
	*fixture
	mem    *memstore.Store
	points []repository.Point // listed ones, in order
	images map[string][]byte  // by point and disk
	header string             // id of the stored header copies
	gone   repository.Point   // the one that was taken off the list
}

const (
	headerSize = 4096
	twoUnits   = 2<<20 + 65536 // a disk whose map has an inner node
)

func imageKey(point, disk string) string { return point + "/" + disk }

// newSample makes four recovery points of two disks, takes one off the list,
// and adds header copies, sidecars of each kind and holders of each kind.
func newSample(tb testing.TB, sealing string) *sample {
	tb.Helper()
	mem := memstore.New()
	s := &sample{mem: mem, fixture: newFixture(tb, mem, sealing), images: map[string][]byte{}}
	ctx := context.Background()
	kek, err := envelope.NewKey()
	if err != nil {
		tb.Fatal(err)
	}
	for _, h := range []repository.NewHolder{
		{Name: "pass", Passphrase: envelope.CopySecret([]byte("pass")), WorkFactor: 2},
		{Name: "kek", KEK: memKEK{kek}},
	} {
		if err := s.repo.AddHolder(ctx, h); err != nil {
			tb.Fatal(err)
		}
	}
	// Small disks: what is tested is every kind of object, not volume.
	vda := make([]byte, 3*65536+5000)
	copy(vda, noise(1, 2*4096))
	copy(vda[65536:], noise(2, 65536))
	copy(vda[3*65536:], noise(3, 5000))
	vdb := make([]byte, twoUnits)
	copy(vdb[8192:], noise(4, 4096))
	copy(vdb[2<<20+4096:], noise(5, 100))
	holes := []disk.Range{{Offset: 65536, Length: 2<<20 - 65536}}
	all := make([]repository.Point, 4)
	for i := range all {
		switch i {
		case 1: // pages of a whole block: several extents
			copy(vda[65536+3*4096:], noise(10, 4096))
			copy(vda[100:], noise(11, 10))
		case 2:
			copy(vda[65536+9*4096:], noise(12, 2*4096))
			copy(vdb[2<<20+4096:], noise(13, 200))
		case 3:
			clear(vda[65536+3*4096 : 65536+5*4096])
			vda = append(vda, noise(14, 4096)...)
		}
		d := []namedDisk{{"vda", &memDisk{p: vda}}, {"vdb", &memDisk{p: vdb, skip: holes}}}
		if i == 3 {
			d[0].disk.bad = map[int64]bool{17: true}
		}
		all[i] = s.backupAll(tb, d)
		s.images[imageKey(all[i].ID, "vda")] = bytes.Clone(vda)
		s.images[imageKey(all[i].ID, "vdb")] = bytes.Clone(vdb)
		if i == 3 {
			clear(s.images[imageKey(all[i].ID, "vda")][17*4096 : 18*4096])
		}
	}
	if err := s.repo.Delete(ctx, s.machine.ID, all[1].ID, "test"); err != nil {
		tb.Fatal(err)
	}
	s.gone = all[1]
	s.points = []repository.Point{all[0], all[2], all[3]}
	for i, kind := range []string{
		repository.SidecarProof, repository.SidecarKeyPackage, repository.SidecarHeaderPackage,
		repository.SidecarDeclaration, repository.SidecarCertificate, repository.SidecarTag,
	} {
		for _, pid := range []string{s.points[i%3].ID, repository.MachineSidecars} {
			signed, err := envelope.Sign("application/vnd.lockstep.test+json", []byte(fmt.Sprintf(`{"kind":%q,"point":%q}`, kind, pid)), s.writer)
			if err != nil {
				tb.Fatal(err)
			}
			if _, err := s.repo.PutSidecar(ctx, s.machine.ID, pid, kind, signed); err != nil {
				tb.Fatal(err)
			}
		}
	}
	return s
}

var ctxBackground = context.Background()

type namedDisk struct {
	id   string
	disk *memDisk
}

// backupAll makes a recovery point of several disks with a header copy.
func (s *sample) backupAll(tb testing.TB, disks []namedDisk) repository.Point {
	tb.Helper()
	p, hid, err := backupDisks(s.repo, s.machine.ID, disks)
	if err != nil {
		tb.Fatal(err)
	}
	s.header = hid
	return p
}

// backupDisks does what package backup does, without looking for volumes.
func backupDisks(r *repository.Repository, mid string, disks []namedDisk) (p repository.Point, hid string, err error) {
	ctx := context.Background()
	w, err := r.Begin(ctx, mid, repository.BeginOptions{Unread: true})
	if err != nil {
		return p, "", err
	}
	defer func() {
		if err != nil {
			w.Abort()
		}
	}()
	mf := &repository.Manifest{Time: time.Now(), Consistency: "crash-consistent", Software: "test"}
	for _, d := range disks {
		dd, err := w.WriteDisk(ctx, repository.DiskInput{ID: d.id, Source: d.disk, Unreadable: func(err error) bool { return err == errBadSector }}) //nolint:errorlint // the double's own
		if err != nil {
			return p, "", err
		}
		mf.Disks = append(mf.Disks, dd)
	}
	if err := w.FinishMaps(); err != nil {
		return p, "", err
	}
	rd, err := w.OpenDisk(ctx, mf.Disks[0])
	if err != nil {
		return p, "", err
	}
	defer rd.Close()
	hid, err = w.PutHeader(ctx, []disk.Range{{Offset: 0, Length: 512}, {Offset: 1024, Length: 100}}, headerSize, rd)
	if err != nil {
		return p, "", err
	}
	mf.Disks[0].Headers = []repository.HeaderRef{{Volume: "vda/whole", ID: hid}}
	p, err = w.Commit(ctx, mf)
	return p, hid, err
}

func (s *sample) openReader(st store.Store) (*repository.Repository, error) {
	return repository.Open(context.Background(), st, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: s.identity}, TrustRoot: s.trust,
	})
}

// readDisk reads a disk with ReadAt, which for small ones is cheaper than Scan.
func readDisk(r *repository.Repository, m *repository.Manifest, d repository.Disk) ([]byte, error) {
	rd, err := r.OpenDisk(context.Background(), m.Machine, d)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	out := make([]byte, rd.Size())
	if n, err := rd.ReadAt(out, 0); n != len(out) {
		return nil, err
	}
	return out, nil
}

// scanDisk reads a disk as a restore does.
func scanDisk(r *repository.Repository, m *repository.Manifest, d repository.Disk) ([]byte, error) {
	rd, err := r.OpenDisk(context.Background(), m.Machine, d)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	out := bytes.Repeat([]byte{0xee}, int(rd.Size()))
	whole, err := rd.Scan(context.Background(), repository.ScanOptions{
		Data: func(off int64, p []byte) error { copy(out[off:], p); return nil },
		Zero: func(off, n int64) error { clear(out[off : off+n]); return nil },
	})
	if err == nil && !whole {
		err = fmt.Errorf("scan of %s is not whole", d.ID)
	}
	return out, err
}

// restoreAll reads everything that a repository lists and compares it: any
// error is a detection, wrong content is what must never be. extra are the
// recovery points that may be listed or not.
func (s *sample) restoreAll(st store.Store, read func(*repository.Repository, *repository.Manifest, repository.Disk) ([]byte, error)) (detected, wrong error) {
	r, err := s.openReader(st)
	if err != nil {
		return err, nil
	}
	defer r.Close()
	ctx := context.Background()
	points, err := r.Points(ctx, s.machine.ID)
	if err != nil {
		detected = err
	}
	if detected == nil && len(points) != len(s.points) {
		return nil, fmt.Errorf("%d recovery points are listed without an error, %d are there", len(points), len(s.points))
	}
	for _, p := range points {
		m, err := r.Manifest(ctx, p)
		if err != nil {
			detected = err
			continue
		}
		for _, d := range m.Disks {
			got, err := read(r, m, d)
			if err != nil {
				detected = err
				continue
			}
			if want := s.images[imageKey(p.ID, d.ID)]; want == nil && detected == nil || want != nil && !bytes.Equal(got, want) {
				return detected, fmt.Errorf("disk %s of point %s (sequence %d) reads otherwise", d.ID, p.ID, p.Sequence)
			}
		}
	}
	return detected, nil
}

func TestSampleIsWhole(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		s := newSample(t, sealing)
		detected, wrong := s.restoreAll(s.mem, scanDisk)
		if detected != nil || wrong != nil {
			t.Fatal(detected, wrong)
		}
		for _, key := range allKeys(t, s.mem, "") {
			if err := repository.CheckStored(t.Context(), s.mem, key); err != nil {
				t.Errorf("%s: %v", key, err)
			}
			if err := s.repo.CheckObject(t.Context(), key); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
}

func sha256Of(p []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(p)) }

// sealed makes an object that is one frame.
func sealed(tb testing.TB, kind uint16, k *[32]byte, key string, body []byte) []byte {
	tb.Helper()
	raw, err := envelope.SealFrame(kind, k, []byte(key), body)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}
