package unlock_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid/mdtest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// memory is a device of bytes.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

// encrypt makes m a LUKS volume that a passphrase opens, with plain in it.
func encrypt(tb testing.TB, m memory, passphrase string, o luksformat.Options, plain []byte) {
	tb.Helper()
	if o.Version != 1 {
		o.KeyslotsSize = 256 * kib
	}
	v, err := luksformat.Format(m, int64(len(m)), o)
	if err != nil {
		tb.Fatal(err)
	}
	defer v.Close()
	if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte(passphrase)), luksformat.KDF{}); err != nil {
		tb.Fatal(err)
	}
	w, err := v.Payload(nil, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.WriteAt(plain, 0); err != nil {
		tb.Fatal(err)
	}
}

// mbr writes a table of partitions, in bytes.
func mbr(m memory, parts ...[2]int64) memory {
	m[510], m[511] = 0x55, 0xaa
	for i, p := range parts {
		e := m[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(p[0]/512))
		binary.LittleEndian.PutUint32(e[12:], uint32((p[1]-p[0])/512))
	}
	return m
}

// content is something that looks like an ext2 and is otherwise noise.
func content(tb testing.TB, size int) memory {
	tb.Helper()
	m := make(memory, size)
	if _, err := rand.Read(m[4096:]); err != nil {
		tb.Fatal(err)
	}
	m[1024+56], m[1024+57] = 0x53, 0xef
	return m
}

// passphrases are keys that are tried on every volume.
func passphrases(list ...string) unlock.Keys {
	return func(context.Context, string, diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			for _, p := range list {
				if !yield(unlock.Key{Name: "key-" + p, Kind: diskcrypt.KindPassphrase, Secret: envelope.NewSecret([]byte(p))}, nil) {
					return
				}
			}
		}
	}
}

var options = unlock.Options{Formats: []diskcrypt.Format{luks.Format{}}}

func open(tb testing.TB, keys unlock.Keys, disks ...unlock.Disk) *unlock.Tree {
	tb.Helper()
	tree, err := unlock.Open(tb.Context(), disks, keys, options)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = tree.Close() })
	return tree
}

func vda(m memory) unlock.Disk { return unlock.Disk{ID: "vda", R: m, Size: int64(len(m))} }

// summary is "disk/name kind class" of each device, with + where it is
// decrypted, then "locked disk/name".
func summary(t *unlock.Tree) string {
	var s []string
	for _, d := range t.Devices {
		plus := ""
		if d.Decrypted {
			plus = "+"
		}
		s = append(s, fmt.Sprintf("%s/%s%s %s %s", d.Disk, d.Name, plus, d.Kind, d.Class))
	}
	for _, l := range t.Locked {
		s = append(s, fmt.Sprintf("locked %s/%s", l.Disk, l.Name))
	}
	return strings.Join(s, "\n")
}

func want(t *testing.T, tree *unlock.Tree, lines ...string) {
	t.Helper()
	if got := summary(tree); got != strings.Join(lines, "\n") {
		t.Fatalf("got\n%s\nwant\n%s\nwarnings %q", got, strings.Join(lines, "\n"), tree.Warnings)
	}
}

// holds checks that a device has the bytes.
func holds(t *testing.T, tree *unlock.Tree, disk, name string, plain []byte) {
	t.Helper()
	d := tree.Find(disk, name)
	if d == nil {
		t.Fatalf("there is no %s/%s", disk, name)
	}
	got := make([]byte, len(plain))
	if n, err := d.R.ReadAt(got, 0); n < len(got) || !bytes.Equal(got, plain) {
		t.Errorf("%s/%s: %d bytes, %v: not the plaintext", disk, name, n, err)
	}
}

func TestPartitions(t *testing.T) {
	one, two := content(t, 300*kib), content(t, 200*kib)
	m := make(memory, 12*mib)
	mbr(m, [2]int64{mib, 2 * mib}, [2]int64{2 * mib, 4 * mib}, [2]int64{4 * mib, 8 * mib}, [2]int64{8 * mib, 10 * mib})
	copy(m[mib:], content(t, 64*kib))
	encrypt(t, m[2*mib:4*mib], "one", luksformat.Options{}, one)
	encrypt(t, m[4*mib:8*mib], "two", luksformat.Options{Version: 1}, two)
	encrypt(t, m[8*mib:10*mib], "three", luksformat.Options{}, nil)
	tree := open(t, passphrases("two", "one"), vda(m))
	want(t, tree, "vda/disk disk partition-table", "vda/p1 partition ext2", "vda/p2 partition luks2", "vda/p2+ luks2 ext2",
		"vda/p3 partition luks1", "vda/p3+ luks1 ext2", "vda/p4 partition luks2", "locked vda/p4")
	holds(t, tree, "vda", "p2", one)
	holds(t, tree, "vda", "p3", two)
	if d := tree.Find("vda", "p2"); d.Key != "key-one" || d.Protector != "slot-0" || d.Header != "" {
		t.Errorf("%+v", d)
	}
	if err := tree.Locked[0].Why; !errors.Is(err, diskcrypt.ErrWrongSecret) || !strings.Contains(err.Error(), "key-two, key-one") {
		t.Errorf("%v", err)
	}
	plain := tree.Find("vda", "p2").R
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := plain.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("a closed tree is still read")
	}
}

