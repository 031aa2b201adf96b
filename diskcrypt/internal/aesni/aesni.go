// Package aesni is AES as an amd64 processor does it, in the two modes in which
// disks are encrypted, over whole runs of sectors: eight blocks are in flight
// at a time, which crypto/aes cannot do behind cipher.Block. It exists where
// Supported says so; elsewhere, and under the build tag purego, callers take
// their portable path. Its invariant: key schedules are its own, and Wipe
// leaves nothing of them.
package aesni

//go:generate env -C _asm GOWORK=off GOFLAGS=-mod=mod go run . -out ../aes_amd64.s -stubs ../aes_amd64.go -pkg aesni

const (
	// BlockSize is AES'.
	BlockSize = 16
	maxRounds = 14
)

// schedule is the round keys of one direction.
type schedule = [maxRounds + 1][BlockSize]byte

// Key is an expanded AES key: a cipher.Block, and the key of XTS and CBC. It is
// safe for concurrent use.
type Key struct {
	enc, dec schedule
	rounds   int
}

// KeySizeError is the size in bytes of what is no AES key.
type KeySizeError int

func (e KeySizeError) Error() string { return "aes: a key has 16, 24 or 32 bytes" }

// Wipe overwrites the schedules. The Key must not be used afterwards.
func (k *Key) Wipe() {
	if k != nil {
		*k = Key{}
	}
}
