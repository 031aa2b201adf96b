package veracrypt

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"hash/crc32"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Block by block, it is the standard library's PBKDF2.
func TestPBKDF2(t *testing.T) {
	salt := bytes.Repeat([]byte{7}, saltSize)
	want, err := pbkdf2.Key(sha512.New, "password", salt, 1000, maxKey)
	if err != nil {
		t.Fatal(err)
	}
	d := derived{k: kdfs[0], password: []byte("password"), salt: salt}
	for _, n := range []int{64, 128, maxKey} {
		if err := d.extend(context.Background(), n); err != nil || !bytes.Equal(d.key[:n], want[:n]) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d = derived{k: kdfs[4], password: []byte("password"), salt: salt}
	if err := d.extend(ctx, 64); err == nil {
		t.Error("a cancelled derivation ran to its end")
	}
}

// A key file's pool, computed the slow way: the CRC of each prefix.
func TestKeyFilePool(t *testing.T) {
	file := bytes.Repeat([]byte("key file "), 100)
	for _, size := range []int{oldPassword, maxPassword} {
		want := make([]byte, size)
		at := 0
		for i := range file {
			state := ^crc32.ChecksumIEEE(file[:i+1])
			for _, b := range []byte{byte(state >> 24), byte(state >> 16), byte(state >> 8), byte(state)} {
				want[at%size] += b
				at++
			}
		}
		got := make([]byte, size)
		mix(got, file)
		if !bytes.Equal(got, want) {
			t.Errorf("pool of %d bytes differs", size)
		}
	}
	long := make([]byte, keyFileBytes+1)
	a, b := make([]byte, oldPassword), make([]byte, oldPassword)
	mix(a, long)
	mix(b, long[:keyFileBytes])
	if !bytes.Equal(a, b) {
		t.Error("more than the first MiB counts")
	}
}

// Whatever a header says whose checksums are right (who knows the password can
// make one), the volume lies within its place.
func FuzzLayout(f *testing.F) {
	f.Add(uint16(5), uint64(0), uint64(1<<20), uint64(128<<10), uint64(1<<20), uint32(0), int64(2<<20), byte(0))
	f.Add(uint16(3), uint64(4096), uint64(0), uint64(0), uint64(0), uint32(0), int64(40960), byte(1))
	f.Add(uint16(5), uint64(0), uint64(1)<<63, uint64(1)<<63, uint64(1)<<63, uint32(3), int64(1<<20), byte(2))
	f.Fuzz(func(t *testing.T, version uint16, hidden, volume, offset, data uint64, flags uint32, size int64, which byte) {
		if size <= 0 {
			return
		}
		system := which%7 == 6
		places := headerPlaces(size, system)
		if len(places) == 0 {
			return
		}
		m := match{place: places[int(which)%len(places)], header: header{
			version: version, hiddenSize: hidden, volumeSize: volume, dataOffset: offset, dataSize: data, flags: flags,
		}}
		runs, n, err := m.layout(size)
		if err != nil {
			return
		}
		if n <= 0 || n > size {
			t.Fatalf("%d bytes in %d", n, size)
		}
		at := int64(0)
		for _, r := range runs {
			if r.Offset != at || r.Length <= 0 || r.From < 0 || r.From > size-r.Length {
				t.Fatalf("run %+v of %d bytes", r, size)
			}
			at += r.Length
		}
		if at != n {
			t.Fatalf("runs of %d bytes, volume of %d", at, n)
		}
	})
}

func FuzzDecode(f *testing.F) {
	b := make([]byte, headerSize-saltSize)
	copy(b, magicVera)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := decode(b, magicVera); ok && len(h.keys) != keysSize {
			t.Fatal("keys are missing")
		}
	})
}

func FuzzDeclaration(f *testing.F) {
	f.Add("veracrypt,hash=sha512,cipher=aes,system=yes")
	f.Add("dm-crypt,cipher=xchacha12,aes-adiantum-plain64,size=256,hash=sha256")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := diskcrypt.ParseDeclaration(s)
		if err != nil {
			return
		}
		again, err := diskcrypt.ParseDeclaration(diskcrypt.FormatDeclaration(d))
		if err != nil || len(again) != len(d) {
			t.Fatalf("%q: %v", s, err)
		}
		for k, v := range d {
			if again[k] != v {
				t.Fatalf("%q: %q became %q", s, v, again[k])
			}
		}
		_, _ = Format{}.Inspect(context.Background(), diskcrypt.Place{Data: bytes.NewReader(make([]byte, 4096)), Size: 4096, Declared: d})
	})
}

func FuzzSecret(f *testing.F) {
	f.Add([]byte(`{"format":1,"password":"eA==","pim":1,"keyfiles":["AA=="],"hidden":true}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := secretOf(diskcrypt.KindVeraCrypt, envelope.CopySecret(b))
		if err == nil && len(s.mixed()) == 0 {
			t.Fatal("an empty password")
		}
	})
}
