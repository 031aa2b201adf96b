package fingerprint

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// The encoding, written out.
func TestEncoding(t *testing.T) {
	h := New("domain")
	h.Text("AES-xts Ä")
	h.Number(258)
	h.Field(nil)
	sum := sha256.Sum256([]byte("domain\x00" + "\x00\x00\x00\x0aaes-xts Ä" + "\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x01\x02" + "\x00\x00\x00\x00"))
	if want := "v1:" + hex.EncodeToString(sum[:]); h.V1() != want {
		t.Errorf("%s, want %s", h.V1(), want)
	}
	if want := "sha256:" + hex.EncodeToString(sum[:]); h.Digest() != want {
		t.Errorf("%s, want %s", h.Digest(), want)
	}
}
