package repository

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/settings"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// hostile is a repository whose writer signs whatever the fuzzer wants: what
// is tested is everything behind the seal and the signature.
type hostile struct {
	mem    *memstore.Store
	repo   *Repository
	m      *machine
	writer envelope.SigningKey
}

func newHostile(f *testing.F) *hostile {
	f.Helper()
	h := &hostile{mem: memstore.New()}
	var keys [3]envelope.SigningKey
	for i, role := range []string{"writer", "prover", "custodian"} {
		k, err := envelope.GenerateSigningKey(role)
		if err != nil {
			f.Fatal(err)
		}
		keys[i] = k
	}
	h.writer = keys[0]
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		f.Fatal(err)
	}
	if _, _, err := Create(f.Context(), h.mem, CreateOptions{
		Writer: keys[0].Public(), Prover: keys[1].Public(), Custodian: keys[2],
		Holders: []NewHolder{{Name: "recovery", Recipient: recipient}},
	}); err != nil {
		f.Fatal(err)
	}
	if h.repo, err = Open(f.Context(), h.mem, OpenOptions{Unlock: Unlocker{Identities: id}, Writer: &h.writer}); err != nil {
		f.Fatal(err)
	}
	m, err := h.repo.CreateMachine(f.Context(), "", "vm")
	if err != nil {
		f.Fatal(err)
	}
	if h.m, err = h.repo.machine(f.Context(), m.ID); err != nil {
		f.Fatal(err)
	}
	return h
}

func (h *hostile) object(t *testing.T, key string, kind uint16, payloadType string, body []byte) []byte {
	t.Helper()
	signed, err := envelope.Sign(payloadType, body, h.writer)
	if err != nil {
		t.Skip()
	}
	raw, err := envelope.SealFrame(kind, h.m.Metadata, []byte(key), signed)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"format":1,"id":"0123456789abcdef0123456789abcdef","sealing":"aes-256-gcm","must":[],"may":["x"]}`,
		`{"format":2}`, `{"format":1,"must":["x"]}`, `null`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		raw, err := envelope.SealFrame(format.KindConfig, nil, nil, body)
		if err != nil {
			t.Fatal(err)
		}
		c, err := settings.Parse(raw)
		if err == nil && (c.Format != 1 || len(c.Must) != 0 || !format.ValidID(c.ID) || c.Sealing != SealingAESGCM && c.Sealing != SealingNone) {
			t.Fatalf("taken: %+v", c)
		}
	})
}

func FuzzLogEntry(f *testing.F) {
	h := newHostile(f)
	key := format.LogKey(h.m.Machine.ID, 0)
	birth, leftovers := int64(3), int64(7)
	good := machinelog.Entry{
		Machine: h.m.Machine.ID, Point: newID(), Manifest: digestOf(nil),
		BirthField: &birth, Leftovers: &leftovers, Must: []string{machinelog.FeatureReplicas}, Origin: newID(),
	}
	for _, kind := range []string{machinelog.Commit, machinelog.Delete, machinelog.Fence, "x"} {
		good.Kind = kind
		body, err := json.Marshal(good)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add([]byte(`{"machine":"` + h.m.Machine.ID + `","kind":"fence","must":["teleport"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		raw := h.object(t, key, format.KindLog, machinelog.PayloadType, body)
		mem := memstore.New()
		if err := mem.Put(t.Context(), key, raw); err != nil {
			t.Fatal(err)
		}
		records, err := machinelog.New(mem, h.m.Keys, h.repo.Trust, h.repo.log).Read(t.Context())
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		rec := records[0]
		if rec.Err != nil {
			return
		}
		if rec.Machine != h.m.Machine.ID || rec.N != 0 || rec.Previous != "" || rec.Writer != h.writer.ID() || rec.Birth() < 0 {
			t.Fatalf("taken: %+v", rec)
		}
		points(append(records, rec), rec.Machine)
		if next := machinelog.NextBirth(records); next < 1 || rec.Kind == machinelog.Commit && next <= rec.Birth() {
			t.Fatalf("birth %d follows %+v", next, rec)
		}
	})
}