// A whole disk is encrypted, and in it are a table, and another volume.
func TestNested(t *testing.T) {
	deep := content(t, 100*kib)
	inner := make(memory, 4*mib)
	mbr(inner, [2]int64{mib, 2 * mib}, [2]int64{2 * mib, 4 * mib})
	copy(inner[mib:], content(t, 64*kib))
	encrypt(t, inner[2*mib:], "deep", luksformat.Options{}, deep)
	m := make(memory, 6*mib)
	encrypt(t, m, "outer", luksformat.Options{}, inner)
	tree := open(t, passphrases("outer", "deep"), vda(m))
	want(t, tree, "vda/disk disk luks2", "vda/disk+ luks2 partition-table", "vda/p1+ partition ext2", "vda/p2+ partition luks2", "vda/p2+ luks2 ext2")
	holds(t, tree, "vda", "p2", deep)
}

// What was never written decrypts to noise, which is no volume.
func TestNoiseIsNoVolume(t *testing.T) {
	m := make(memory, 4*mib)
	encrypt(t, m, "pw", luksformat.Options{}, nil)
	want(t, open(t, passphrases("pw"), vda(m)), "vda/disk disk luks2", "vda/disk+ luks2 unknown")
}

// inspected is what a manifest says of a disk.
func inspected(t *testing.T, m memory, o diskcrypt.FindOptions) []diskcrypt.Volume {
	t.Helper()
	o.Formats = options.Formats
	rep, err := diskcrypt.Find(t.Context(), m, int64(len(m)), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep.Volumes
}

func TestStoredHeader(t *testing.T) {
	plain := content(t, 100*kib)
	m := make(memory, 4*mib)
	mbr(m, [2]int64{mib, 4 * mib})
	encrypt(t, m[mib:], "pw", luksformat.Options{}, plain)
	d := vda(m)
	d.Volumes = inspected(t, m, diskcrypt.FindOptions{})
	header := bytes.Clone(m[mib : mib+mib/2])
	d.Headers = func(volume string) []unlock.Header {
		if volume != "p1" {
			return nil
		}
		return []unlock.Header{
			{From: "a damaged copy", R: bytes.NewReader(make([]byte, len(header))), Size: int64(len(header)), Ranges: []disk.Range{{Length: int64(len(header))}}},
			{From: "the header copy", R: bytes.NewReader(header), Size: int64(len(header)), Ranges: []disk.Range{{Length: 64 * kib}, {Offset: 64 * kib, Length: int64(len(header)) - 64*kib}}},
		}
	}
	damage := map[string]func(){
		"wiped": func() { clear(m[mib : mib+48*kib]) },
		"another header in its place": func() {
			encrypt(t, m[mib:], "pw", luksformat.Options{}, nil)
		},
		"the table too": func() { clear(m[:512]); clear(m[mib : mib+48*kib]) },
	}
	whole := bytes.Clone(m)
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			copy(m, whole)
			do()
			tree := open(t, passphrases("pw"), d)
			p := tree.Find("vda", "p1")
			if p == nil || !p.Decrypted || p.Header != "the header copy" {
				t.Fatalf("%s\n%v", summary(tree), tree.Locked)
			}
			holds(t, tree, "vda", "p1", plain)
		})
	}
	d.Headers = nil
	tree := open(t, passphrases("pw"), d)
	if len(tree.Locked) != 1 || !errors.Is(tree.Locked[0].Why, unlock.ErrNoHeader) {
		t.Errorf("%s\n%v", summary(tree), tree.Locked)
	}
}

