// Package fingerprint hashes fields as docs/spec/fingerprints.md encodes them:
// a domain, and behind it fields with their lengths, so that no two lists of
// fields are one text.
package fingerprint

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// Hash is SHA-256 over a domain and fields. What is written to it as a
// hash.Hash goes in as it is.
type Hash struct{ hash.Hash }

// New begins with a domain.
func New(domain string) Hash {
	h := Hash{sha256.New()}
	h.Write([]byte(domain))
	h.Write([]byte{0})
	return h
}

// Field adds bytes.
func (h Hash) Field(b []byte) {
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
	h.Write(b)
}

// Text adds a name, its ASCII letters in lower case.
func (h Hash) Text(s string) {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	h.Field(b)
}

// Number adds eight bytes.
func (h Hash) Number(n uint64) { h.Field(binary.BigEndian.AppendUint64(nil, n)) }

// V1 is the sum as fingerprints and epochs are written.
func (h Hash) V1() string { return "v1:" + hex.EncodeToString(h.Sum(nil)) }

// Digest is the sum as digests of headers and areas are written.
func (h Hash) Digest() string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