// FuzzManifest reads what a hostile manifest leads to as well.
func FuzzManifest(f *testing.F) {
	h := newHostile(f)
	const pid = "00112233445566778899aabbccddeeff"
	key := format.ManifestKey(h.m.Machine.ID, pid)
	w, err := h.repo.Begin(f.Context(), h.m.Machine.ID, BeginOptions{PointID: pid})
	if err != nil {
		f.Fatal(err)
	}
	src := patterned(3<<20 + 5)
	dd, err := w.WriteDisk(f.Context(), DiskInput{ID: "vda", Source: src})
	if err != nil {
		f.Fatal(err)
	}
	if err := w.FinishMaps(); err != nil {
		f.Fatal(err)
	}
	good := Manifest{Format: 1, Repository: h.repo.ID(), Machine: h.m.Machine.ID, Point: pid, Disks: []Disk{dd}}
	for _, change := range []func(*Manifest){
		func(*Manifest) {}, func(m *Manifest) { m.Format = 2 }, func(m *Manifest) { m.Disks[0].Size = 1 << 62 },
		func(m *Manifest) { m.Disks[0].Map.Level = 200 }, func(m *Manifest) { m.Disks[0].Map.Page.Offset = 1<<32 - 1 },
		func(m *Manifest) { m.Disks[0].Map.Page = nil },
	} {
		body, err := json.Marshal(good)
		if err != nil {
			f.Fatal(err)
		}
		var m Manifest
		if err := json.Unmarshal(body, &m); err != nil {
			f.Fatal(err)
		}
		change(&m)
		if body, err = json.Marshal(m); err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		raw := h.object(t, key, format.KindManifest, manifestType, body)
		_ = h.mem.Delete(t.Context(), key)
		if err := h.mem.Put(t.Context(), key, raw); err != nil {
			t.Fatal(err)
		}
		m, err := h.repo.Manifest(t.Context(), Point{ID: pid, Machine: h.m.Machine.ID, manifestDigest: digestOf(raw)})
		if err != nil {
			return
		}
		for i, d := range m.Disks {
			r, err := h.repo.OpenDisk(t.Context(), m.Machine, d)
			if err != nil || i > 3 {
				continue
			}
			p := make([]byte, 5000)
			if g, err := r.NextData(0); err == nil && (g.Length <= 0 || g.End() > r.Size()) {
				t.Fatalf("data %v of a disk of %d bytes", g, r.Size())
			}
			if n, err := r.ReadAt(p, max(0, r.Size()-4000)); err == nil && n < len(p) {
				t.Fatal("short read without an error")
			}
			if d.ContentRoot != dd.ContentRoot && d.Map.Page != nil && d.Size == dd.Size {
				t.Fatalf("a disk of another content root opens: %+v", d)
			}
		}
	})
}

// patterned is a disk of n bytes of no two equal blocks.
type patterned int64

func (p patterned) Size() int64 { return int64(p) }
func (p patterned) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		at := off + int64(i)
		b[i] = byte(at>>16) + byte(at%251) + 1
	}
	return len(b), nil
}

func (p patterned) NextData(off int64) (disk.Range, error) {
	if off >= int64(p) {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: int64(p) - off}, nil
}

// TestTreeHashOfZeroes: however many leaves of zeroes come at once, the root is
// that of one after the other, and a disk of nothing takes no time.
func TestTreeHashOfZeroes(t *testing.T) {
	g, err := format.NewDigester(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(i int) format.Digest { return g.Keyed([]byte(fmt.Sprint(i))) }
	for _, runs := range [][]int64{{5}, {32}, {33, -1}, {-1, 31, -1}, {-1, 32, -1}, {1, -1, 1023}, {-1, 2000, -1, 100, -1, 1}, {1024, -1}, {31, 1, 32, 64, 1024, -1}} {
		var leaves int64
		for _, n := range runs {
			leaves += max(n, 1) // -1: one leaf of data
		}
		level := format.Levels(leaves * format.LeafSize)
		at, one := format.TreeHash{Level: level}, format.TreeHash{Level: level}
		for i, n := range runs {
			if n < 0 {
				at.Add(g, leaf(i))
				one.Add(g, leaf(i))
				continue
			}
			at.Zeros(g, n)
			for range n {
				one.Add(g, format.Digest{})
			}
		}
		if at.Root(g) != one.Root(g) {
			t.Errorf("runs %v: another root", runs)
		}
	}
	huge := format.TreeHash{Level: format.Levels(1 << 62)}
	huge.Zeros(g, format.LeafCount(1<<62))
	if !huge.Root(g).Zero() {
		t.Error("a disk of zeroes has a root")
	}
}

// An error's text names the object once, and what to look for.
func TestDamageErrorText(t *testing.T) {
	err := fmt.Errorf("x: %w", &DamageError{Object: "seg/a", Disk: "vda", Range: disk.Range{Offset: 65536, Length: 65536}, Err: format.ErrCorrupt})
	if !errors.Is(err, ErrDamaged) || !errors.Is(err, format.ErrCorrupt) || errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "disk vda at 65536, 65536 bytes") {
		t.Error(err)
	}
	if err := error(&DamageError{Err: format.ErrVersion}); !errors.Is(err, ErrFormat) {
		t.Error(err)
	}
}