func TestDetachedHeader(t *testing.T) {
	header, plain := make(memory, mib), content(t, 100*kib)
	v, err := luksformat.Format(header, mib, luksformat.Options{KeyslotsSize: 256 * kib, DataOffset: -1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.AddKey(t.Context(), envelope.NewSecret([]byte("pw")), luksformat.KDF{}); err != nil {
		t.Fatal(err)
	}
	m := make(memory, 2*mib)
	w, err := v.Payload(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	d := vda(m)
	d.Volumes = inspected(t, m, diskcrypt.FindOptions{Detached: map[string]diskcrypt.Header{"disk": {R: header, Size: mib}}})
	tree := open(t, passphrases("pw"), d)
	if len(tree.Locked) != 1 || !errors.Is(tree.Locked[0].Why, unlock.ErrNoHeader) {
		t.Errorf("%s\n%v", summary(tree), tree.Locked)
	}
	d.Headers = func(string) []unlock.Header { return []unlock.Header{{From: "the header copy", R: header, Size: mib}} }
	tree = open(t, passphrases("pw"), d)
	want(t, tree, "vda/disk disk luks2", "vda/disk+ luks2 ext2")
	holds(t, tree, "vda", "disk", plain)
}

// A group spans two disks, one of them encrypted, and a volume in it is
// encrypted again.
func TestLogicalVolumes(t *testing.T) {
	home, secret := content(t, 300*kib), content(t, 200*kib)
	a, b := make(memory, 8*mib), make(memory, 8*mib)
	g := lvmtest.Group{
		Name:    "vg-root",
		Devices: []lvmtest.Device{{Name: "pv0", W: a, Size: int64(len(a))}, {Name: "pv1", W: b, Size: int64(len(b))}},
		Volumes: []lvmtest.Volume{
			{Name: "home", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 0, 2)}},
			{Name: "secret", Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 0, 2), lvmtest.Linear("pv0", 2, 1)}},
		},
	}
	if err := lvmtest.Write(g); err != nil {
		t.Fatal(err)
	}
	copy(a[lvmtest.Start:], home)
	inner := make(memory, 3*mib)
	encrypt(t, inner, "inner", luksformat.Options{}, secret)
	copy(b[lvmtest.Start:], inner[:2*mib])
	copy(a[lvmtest.Start+2*mib:], inner[2*mib:])
	outer := make(memory, 10*mib)
	mbr(outer, [2]int64{mib, 10 * mib})
	encrypt(t, outer[mib:], "outer", luksformat.Options{}, a[:8*mib])
	disks := []unlock.Disk{vda(outer), {ID: "vdb", R: b, Size: int64(len(b))}}

	tree := open(t, passphrases("outer", "inner"), disks...)
	want(t, tree, "vda/disk disk partition-table", "vdb/disk disk lvm2-pv", "vda/p1 partition luks2", "vda/p1+ luks2 lvm2-pv",
		"vda/vg--root-home+ lv ext2", "vda/vg--root-secret+ lv luks2", "vda/vg--root-secret+ luks2 ext2")
	holds(t, tree, "vda", "vg--root-home", home)
	holds(t, tree, "vda", "vg--root-secret", secret)

	// Locked, half of the group is missing.
	tree = open(t, passphrases("inner"), disks...)
	want(t, tree, "vda/disk disk partition-table", "vdb/disk disk lvm2-pv", "vda/p1 partition luks2", "locked vda/p1")
	if !strings.Contains(strings.Join(tree.Warnings, "\n"), "missing") {
		t.Errorf("%q", tree.Warnings)
	}
}

// Volumes in volumes end at a depth.
func TestDepth(t *testing.T) {
	plain := memory(content(t, 64*kib))
	for range 12 {
		m := make(memory, len(plain)+512*kib)
		encrypt(t, m, "pw", luksformat.Options{}, plain)
		plain = m
	}
	tree := open(t, passphrases("pw"), vda(plain))
	if n := len(tree.Devices); n != 9 || len(tree.Warnings) == 0 {
		t.Errorf("%d devices, %q", n, tree.Warnings)
	}
}

