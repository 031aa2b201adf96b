// Package diskcrypttest is what every diskcrypt.Format must do, as a test. An
// adapter gives it volumes that it, or better another program, made.
package diskcrypttest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Secret is one that opens a volume.
type Secret struct {
	Kind       diskcrypt.Kind
	Bytes      []byte
	Protectors []string // ids that it opens, in order
	// Prefix: what follows these bytes does not count.
	Prefix bool
}

// Volume is one to test with. It must be openable, and small: it is read in full.
type Volume struct {
	Name    string
	Place   diskcrypt.Place
	Type    string
	Plain   []byte // what the opened volume must give
	Secrets []Secret
	Wrong   Secret // of a kind that the format takes
}

// Run runs the suite on each volume.
func Run(t *testing.T, format diskcrypt.Format, volumes []Volume) {
	if format.Name() == "" {
		t.Error("a format without a name")
	}
	t.Run("not this format", func(t *testing.T) { notThisFormat(t, format) })
	for _, v := range volumes {
		t.Run(v.Name, func(t *testing.T) {
			s := suite{format, v}
			t.Run("inspect", s.inspect)
			t.Run("open", s.open)
			t.Run("wrong secret", s.wrong)
			t.Run("limits", s.limits)
			t.Run("cancelled", s.cancelled)
			t.Run("bad device", s.badDevice)
			t.Run("truncated", s.truncated)
		})
	}
}

func notThisFormat(t *testing.T, format diskcrypt.Format) {
	random := make([]byte, 1<<20)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"nothing": nil, "one byte": {0}, "zeroes": make([]byte, 1<<20), "random": random} {
		p := diskcrypt.Place{Data: bytes.NewReader(b), Size: int64(len(b))}
		if v, err := format.Inspect(context.Background(), p); !errors.Is(err, diskcrypt.ErrNotThisFormat) || v != nil {
			t.Errorf("%s: %v %v", name, v, err)
		}
		if _, err := format.Open(context.Background(), p, diskcrypt.KindPassphrase, secret([]byte("x")), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrNotThisFormat) {
			t.Errorf("open %s: %v", name, err)
		}
	}
}

type suite struct {
	format diskcrypt.Format
	Volume
}

func secret(b []byte) envelope.Secret { return envelope.CopySecret(b) }

func (s suite) inspect(t *testing.T) {
	v, err := s.format.Inspect(context.Background(), s.Place)
	if err != nil {
		t.Fatal(err)
	}
	if v.Type != s.Type || v.Unsupported != "" || v.SectorSize == 0 || v.HeaderDigest == "" {
		t.Fatalf("%+v", v)
	}
	// What is declared is not seen: the cipher may be behind the secret, and there
	// may be no header.
	if s.Place.Declared == nil && (v.Cipher == "" || len(v.HeaderRanges) == 0) || !maps.Equal(v.Declared, s.Place.Declared) {
		t.Fatalf("%+v", v)
	}
	seen := map[string]bool{}
	for _, p := range v.Protectors {
		if p.ID == "" || p.Kind == "" || seen[p.ID] || seen[p.Fingerprint] {
			t.Errorf("protector %+v has no id, no kind, or one that another has", p)
		}
		seen[p.ID], seen[p.Fingerprint] = true, true
		if !hexOf(p.Fingerprint, "v1:") || p.AreaDigest != "" && !hexOf(p.AreaDigest, "sha256:") {
			t.Errorf("protector %s: fingerprint %q, area %q", p.ID, p.Fingerprint, p.AreaDigest)
		}
	}
	if v.Epoch != "" && !hexOf(v.Epoch, "v1:") || !hexOf(v.HeaderDigest, "sha256:") {
		t.Errorf("epoch %q, header %q", v.Epoch, v.HeaderDigest)
	}
	size := s.Place.Size
	if s.Place.Header != nil {
		size = s.Place.HeadSize
	}
	for _, r := range v.HeaderRanges {
		if r.Offset < 0 || r.Length <= 0 || r.End() > size {
			t.Errorf("header range %+v of %d bytes", r, size)
		}
	}
	again, err := s.format.Inspect(context.Background(), s.Place)
	if err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(v)
	b, _ := json.Marshal(again)
	if !bytes.Equal(a, b) {
		t.Errorf("two inspections differ:\n%s\n%s", a, b)
	}
	for _, sec := range s.Secrets {
		for _, id := range sec.Protectors {
			if sec.Kind != diskcrypt.KindVolumeKey && !slices.ContainsFunc(v.Protectors, func(p diskcrypt.Protector) bool { return p.ID == id }) {
				t.Errorf("no protector %s", id)
			}
		}
	}
}

