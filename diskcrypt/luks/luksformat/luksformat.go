// Package luksformat makes and edits LUKS headers and writes encrypted
// payloads: for demonstrations and for tests, on devices that those own.
// Nothing that backs up or restores imports it. It holds no secrets but the
// volume key, which Close wipes. Its invariant: what it writes, cryptsetup
// reads and edits, and it edits what cryptsetup left.
package luksformat

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors of the editor.
var (
	ErrNoSlot = errors.New("no such key slot")
	ErrFull   = errors.New("no room for another key slot")
)

// Device is the disk, partition or file with the header.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// KDF says how a key slot derives its key. The zero value is PBKDF2 with
// SHA-256 and 1000 iterations: quick, for demonstrations, not for keeping secrets.
type KDF struct {
	Type       string // "pbkdf2", "argon2i", "argon2id"; LUKS1 has pbkdf2 only
	Hash       string // PBKDF2; LUKS1 uses Options.Hash
	Iterations int    // PBKDF2
	Time       int    // Argon2: passes
	MemoryKiB  int    // Argon2
	Lanes      int    // Argon2
}

// Options of Format. Zero values are the defaults named.
type Options struct {
	Version      int    // 2
	UUID         string // random
	Label        string // LUKS2
	Cipher       string // "aes-xts-plain64"
	KeyBits      int    // 512; 256 with cbc
	SectorSize   int    // 512; LUKS1 has no other
	Hash         string // "sha256", of the digest and the anti-forensic splitter
	MetadataSize int64  // LUKS2: bytes of one copy of the header, 16 KiB
	KeyslotsSize int64  // LUKS2: 16 MiB less both copies; 258048 bytes hold one slot of a 512-bit key
	DataOffset   int64  // right behind the header, LUKS1 to the next MiB; -1: 0, for a detached header
	// VolumeKey, if not empty, is used instead of a random one.
	VolumeKey envelope.Secret
}

// Volume is a formatted volume whose key is known.
type Volume struct {
	dev  Device
	size int64
	key  envelope.Secret
}

const (
	luks2Copy = 16 << 10
	mib       = 1 << 20
	align     = 4096
)

// Format writes a header without key slots to dev, of size bytes.
func Format(dev Device, size int64, o Options) (*Volume, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("format luks: %w", err)
	}
	key := make([]byte, o.KeyBits/8)
	if o.VolumeKey.Len() > 0 {
		copy(key, o.VolumeKey.Expose())
	} else if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("format luks: %w", err)
	}
	v := &Volume{dev: dev, size: size, key: envelope.NewSecret(key)}
	var err error
	if o.Version == 1 {
		err = v.format1(o)
	} else {
		err = v.format2(o)
	}
	if err != nil {
		v.Close()
		return nil, fmt.Errorf("format luks: %w", err)
	}
	return v, nil
}

func (o *Options) complete() error {
	set := func(p *int64, d int64) {
		if *p == 0 {
			*p = d
		}
	}
	if o.Version == 0 {
		o.Version = 2
	}
	if o.Cipher == "" {
		o.Cipher = "aes-xts-plain64"
	}
	if o.KeyBits == 0 {
		o.KeyBits = 512
		if !strings.Contains(o.Cipher, "xts") {
			o.KeyBits = 256
		}
	}
	if o.SectorSize == 0 {
		o.SectorSize = 512
	}
	if o.Hash == "" {
		o.Hash = "sha256"
	}
	if o.UUID == "" {
		u, err := newUUID()
		if err != nil {
			return err
		}
		o.UUID = u
	}
	set(&o.MetadataSize, luks2Copy)
	set(&o.KeyslotsSize, 16*mib-2*o.MetadataSize)
	if o.Version == 1 {
		set(&o.DataOffset, roundUp(luks1Areas(o.KeyBits/8), mib))
	} else {
		set(&o.DataOffset, 2*o.MetadataSize+o.KeyslotsSize)
	}
	if o.DataOffset < 0 {
		o.DataOffset = 0
	}
	spec, err := dmcrypt.ParseSpec(o.Cipher)
	switch {
	case err != nil:
		return err
	case !spec.KeySizeOK(o.KeyBits / 8):
		return fmt.Errorf("cipher %s with a key of %d bits", o.Cipher, o.KeyBits)
	case o.VolumeKey.Len() != 0 && o.VolumeKey.Len() != o.KeyBits/8:
		return fmt.Errorf("volume key of %d bits, %d wanted", o.VolumeKey.Len()*8, o.KeyBits)
	case o.Version != 1 && o.Version != 2:
		return fmt.Errorf("version %d", o.Version)
	case o.Version == 1 && o.SectorSize != 512:
		return fmt.Errorf("LUKS1 with sectors of %d bytes", o.SectorSize)
	case len(o.UUID) > 36 || len(o.Label) > 47:
		return errors.New("uuid or label is too long")
	}
	_, err = keyslot.NewHash(o.Hash)
	return err
}

// Attach finds the volume key of an existing volume with a secret that opens it.
func Attach(ctx context.Context, dev Device, size int64, secret envelope.Secret) (*Volume, error) {
	h, err := header.Read(dev, size, size)
	if err != nil {
		return nil, fmt.Errorf("attach luks: %w", err)
	}
	for _, s := range h.Slots {
		d := h.Digest(s.Digest)
		if s.Type != header.SlotLUKS2 || len(d.Segments) == 0 {
			continue
		}
		key, err := s.Box.Open(ctx, dev, secret.Expose())
		if err != nil {
			return nil, fmt.Errorf("attach luks: key slot %d: %w", s.Number, err)
		}
		if ok, err := d.Check.Verify(key); err == nil && ok {
			return &Volume{dev: dev, size: size, key: envelope.NewSecret(key)}, nil
		}
		envelope.Wipe(key)
	}
	return nil, fmt.Errorf("attach luks: %w", diskcrypt.ErrWrongSecret)
}