// Only what is used is fetched, and it is wiped.
func TestKeysAreFetchedOneByOne(t *testing.T) {
	m := make(memory, 2*mib)
	encrypt(t, m, "two", luksformat.Options{}, nil)
	var given []envelope.Secret
	failure := errors.New("the key manager is sealed")
	keys := func(_ context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			if disk != "vda" || v.ID != "disk" || v.HeaderDigest == "" {
				t.Errorf("asked for %s/%+v", disk, v)
			}
			if !yield(unlock.Key{}, failure) {
				t.Error("gave up")
			}
			for _, p := range []string{"one", "two", "three"} {
				s := envelope.NewSecret([]byte(p))
				given = append(given, s)
				if !yield(unlock.Key{Kind: diskcrypt.KindPassphrase, Secret: s}, nil) {
					return
				}
			}
		}
	}
	want(t, open(t, keys, vda(m)), "vda/disk disk luks2", "vda/disk+ luks2 unknown")
	if len(given) != 2 {
		t.Fatalf("%d secrets were fetched", len(given))
	}
	for _, s := range given {
		if strings.Trim(string(s.Expose()), "\x00") != "" {
			t.Error("a secret is not wiped")
		}
	}
	// Nobody has one: why not is told.
	tree := open(t, func(context.Context, string, diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) { yield(unlock.Key{}, failure) }
	}, vda(m))
	if len(tree.Locked) != 1 || !errors.Is(tree.Locked[0].Why, failure) {
		t.Errorf("%v", tree.Locked)
	}
	tree = open(t, passphrases(), vda(m))
	if len(tree.Locked) != 1 || !errors.Is(tree.Locked[0].Why, unlock.ErrNoKey) {
		t.Errorf("%v", tree.Locked)
	}
}

func TestDamagedDisk(t *testing.T) {
	tree := open(t, passphrases("pw"), unlock.Disk{ID: "vda", R: failing{}, Size: 1 << 30})
	want(t, tree, "vda/disk disk unknown")
	if len(tree.Warnings) == 0 {
		t.Error("damage goes unsaid")
	}
	// A manifest that points outside of the disk.
	d := vda(make(memory, mib))
	d.Volumes = []diskcrypt.Volume{{ID: "p1", Range: disk.Range{Offset: 512 * kib, Length: mib}, Type: diskcrypt.TypeLUKS2}}
	if tree = open(t, passphrases("pw"), d); len(tree.Warnings) == 0 {
		t.Error("a volume outside of the disk goes unsaid")
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errors.New("bad sectors") }

func TestCancelled(t *testing.T) {
	m := make(memory, 2*mib)
	encrypt(t, m, "pw", luksformat.Options{}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unlock.Open(ctx, []unlock.Disk{vda(m)}, passphrases("pw"), options); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// A mirror's legs: a partition, and a disk as a whole with a table in the array.
func TestMirrors(t *testing.T) {
	one, two := content(t, 100*kib), content(t, 64*kib)
	a := make(memory, 8*mib)
	mbr(a, [2]int64{mib, 8 * mib})
	mdtest.Write(a[mib:], mdtest.Array{Version: "1.2", Level: 1, Devices: 2, Name: "host:0"}, 0)
	encrypt(t, a[mib+mdtest.DataOffset:], "pw", luksformat.Options{}, one)
	b := make(memory, 8*mib)
	mdtest.Write(b, mdtest.Array{Version: "1.2", Level: 1, Devices: 2, Name: "host:1"}, 1)
	array := mbr(b[mdtest.DataOffset:], [2]int64{mib, 4 * mib}, [2]int64{4 * mib, 6 * mib})
	encrypt(t, array[mib:4*mib], "pw", luksformat.Options{}, two)
	copy(array[4*mib:], content(t, 64*kib))
	tree := open(t, passphrases("pw"), vda(a), unlock.Disk{ID: "vdb", R: b, Size: int64(len(b))})
	want(t, tree, "vda/disk disk partition-table", "vdb/disk disk md-raid", "vda/p1 partition luks2", "vda/p1+ luks2 ext2",
		"vdb/disk md partition-table", "vdb/p1 partition luks2", "vdb/p1+ luks2 ext2", "vdb/p2 partition ext2")
	holds(t, tree, "vda", "p1", one)
	holds(t, tree, "vdb", "p1", two)
	// With the header of the partition damaged, that from the recovery point is laid over the array.
	d := vda(a)
	d.Volumes = inspected(t, a, diskcrypt.FindOptions{})
	header := bytes.Clone(a[mib+mdtest.DataOffset : 2*mib+mdtest.DataOffset])
	clear(a[mib+mdtest.DataOffset : mib+mdtest.DataOffset+48*kib])
	d.Headers = func(string) []unlock.Header {
		return []unlock.Header{{From: "the header copy", R: bytes.NewReader(header), Size: mib, Ranges: []disk.Range{{Length: mib}}}}
	}
	tree = open(t, passphrases("pw"), d)
	want(t, tree, "vda/disk disk partition-table", "vda/p1 partition luks2", "vda/p1+ luks2 ext2")
	holds(t, tree, "vda", "p1", one)
}
