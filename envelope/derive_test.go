package envelope

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"testing"

	"golang.org/x/crypto/hkdf"
)

func TestDeriveKeyIsHKDFOverPrefixedParts(t *testing.T) {
	secret := NewSecret(bytes.Repeat([]byte{7}, 32))
	info := "lockstep/derive/1" +
		"\x07\x00\x00\x00\x00\x00\x00\x00purpose" +
		"\x02\x00\x00\x00\x00\x00\x00\x00ab" +
		"\x00\x00\x00\x00\x00\x00\x00\x00"
	want := make([]byte, 32)
	if _, err := io.ReadFull(hkdf.New(sha256.New, secret.Expose(), nil, []byte(info)), want); err != nil {
		t.Fatal(err)
	}
	got := DeriveKey(secret, "purpose", []byte("ab"), nil)
	if !bytes.Equal(got.Expose(), want) {
		t.Errorf("got %x, want %x", got.Expose(), want)
	}
}

func TestDeriveKeyContextsDoNotMeet(t *testing.T) {
	secret := NewSecret(bytes.Repeat([]byte{7}, 32))
	seen := map[string]int{}
	for i, k := range []Secret{
		DeriveKey(secret, "p"),
		DeriveKey(secret, "p", nil),
		DeriveKey(secret, "p", []byte("ab")),
		DeriveKey(secret, "p", []byte("a"), []byte("b")),
		DeriveKey(secret, "pa", []byte("b")),
		DeriveKey(secret, "pab"),
	} {
		digits := hex.EncodeToString(k.Expose())
		if j, twice := seen[digits]; twice {
			t.Errorf("derivations %d and %d give the same key", i, j)
		}
		seen[digits] = i
	}
}

func TestWrapKey(t *testing.T) {
	kek, _ := NewKey()
	other, _ := NewKey()
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := WrapKey(kek, key, []byte("machine 1"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := UnwrapKey(kek, wrapped, []byte("machine 1")); err != nil || !got.Equal(key) {
		t.Errorf("unwrap: %v", err)
	}
	if bytes.Contains(wrapped, key.Expose()[:8]) {
		t.Error("the key lies in the clear")
	}
	k32, _ := kek.Key32()
	short, err := SealFrame(kindWrappedKey, k32, wrapContext(nil), make([]byte, 31))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		kek     Secret
		wrapped []byte
		context string
		want    error
	}{
		{"other KEK", other, wrapped, "machine 1", ErrFrameAuth},
		{"other context", kek, wrapped, "machine 2", ErrFrameAuth},
		{"short KEK", NewSecret(make([]byte, 16)), wrapped, "machine 1", ErrKeySize},
		{"short key inside", kek, short, "", ErrKeySize},
		{"empty", kek, nil, "", ErrFrameDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := UnwrapKey(c.kek, c.wrapped, []byte(c.context)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	if _, err := WrapKey(kek, NewSecret(make([]byte, 33)), nil); !errors.Is(err, ErrKeySize) {
		t.Errorf("wrapping 33 bytes: %v", err)
	}
}
