package keyslot

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"
)

func TestSealOpen(t *testing.T) {
	key := bytes.Repeat([]byte("0123456789abcdef"), 6)
	kdfs := []KDF{
		{Type: PBKDF2, Hash: "sha1", Iterations: 3},
		{Type: PBKDF2, Hash: "sha224", Iterations: 3},
		{Type: PBKDF2, Hash: "sha384", Iterations: 3},
		{Type: PBKDF2, Hash: "sha512", Iterations: 3},
		{Type: PBKDF2, Hash: "ripemd160", Iterations: 3},
		{Type: Argon2i, Time: 1, MemoryKiB: 64, Lanes: 2},
		{Type: Argon2id, Time: 1, MemoryKiB: 64, Lanes: 1},
	}
	for _, kdf := range kdfs {
		t.Run(kdf.String(), func(t *testing.T) {
			kdf.Salt = bytes.Repeat([]byte{7}, 32)
			for _, n := range []int{16, 32, 64, 96} {
				b := Box{KDF: kdf, KeyBytes: n, AFHash: "sha256", Cipher: "aes-xts-plain64", CipherKeySize: 64}
				area, err := b.Seal(context.Background(), []byte("right"), key[:n])
				if err != nil {
					t.Fatal(err)
				}
				got, err := b.Open(context.Background(), bytes.NewReader(area), []byte("right"))
				if err != nil || !bytes.Equal(got, key[:n]) {
					t.Fatalf("key of %d bytes does not come back: %v", n, err)
				}
				got, err = b.Open(context.Background(), bytes.NewReader(area), []byte("wrong"))
				if err != nil || bytes.Equal(got, key[:n]) {
					t.Fatalf("a wrong secret gives the key (%v)", err)
				}
			}
		})
	}
}

func TestDigest(t *testing.T) {
	d := Digest{Hash: "sha256", Iterations: 10, Salt: []byte("salt")}
	sum, err := d.Compute([]byte("key"), 20)
	if err != nil {
		t.Fatal(err)
	}
	d.Sum = sum
	if ok, err := d.Verify([]byte("key")); !ok || err != nil {
		t.Fatalf("right key: %v %v", ok, err)
	}
	if ok, _ := d.Verify([]byte("kez")); ok {
		t.Fatal("wrong key verified")
	}
	d.Sum = nil
	if ok, _ := d.Verify([]byte("key")); ok {
		t.Fatal("an empty digest verifies everything")
	}
}

func TestMeter(t *testing.T) {
	cases := []struct {
		name string
		kdf  KDF
		want error
	}{
		{"default of cryptsetup", KDF{Type: Argon2id, Time: 4, MemoryKiB: 1 << 20, Lanes: 4}, nil},
		{"most memory of the format", KDF{Type: Argon2id, Time: 4, MemoryKiB: 4 << 20, Lanes: 4}, nil},
		{"one KiB more", KDF{Type: Argon2id, Time: 1, MemoryKiB: 4<<20 + 1, Lanes: 4}, ErrLimit},
		{"absurd passes", KDF{Type: Argon2i, Time: math.MaxUint32, MemoryKiB: 1 << 20, Lanes: 4}, ErrLimit},
		{"overflowing", KDF{Type: Argon2i, Time: math.MaxUint64, MemoryKiB: math.MaxUint64}, ErrLimit},
		{"ten million iterations", KDF{Type: PBKDF2, Hash: "sha512", Iterations: 10_000_000}, nil},
		{"absurd iterations", KDF{Type: PBKDF2, Hash: "sha1", Iterations: math.MaxUint32}, ErrLimit},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if err := NewMeter(0, 0).Pay(c.kdf.Cost(64)); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
	m := NewMeter(0, 100)
	if m.Pay(0, 60) != nil || !errors.Is(m.Pay(0, 60), ErrLimit) || m.Pay(0, 40) != nil {
		t.Fatal("the meter does not add up")
	}
}

func TestCancelledBeforeDeriving(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := Box{KDF: KDF{Type: PBKDF2, Hash: "sha1", Iterations: 1}, KeyBytes: 32, AFHash: "sha1", Cipher: "aes-xts-plain64", CipherKeySize: 32}
	if _, err := b.Open(ctx, bytes.NewReader(nil), nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestUnsupported(t *testing.T) {
	ok := Box{KDF: KDF{Type: PBKDF2, Hash: "sha1", Iterations: 1}, KeyBytes: 32, AFHash: "sha1", Cipher: "aes-xts-plain64", CipherKeySize: 32}
	for name, spoil := range map[string]func(*Box){
		"kdf":    func(b *Box) { b.KDF.Type = "scrypt" },
		"hash":   func(b *Box) { b.KDF.Hash = "tiger" },
		"af":     func(b *Box) { b.AFHash = "tiger" },
		"cipher": func(b *Box) { b.Cipher = "camellia-xts-plain64" },
		"key":    func(b *Box) { b.CipherKeySize = 17 },
		"lanes":  func(b *Box) { b.KDF = KDF{Type: Argon2i, Time: 1, MemoryKiB: 32, Lanes: 256} },
	} {
		b := ok
		spoil(&b)
		if err := b.Supported(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