func hexOf(s, prefix string) bool {
	rest, ok := strings.CutPrefix(s, prefix)
	return ok && len(rest) == 64 && strings.Trim(rest, "0123456789abcdef") == ""
}

func (s suite) open(t *testing.T) {
	var mac []byte
	for _, sec := range s.Secrets {
		given := secret(sec.Bytes)
		ids, err := s.format.OpensAll(context.Background(), s.Place, sec.Kind, given, diskcrypt.Limits{})
		if err != nil || !slices.Equal(ids, sec.Protectors) {
			t.Fatalf("opens all: %v %v, want %v", ids, err, sec.Protectors)
		}
		o, err := s.format.Open(context.Background(), s.Place, sec.Kind, given, diskcrypt.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(given.Expose(), sec.Bytes) {
			t.Fatal("opening changed the secret, which is the caller's")
		}
		if o.Protector() != sec.Protectors[0] || o.KeyCheck() == "" || o.Size() != int64(len(s.Plain)) {
			t.Fatalf("protector %q, check %q, size %d of %d", o.Protector(), o.KeyCheck(), o.Size(), len(s.Plain))
		}
		given.Wipe() // must not be needed any more
		s.reads(t, o)
		one, other := o.KeyMAC([]byte("one")), o.KeyMAC([]byte("other"))
		if len(one) != 32 || bytes.Equal(one, other) || mac != nil && !bytes.Equal(mac, one) {
			t.Error("key MACs of one volume key differ, or do not depend on the MAC's key")
		}
		mac = one
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := o.ReadAt(make([]byte, 512), 0); n != 0 || err == nil {
			t.Error("a closed volume still gives plaintext")
		}
		if bytes.Equal(o.KeyMAC([]byte("one")), one) {
			t.Error("a closed volume still has its key")
		}
		if err := o.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
	}
}

// reads checks that any way of reading gives the plaintext.
func (s suite) reads(t *testing.T, o diskcrypt.Opened) {
	t.Helper()
	size := int64(len(s.Plain))
	var wg sync.WaitGroup
	for _, r := range [][2]int64{{0, size}, {0, 1}, {1, 511}, {511, 2}, {513, 4096}, {4095, 2}, {size - 1, 1}, {size - 513, 513}, {8192, 8192}, {100, 70_000}} {
		wg.Go(func() {
			off, n := r[0], min(r[1], size-r[0])
			got := make([]byte, n)
			if m, err := o.ReadAt(got, off); int64(m) != n || err != nil && !errors.Is(err, io.EOF) {
				t.Errorf("read [%d, %d): %d bytes, %v", off, off+n, m, err)
			} else if !bytes.Equal(got, s.Plain[off:off+n]) {
				t.Errorf("read [%d, %d): not the plaintext", off, off+n)
			}
		})
	}
	wg.Wait()
	if n, err := o.ReadAt(make([]byte, 10), size); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %d %v", n, err)
	}
	if n, err := o.ReadAt(make([]byte, 10), size-3); n != 3 || !errors.Is(err, io.EOF) {
		t.Errorf("read across the end: %d %v", n, err)
	}
	if _, err := o.ReadAt(make([]byte, 10), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read before the start: %v", err)
	}
}

