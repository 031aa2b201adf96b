package veracrypt

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"

	"github.com/jzelinskie/whirlpool"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 what volumes were made with is not ours to choose

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// kdf is one way from password to header key.
type kdf struct {
	name  string
	magic []byte
	hash  func() hash.Hash // nil = Argon2id
	// iterations without a PIM; with one they are base + step*PIM, and the kdf is
	// not used where step is 0.
	iterations uint64
	base, step uint64
}

func newBlake2s() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err) // only a key can be wrong
	}
	return h
}

var kdfs = []kdf{
	{"sha512", magicTrue, sha512.New, 1000, 0, 0},
	{"ripemd160", magicTrue, ripemd160.New, 2000, 0, 0},
	{"whirlpool", magicTrue, whirlpool.New, 1000, 0, 0},
	{"sha1", magicTrue, sha1.New, 2000, 0, 0},
	{"sha512", magicVera, sha512.New, 500_000, 15_000, 1000},
	{"sha256", magicVera, sha256.New, 500_000, 15_000, 1000},
	{"blake2s", magicVera, newBlake2s, 500_000, 15_000, 1000},
	{"whirlpool", magicVera, whirlpool.New, 500_000, 15_000, 1000},
	{"ripemd160", magicVera, ripemd160.New, 655_331, 15_000, 1000},
	{"argon2id", magicVera, nil, 0, 0, 0},
}

// systemKDFs are those of boot loaders; UEFI's use the counts of volumes.
var systemKDFs = []kdf{
	{"ripemd160", magicTrue, ripemd160.New, 1000, 0, 0},
	{"sha256", magicVera, sha256.New, 200_000, 0, 2048},
	{"blake2s", magicVera, newBlake2s, 200_000, 0, 2048},
	{"ripemd160", magicVera, ripemd160.New, 327_661, 0, 2048},
}

// kdfsOf are the key derivations that a declared hash may mean: all where none
// is declared, none where it cannot be read. magic nil takes both kinds.
func kdfsOf(name string, system bool, magic []byte) (out []kdf) {
	all := kdfs
	if system {
		all = slices.Concat(systemKDFs, kdfs)
	}
	for _, k := range all {
		if (name == "" || k.name == name) && (magic == nil || bytes.Equal(k.magic, magic)) {
			out = append(out, k)
		}
	}
	return out
}

func hashNames() (names []string) {
	for _, k := range kdfs {
		if !slices.Contains(names, k.name) {
			names = append(names, k.name)
		}
	}
	return names
}

// maxKey is what the longest cascade needs. Argon2id's output depends on the
// length that is asked for: VeraCrypt always asks for this much.
const maxKey = 6 * cipherKey

// maxPIM is VeraCrypt's own limit.
const maxPIM = 2_147_468

// count is the number of iterations for a PIM, 0 = none was given; ok is false
// where the key derivation knows no PIM.
func (k kdf) count(pim uint64) (n uint64, ok bool) {
	if pim == 0 {
		return k.iterations, true
	}
	return k.base + k.step*pim, k.step > 0
}

// argon is Argon2id's passes and KiB for a PIM.
func argon(pim uint64) (passes, memory uint64) {
	switch {
	case pim == 0:
		return 6, 416 << 10
	case pim <= 31:
		return 3 + (pim-1)/3, (64 + 32*(pim-1)) << 10
	default:
		return pim - 18, 1 << 20
	}
}

// usable says whether the key derivation exists with the PIM.
func (k kdf) usable(pim uint64) bool {
	if k.hash == nil {
		return true
	}
	_, ok := k.count(pim)
	return ok
}

// cost of the first n bytes, as diskcrypt.Limits counts.
func (k kdf) cost(pim uint64, n int) (memory, work int64) {
	if k.hash == nil {
		passes, kib := argon(pim)
		return int64(kib) << 10, int64(passes*kib) << 10
	}
	count, _ := k.count(pim)
	size := k.hash().Size()
	return 0, int64(count) * int64((n+size-1)/size) << 10
}

// derived is a header key that grows: most volumes need the first third only.
type derived struct {
	k        kdf
	password []byte
	salt     []byte
	pim      uint64
	key      []byte
}

// extend makes at least n bytes of the key.
func (d *derived) extend(ctx context.Context, n int) error {
	if d.key == nil {
		d.key = make([]byte, 0, maxKey+64)
	}
	if d.k.hash == nil {
		if len(d.key) > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		passes, kib := argon(d.pim)
		out := argon2.IDKey(d.password, d.salt, uint32(passes), uint32(kib), 1, maxKey)
		d.key = append(d.key, out...)
		envelope.Wipe(out)
		return nil
	}
	count, _ := d.k.count(d.pim)
	mac := hmac.New(d.k.hash, d.password)
	for len(d.key) < n {
		index := uint32(len(d.key)/mac.Size()) + 1
		out, err := pbkdf2Block(ctx, mac, d.salt, count, index)
		if err != nil {
			return err
		}
		d.key = append(d.key, out...)
		envelope.Wipe(out)
	}
	return nil
}

// pbkdf2Block is block index (from 1) of PBKDF2, RFC 8018 5.2: they do not
// depend on each other, and the standard library only makes all from the first.
func pbkdf2Block(ctx context.Context, mac hash.Hash, salt []byte, count uint64, index uint32) ([]byte, error) {
	mac.Reset()
	mac.Write(salt)
	mac.Write(binary.BigEndian.AppendUint32(nil, index))
	u := mac.Sum(nil)
	defer envelope.Wipe(u)
	out := slices.Clone(u)
	for i := uint64(1); i < count; i++ {
		if i%4096 == 0 && ctx.Err() != nil {
			envelope.Wipe(out)
			return nil, ctx.Err()
		}
		mac.Reset()
		mac.Write(u)
		mac.Sum(u[:0])
		for j := range out {
			out[j] ^= u[j]
		}
	}
	return out, nil
}

// meter counts what the key derivations of one Open may cost.
type meter struct{ memory, work int64 }

// Defaults of Limits.
const (
	defaultMemory = 4 << 30
	defaultWork   = 512 << 30
)

func newMeter(lim diskcrypt.Limits) *meter {
	m := &meter{memory: lim.KDFMemory, work: lim.KDFWork}
	if m.memory <= 0 {
		m.memory = defaultMemory
	}
	if m.work <= 0 {
		m.work = defaultWork
	}
	return m
}

// pay takes the cost, or takes nothing and returns ErrLimit.
func (m *meter) pay(k kdf, pim uint64) error {
	memory, work := k.cost(pim, maxKey)
	if memory > m.memory || work > m.work {
		return fmt.Errorf("%s: %d MiB of memory and %d GiB of work: %w", k.name, memory>>20, work>>30, diskcrypt.ErrLimit)
	}
	m.work -= work
	return nil
}
