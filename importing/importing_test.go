package importing_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/importing"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/image"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

var now = time.Date(2026, 3, 14, 2, 15, 0, 0, time.UTC)

type bench struct {
	backup.Deps
	machine catalog.Machine
	dir     string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	ctx := t.Context()
	b := &bench{dir: t.TempDir()}
	key := func(role string) envelope.SigningKey {
		k, err := envelope.GenerateSigningKey(role)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	writer := key("writer")
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	st := memstore.New()
	if _, _, err := repository.Create(ctx, st, repository.CreateOptions{
		Writer: writer.Public(), Prover: key("prover").Public(), Custodian: key("custodian"),
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient}},
	}); err != nil {
		t.Fatal(err)
	}
	if b.Catalog, err = sqlite.Open(ctx, filepath.Join(b.dir, "catalog.db"), sqlite.Options{Create: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Catalog.Maintenance.Close() })
	if b.Repository, err = repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: id}, Writer: &writer}); err != nil {
		t.Fatal(err)
	}
	if err := b.Catalog.Repositories.Put(ctx, catalog.Repository{ID: b.Repository.ID(), URL: "memory:"}); err != nil {
		t.Fatal(err)
	}
	b.Open = image.Opener{}.Open
	b.Now = func() time.Time { return now }
	b.machine = catalog.Machine{ID: "0123456789abcdef0123456789abcdef", Name: "old", Created: now}
	if err := b.Catalog.Machines.Put(ctx, b.machine); err != nil {
		t.Fatal(err)
	}
	return b
}

// image is an image of noise that differs from others in its beginning.
func (b *bench) image(t *testing.T, name string, seed byte) string {
	t.Helper()
	p := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(p)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p[:64<<10])
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (b *bench) run(t *testing.T, at time.Time, paths ...string) (backup.Result, error) {
	t.Helper()
	item := importing.Item{Time: at}
	for i, p := range paths {
		item.Images = append(item.Images, importing.Image{Disk: "vd" + string(rune('a'+i)), Path: p})
	}
	return importing.Run(t.Context(), b.Deps, importing.Request{Machine: b.machine, Item: item})
}

func TestImport(t *testing.T) {
	b := newBench(t)
	var ids []string
	for i, day := range []int{3, 4, 9} {
		at := time.Date(2019, 5, day, 1, 2, 3, 4_500_000, time.UTC)
		res, err := b.run(t, at, b.image(t, "a.raw", byte(i)), b.image(t, "b.img", byte(10+i)))
		if err != nil {
			t.Fatal(err)
		}
		p := res.Point
		if !p.Time.Equal(at.Truncate(time.Millisecond)) || p.Consistency != importing.ConsistencyUnknown || len(p.Disks) != 2 {
			t.Errorf("%+v", p)
		}
		if i > 0 && (p.Parent != ids[i-1] || p.FullTransfer || p.Stats.Stored > 1<<20) {
			t.Errorf("import %d does not build on the one before: %+v", i, p)
		}
		ids = append(ids, p.ID)
	}
	for ref, want := range map[string]string{
		"old@latest": ids[2], "old@2019-05-04T01:02:03Z": ids[1], "old@2019-05-08T00:00:00Z": ids[1], "old@2019-05-03T01:02:03Z": ids[0],
	} {
		if p, err := b.Catalog.Resolve(t.Context(), ref); err != nil || p.ID != want {
			t.Errorf("%s is %s, %v, want %s", ref, p.ID, err, want)
		}
	}
	points, err := b.Repository.Points(t.Context(), b.machine.ID)
	if err != nil || len(points) != 3 {
		t.Fatal(err)
	}
	mf, err := b.Repository.Manifest(t.Context(), points[0])
	if err != nil {
		t.Fatal(err)
	}
	// A rebuilt catalog must not have a backup read the image again.
	var disks []catalog.MachineDisk
	if err := json.Unmarshal(mf.Definition, &disks); err != nil || len(disks) != 2 {
		t.Fatal(err, disks)
	}
	if path, ok := importing.Imported(disks[0].Source); !ok || path != filepath.Join(b.dir, "a.raw") {
		t.Errorf("the disk's source is %q", disks[0].Source)
	}
	if _, ok := importing.Imported("/images/a.raw"); ok {
		t.Error("any image counts as imported")
	}
}