func (s suite) wrong(t *testing.T) {
	kinds := []Secret{s.Wrong}
	for _, sec := range s.Secrets {
		flipped := bytes.Clone(sec.Bytes)
		flipped[len(flipped)-1] ^= 1
		longer := append(bytes.Clone(sec.Bytes), '\n')
		kinds = append(kinds, Secret{Kind: sec.Kind, Bytes: flipped}, Secret{Kind: sec.Kind})
		if !sec.Prefix {
			kinds = append(kinds, Secret{Kind: sec.Kind, Bytes: longer})
		}
	}
	kinds = append(kinds, Secret{Kind: "no such kind", Bytes: []byte("x")})
	for _, sec := range kinds {
		o, err := s.format.Open(context.Background(), s.Place, sec.Kind, secret(sec.Bytes), diskcrypt.Limits{})
		if !errors.Is(err, diskcrypt.ErrWrongSecret) || o != nil {
			t.Errorf("%s of %d bytes: %v", sec.Kind, len(sec.Bytes), err)
		}
		if err != nil && len(sec.Bytes) > 3 && strings.Contains(err.Error(), string(sec.Bytes)) {
			t.Error("the error holds the secret")
		}
		ids, err := s.format.OpensAll(context.Background(), s.Place, sec.Kind, secret(sec.Bytes), diskcrypt.Limits{})
		if !errors.Is(err, diskcrypt.ErrWrongSecret) || len(ids) != 0 {
			t.Errorf("opens all with %s of %d bytes: %v %v", sec.Kind, len(sec.Bytes), ids, err)
		}
	}
}

func (s suite) limits(t *testing.T) {
	for _, sec := range s.Secrets {
		if sec.Kind == diskcrypt.KindStartupKey || s.Type == diskcrypt.TypePlain {
			continue // costs nothing
		}
		lim := diskcrypt.Limits{KDFMemory: 1, KDFWork: 1}
		if _, err := s.format.Open(context.Background(), s.Place, sec.Kind, secret(sec.Bytes), lim); !errors.Is(err, diskcrypt.ErrLimit) {
			t.Errorf("%s: %v", sec.Kind, err)
		}
	}
}

func (s suite) cancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, sec := range s.Secrets {
		if _, err := s.format.Open(ctx, s.Place, sec.Kind, secret(sec.Bytes), diskcrypt.Limits{}); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", sec.Kind, err)
		}
	}
}

var errBadSector = errors.New("bad sector")

// badAt fails every read that touches the byte at off.
type badAt struct {
	io.ReaderAt
	off int64
}

func (b badAt) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.off && b.off < off+int64(len(p)) {
		return 0, errBadSector
	}
	return b.ReaderAt.ReadAt(p, off)
}

// badDevice: a device that cannot be read is not "not this format".
func (s suite) badDevice(t *testing.T) {
	p := s.Place
	if p.Header != nil {
		p.Header = badAt{p.Header, 0}
	} else {
		p.Data = badAt{p.Data, 0}
	}
	if _, err := s.format.Inspect(context.Background(), p); !errors.Is(err, errBadSector) {
		t.Errorf("inspect: %v", err)
	}
}

// truncated: a device that ends early is never opened to something else.
func (s suite) truncated(t *testing.T) {
	sec := s.Secrets[0]
	for _, size := range []int64{1, 511, 512, 592, 4096, 5000, 16 << 10, 32 << 10, 64 << 10, 300 << 10, 1 << 20, s.Place.Size - 512} {
		if size >= s.Place.Size || s.Place.Header != nil {
			continue
		}
		p := diskcrypt.Place{Data: io.NewSectionReader(s.Place.Data, 0, size), Size: size, Declared: s.Place.Declared}
		v, err := s.format.Inspect(context.Background(), p)
		if err == nil && v == nil {
			t.Errorf("%d bytes: neither volume nor error", size)
		}
		o, err := s.format.Open(context.Background(), p, sec.Kind, secret(sec.Bytes), diskcrypt.Limits{})
		if err != nil {
			continue
		}
		got := make([]byte, min(o.Size(), int64(len(s.Plain))))
		if n, _ := o.ReadAt(got, 0); !bytes.Equal(got[:n], s.Plain[:n]) {
			t.Errorf("%d bytes: opened to something else", size)
		}
		o.Close()
	}
}