// VolumeKey returns a copy of the volume key; the caller wipes it.
func (v *Volume) VolumeKey() envelope.Secret { return envelope.CopySecret(v.key.Expose()) }

// Close wipes the volume key.
func (v *Volume) Close() { v.key.Wipe() }

// read returns the header as it is on the device now: others may have edited it.
func (v *Volume) read() (*header.Header, error) { return header.Read(v.dev, v.size, v.size) }

// AddKey puts the volume key into the first free key slot, opened by secret,
// and returns the slot's number.
func (v *Volume) AddKey(ctx context.Context, secret envelope.Secret, kdf KDF) (int, error) {
	h, err := v.read()
	if err != nil {
		return 0, fmt.Errorf("add key: %w", err)
	}
	number := 0
	for _, s := range h.Slots { // ascending
		if s.Number == number {
			number++
		}
	}
	if h.Version == 1 {
		err = v.setSlot1(ctx, h, number, secret, kdf)
	} else {
		err = v.setSlot2(ctx, h, number, secret, kdf)
	}
	if err != nil {
		return 0, fmt.Errorf("add key: %w", err)
	}
	return number, nil
}

// ChangeKey replaces the secret of a slot and returns the slot it now is: the
// same for LUKS2, for LUKS1 a free one if there is one, as cryptsetup does.
func (v *Volume) ChangeKey(ctx context.Context, slot int, secret envelope.Secret, kdf KDF) (int, error) {
	h, err := v.read()
	if err != nil {
		return 0, fmt.Errorf("change key: %w", err)
	}
	old, err := find(h, slot)
	if err != nil {
		return 0, fmt.Errorf("change key: %w", err)
	}
	if h.Version == 2 {
		if err := v.setSlot2(ctx, h, slot, secret, kdf); err != nil {
			return 0, fmt.Errorf("change key: %w", err)
		}
		if err := v.destroy(old.Area); err != nil {
			return 0, fmt.Errorf("change key: %w", err)
		}
		return slot, nil
	}
	if len(h.Slots) == luks1Slots {
		if err := v.setSlot1(ctx, h, slot, secret, kdf); err != nil {
			return 0, fmt.Errorf("change key: %w", err)
		}
		return slot, nil
	}
	number, err := v.AddKey(ctx, secret, kdf)
	if err != nil {
		return 0, fmt.Errorf("change key: %w", err)
	}
	return number, v.RemoveKey(slot)
}

// RemoveKey takes a key slot out of the header and overwrites its area.
func (v *Volume) RemoveKey(slot int) error {
	h, err := v.read()
	if err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	s, err := find(h, slot)
	if err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	if h.Version == 1 {
		err = v.clearSlot1(h, slot)
	} else {
		err = v.clearSlot2(h, slot)
	}
	if err == nil {
		err = v.destroy(s.Area)
	}
	if err != nil {
		return fmt.Errorf("remove key: %w", err)
	}
	return nil
}

func find(h *header.Header, slot int) (header.Slot, error) {
	for _, s := range h.Slots {
		if s.Number == slot {
			return s, nil
		}
	}
	return header.Slot{}, fmt.Errorf("slot %d: %w", slot, ErrNoSlot)
}

// destroy overwrites an area with random bytes.
func (v *Volume) destroy(a header.Area) error {
	b := make([]byte, a.Size)
	if _, err := rand.Read(b); err != nil {
		return err
	}
	_, err := v.dev.WriteAt(b, a.Offset)
	return err
}

// box completes a KDF into a box for the volume key, with a new salt.
func (v *Volume) box(kdf KDF, afHash, cipher string) (keyslot.Box, error) {
	salt := make([]byte, 32)
	if _, err := rand.Read(salt); err != nil {
		return keyslot.Box{}, err
	}
	k := keyslot.KDF{
		Type: kdf.Type, Hash: kdf.Hash, Iterations: uint64(kdf.Iterations),
		Time: uint64(kdf.Time), MemoryKiB: uint64(kdf.MemoryKiB), Lanes: uint64(kdf.Lanes), Salt: salt,
	}
	if k.Type == "" {
		k.Type = keyslot.PBKDF2
	}
	if k.Type == keyslot.PBKDF2 {
		if k.Hash == "" {
			k.Hash = "sha256"
		}
		if k.Iterations == 0 {
			k.Iterations = 1000 // the least that cryptsetup takes
		}
	}
	b := keyslot.Box{KDF: k, KeyBytes: v.key.Len(), AFHash: afHash, Cipher: cipher, CipherKeySize: v.key.Len()}
	return b, b.Supported()
}

// digest makes the volume key's digest, of n bytes, 0 for the hash's length.
func (v *Volume) digest(hashName string, n int) (keyslot.Digest, error) {
	d := keyslot.Digest{Hash: hashName, Iterations: 1000, Salt: make([]byte, 32)}
	if _, err := rand.Read(d.Salt); err != nil {
		return d, err
	}
	if n == 0 {
		h, err := keyslot.NewHash(hashName)
		if err != nil {
			return d, err
		}
		n = h().Size()
	}
	var err error
	d.Sum, err = d.Compute(v.key.Expose(), n)
	return d, err
}

func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