func TestOrder(t *testing.T) {
	b := newBench(t)
	a := b.image(t, "a.raw", 1)
	day := func(n int) time.Time { return time.Date(2019, 5, n, 0, 0, 0, 0, time.UTC) }
	if _, err := b.run(t, day(5), a); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		at   time.Time
		want error
	}{
		"older":            {day(4), backup.ErrOrder},
		"the same":         {day(5), backup.ErrOrder},
		"the same, nearly": {day(5).Add(900 * time.Microsecond), backup.ErrOrder},
		"tomorrow":         {now.Add(time.Second), backup.ErrFuture},
	} {
		if _, err := b.run(t, c.at, a); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := b.run(t, now, a); err != nil {
		t.Errorf("now: %v", err)
	}
	// A backup of today, then history: the history may not become the newest.
	b = newBench(t)
	a = b.image(t, "a.raw", 1)
	live := b.machine
	live.Disks = []catalog.MachineDisk{{ID: "vda", Source: a}}
	res, err := backup.Run(t.Context(), b.Deps, backup.Request{Machine: live})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.run(t, day(5), a); !errors.Is(err, backup.ErrOrder) {
		t.Errorf("history behind a backup: %v", err)
	}
	if p, err := b.Catalog.Resolve(t.Context(), "old@latest"); err != nil || p.ID != res.Point.ID {
		t.Errorf("newest is %s, %v", p.ID, err)
	}
	// Behind what the catalog does not know, too.
	if err := b.Catalog.Points.Delete(t.Context(), res.Point.ID, now, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.run(t, day(5), a); !errors.Is(err, backup.ErrOrder) {
		t.Errorf("history behind a backup that the catalog lost: %v", err)
	}
}

func TestExisting(t *testing.T) {
	b := newBench(t)
	at := time.Date(2019, 5, 5, 0, 0, 0, 123_456_789, time.UTC)
	res, err := b.run(t, at, b.image(t, "a.raw", 1))
	if err != nil {
		t.Fatal(err)
	}
	points, err := b.Catalog.Points.List(t.Context(), catalog.PointQuery{Machine: b.machine.ID})
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := importing.Existing(points, importing.Item{Time: at}); !ok || p.ID != res.Point.ID {
		t.Errorf("%v %+v", ok, p)
	}
	if _, ok := importing.Existing(points, importing.Item{Time: at.Add(time.Millisecond)}); ok {
		t.Error("another time counts as imported")
	}
}

// TestHostileRaw: a guest that writes another format's mark into its raw disk
// does not choose how the disk is read.
func TestHostileRaw(t *testing.T) {
	b := newBench(t)
	path := b.image(t, "a.raw", 1)
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(p, "QFI\xfb\x00\x00\x00\x03")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2019, 5, 5, 0, 0, 0, 0, time.UTC)
	if _, err := b.run(t, at, path); !errors.Is(err, source.ErrUnsupported) {
		t.Errorf("by its name: %v", err)
	}
	item := importing.Item{Time: at, Images: []importing.Image{{Disk: "vda", Path: path, Format: "raw"}}}
	sizes, err := importing.Look(t.Context(), b.Deps, item)
	if err != nil || len(sizes) != 1 || sizes[0] != int64(len(p)) {
		t.Errorf("look: %v, %v", sizes, err)
	}
	res, err := importing.Run(t.Context(), b.Deps, importing.Request{Machine: b.machine, Item: item, Consistency: "crash-consistent", Description: "tape 7"})
	if err != nil || res.Point.Consistency != "crash-consistent" || res.Point.Description != "tape 7" {
		t.Fatalf("%+v, %v", res.Point, err)
	}
	points, err := b.Repository.Points(context.Background(), b.machine.ID)
	if err != nil || len(points) != 1 {
		t.Fatal(err)
	}
	mf, err := b.Repository.Manifest(t.Context(), points[0])
	if err != nil {
		t.Fatal(err)
	}
	r, err := b.Repository.OpenDisk(t.Context(), mf.Machine, mf.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := r.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("it is not stored byte for byte: %v", err)
	}
}
