// Package keyslot holds the mechanics that LUKS1 and LUKS2 share: key
// derivation with a bound on its cost, the anti-forensic splitter, the digest
// of the volume key, and the box made of them in which a volume key lies. It
// does not parse headers. Its invariant: nothing is derived before its cost is
// known and paid for.
package keyslot

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
	"math"
	"math/bits"
	"runtime/debug"
	"strings"

	"github.com/jzelinskie/whirlpool"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 LUKS1 headers name it

	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors of this package.
var (
	ErrUnsupported = errors.New("not supported")
	ErrLimit       = errors.New("costs more than is allowed")
	ErrWrong       = errors.New("wrong secret")
)

// Defaults of a Meter.
const (
	DefaultMemory = 4 << 30   // the most the LUKS2 format allows
	DefaultWork   = 512 << 30 // some minutes of Argon2 on a small machine
)

// KDF types.
const (
	PBKDF2   = "pbkdf2"
	Argon2i  = "argon2i"
	Argon2id = "argon2id"
)

// KDF derives a key from a secret.
type KDF struct {
	Type       string
	Hash       string // PBKDF2
	Iterations uint64 // PBKDF2
	Time       uint64 // Argon2: passes
	MemoryKiB  uint64 // Argon2
	Lanes      uint64 // Argon2: "cpus" of the LUKS2 header
	Salt       []byte
}

// String names the KDF and its cost for people.
func (k KDF) String() string {
	if k.Type == PBKDF2 {
		return fmt.Sprintf("pbkdf2 %s i=%d", k.Hash, k.Iterations)
	}
	return fmt.Sprintf("%s t=%d m=%d p=%d", k.Type, k.Time, k.MemoryKiB, k.Lanes)
}

// NewHash returns the constructor of a hash by the name headers use; the error is ErrUnsupported.
func NewHash(name string) (func() hash.Hash, error) {
	switch strings.ToLower(name) {
	case "sha1":
		return sha1.New, nil
	case "sha224":
		return sha256.New224, nil
	case "sha256":
		return sha256.New, nil
	case "sha384":
		return sha512.New384, nil
	case "sha512":
		return sha512.New, nil
	case "ripemd160":
		return ripemd160.New, nil
	case "whirlpool":
		return whirlpool.New, nil
	}
	return nil, fmt.Errorf("hash %q: %w", name, ErrUnsupported)
}

// Supported tells whether the KDF can be computed here: nil or ErrUnsupported.
func (k KDF) Supported() error {
	switch k.Type {
	case PBKDF2:
		if k.Iterations < 1 || k.Iterations > math.MaxUint32 {
			return fmt.Errorf("pbkdf2 with %d iterations: %w", k.Iterations, ErrUnsupported)
		}
		_, err := NewHash(k.Hash)
		return err
	case Argon2i, Argon2id:
		if k.Lanes < 1 || k.Lanes > math.MaxUint8 || k.Time < 1 || k.Time > math.MaxUint32 || k.MemoryKiB > math.MaxUint32 {
			return fmt.Errorf("kdf %s: %w", k, ErrUnsupported)
		}
		return nil
	}
	return fmt.Errorf("kdf %q: %w", k.Type, ErrUnsupported)
}

// Cost is what deriving keyLen bytes takes, in bytes of memory and in bytes of
// work (diskcrypt.Limits), both saturating.
func (k KDF) Cost(keyLen int) (memory, work int64) {
	if k.Type == PBKDF2 {
		return 0, pbkdf2Work(k.Hash, k.Iterations, keyLen)
	}
	memory = saturated(k.MemoryKiB, 1<<10)
	return memory, saturated(k.Time, uint64(memory))
}

func pbkdf2Work(hashName string, iterations uint64, keyLen int) int64 {
	blocks := 1
	if h, err := NewHash(hashName); err == nil {
		size := h().Size()
		blocks = (keyLen + size - 1) / size
	}
	return saturated(iterations, uint64(blocks)<<10)
}

func saturated(a, b uint64) int64 {
	hi, lo := bits.Mul64(a, b)
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(lo)
}

// oneArgon2 lets one Argon2 run at a time in the whole process: each may take
// gigabytes, and two would not be faster.
var oneArgon2 = make(chan struct{}, 1)

// bigArgon2 is the memory from which the freed blocks are given back at once,
// so that trying the slots of a header one after another needs the memory of one.
const bigArgon2 = 64 << 20

// derive computes keyLen bytes. The caller has paid for it.
func (k KDF) derive(ctx context.Context, secret []byte, keyLen int) ([]byte, error) {
	if err := k.Supported(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if k.Type == PBKDF2 {
		return derivePBKDF2(k.Hash, secret, k.Salt, k.Iterations, keyLen)
	}
	select {
	case oneArgon2 <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-oneArgon2 }()
	if k.MemoryKiB<<10 >= bigArgon2 {
		defer debug.FreeOSMemory()
	}
	scrub()
	defer scrub()
	if k.Type == Argon2i {
		return argon2.Key(secret, k.Salt, uint32(k.Time), uint32(k.MemoryKiB), uint8(k.Lanes), uint32(keyLen)), nil
	}
	return argon2.IDKey(secret, k.Salt, uint32(k.Time), uint32(k.MemoryKiB), uint8(k.Lanes), uint32(keyLen)), nil
}

func derivePBKDF2(hashName string, secret, salt []byte, iterations uint64, keyLen int) ([]byte, error) {
	h, err := NewHash(hashName)
	if err != nil {
		return nil, err
	}
	if iterations < 1 || iterations > math.MaxUint32 {
		return nil, fmt.Errorf("pbkdf2: %d iterations: %w", iterations, ErrLimit)
	}
	return pbkdf2Key(h, secret, salt, iterations, keyLen), nil
}

// Digest recognises a volume key.
type Digest struct {
	Hash       string
	Iterations uint64
	Salt       []byte
	Sum        []byte
}

// Cost is the work of one Verify.
func (d Digest) Cost() int64 { return pbkdf2Work(d.Hash, d.Iterations, len(d.Sum)) }

// Compute returns the digest of key, of n bytes.
func (d Digest) Compute(key []byte, n int) ([]byte, error) {
	return derivePBKDF2(d.Hash, key, d.Salt, d.Iterations, n)
}

// Verify tells in constant time whether key is the volume key. The caller has paid Cost.
func (d Digest) Verify(key []byte) (bool, error) {
	if len(d.Sum) == 0 {
		return false, nil
	}
	sum, err := d.Compute(key, len(d.Sum))
	if err != nil {
		return false, fmt.Errorf("volume key digest: %w", err)
	}
	defer envelope.Wipe(sum)
	return subtle.ConstantTimeCompare(sum, d.Sum) == 1, nil
}

// Meter holds what may still be spent on one header.
type Meter struct {
	memory, work int64
}

// NewMeter makes a Meter; zero means the default.
func NewMeter(memory, work int64) *Meter {
	if memory <= 0 {
		memory = DefaultMemory
	}
	if work <= 0 {
		work = DefaultWork
	}
	return &Meter{memory, work}
}

// Pay takes the cost from the meter, or takes nothing and returns ErrLimit.
func (m *Meter) Pay(memory, work int64) error {
	if memory > m.memory {
		return fmt.Errorf("%d MiB of memory, %d allowed: %w", memory>>20, m.memory>>20, ErrLimit)
	}
	if work > m.work {
		return fmt.Errorf("%d MiB of key-derivation work, %d left: %w", work>>20, m.work>>20, ErrLimit)
	}
	m.work -= work
	return nil
}
