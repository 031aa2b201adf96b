// Package diskcrypt is the contract for what encrypts a disk and what opens
// it. Everything works over io.ReaderAt and never writes to a source.
package diskcrypt

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrNotThisFormat = errors.New("not this format")          // try the next one
	ErrDamaged       = errors.New("header is damaged")        // no valid copy of the header
	ErrWrongSecret   = errors.New("no protector opened")      // the secret opens nothing here
	ErrUnsupported   = errors.New("not supported")            // recognised, named, cannot be opened
	ErrLimit         = errors.New("header asks for too much") // more memory or time than Limits allows
	ErrMistyped      = errors.New("mistyped")                 // no secret of its kind is written like this
)

// Volume types. A volume is an encrypted volume; What is not encrypted is no volume.
const (
	TypeLUKS1     = "luks1"
	TypeLUKS2     = "luks2"
	TypeBitLocker = "bitlocker"
	TypeFileVault = "filevault"
	TypeAPFS      = "apfs"
	TypeVeraCrypt = "veracrypt" // VeraCrypt or TrueCrypt: never seen, only declared
	TypePlain     = "dm-crypt"  // dm-crypt without a header: never seen, only declared
	TypeOpaque    = "opaque"    // high entropy without a known header: may be VeraCrypt or plain dm-crypt
)

// Volume is an encrypted volume found on a disk. Its identity is (machine,
// disk, ID); UUID is an attribute, for clones share it.
type Volume struct {
	// ID is its place: "disk" for the whole disk, "p1", "p2", … for partitions, and
	// for logical volumes the device mapper's name: "vg-lv", hyphens in a name doubled.
	ID    string     `json:"id"`
	Range disk.Range `json:"range"` // bytes of the disk
	// Extents are the volume's bytes on the disk, in the volume's order, where they
	// are not just Range: a logical volume's. Range is then the least that has them all.
	Extents []disk.Range `json:"extents,omitempty"`
	// Declared are the parameters that the user declared where the type cannot be
	// seen, "type" among them; nil where it was seen. No secrets.
	Declared map[string]string `json:"declared,omitempty"`
	Type     string            `json:"type"`
	UUID     string            `json:"uuid,omitempty"`
	Label    string            `json:"label,omitempty"`

	Cipher     string `json:"cipher,omitempty"` // as the header names it, e.g. aes-xts-plain64
	KeyBits    int    `json:"key_bits,omitempty"`
	SectorSize int    `json:"sector_size,omitempty"`

	// Epoch is the fingerprint of the volume key that can be read from the
	// header ("v1:" + hex SHA-256); empty where it cannot be known without opening.
	Epoch      string      `json:"epoch,omitempty"`
	Protectors []Protector `json:"protectors"`
	Tokens     []Token     `json:"tokens,omitempty"`

	// Detached: the header is a file of its own and not on this disk.
	Detached bool `json:"detached,omitempty"`
	// HeaderRanges are the ranges, relative to the volume (or to the detached
	// header), that the usual tools need to bring the header back.
	HeaderRanges []disk.Range `json:"header_ranges,omitempty"`
	// HeaderEssential are the parts of HeaderRanges that hold anything; a copy
	// of them, zeroes between, is as good for a restore.
	HeaderEssential []disk.Range `json:"header_essential,omitempty"`
	// HeaderDigest is "sha256:" + hex over what Inspect read of the header
	// (live key-slot areas included): equal digests mean equal headers.
	HeaderDigest string `json:"header_digest,omitempty"`
	SequenceID   uint64 `json:"sequence_id,omitempty"` // LUKS2 seqid; going backwards is a rolled-back header

	// Unsupported names why the volume cannot be opened by us (cipher, requirement), "" if it can.
	Unsupported string `json:"unsupported,omitempty"`
	// Undecidable says why most of the volume cannot be read although it opens,
	// "" if it can: how far a conversion got is lost.
	Undecidable string `json:"undecidable,omitempty"`
	// Conversion names an encryption, decryption or re-encryption in progress, "" if none.
	Conversion string `json:"conversion,omitempty"`
	// SelfOpening says what on the volume itself opens it (null cipher, clear key), "" if nothing.
	SelfOpening string   `json:"self_opening,omitempty"`
	Warnings    []string `json:"warnings,omitempty"`
}

// Protector is something that unlocks a volume: a keyslot, a key protector.
type Protector struct {
	ID   string `json:"id"`   // "slot-0", …
	Kind string `json:"kind"` // "passphrase" (LUKS keyslots take passphrases and key files alike), "recovery-password", "tpm", …
	// Fingerprint identifies the protector without any key: "v1:" + hex SHA-256
	// over the canonical encoding of docs/spec/fingerprints.md.
	Fingerprint string `json:"fingerprint"`
	// AreaDigest is "sha256:" + hex over the wrapped key itself: changed while
	// Fingerprint is not means damage.
	AreaDigest string `json:"area_digest,omitempty"`
	KDF        string `json:"kdf,omitempty"` // for people: "argon2id t=4 m=1048576 p=4"
	// Offline says that the protector can be opened away from its machine (a TPM's cannot).
	Offline bool `json:"offline"`
	// Created is when it was added, to the second, where the header says it.
	Created time.Time `json:"created,omitzero"`
	Note    string    `json:"note,omitempty"`
}

// Token says who can supply a protector's secret (LUKS2 tokens).
type Token struct {
	ID       string   `json:"id"`
	Type     string   `json:"type"`
	Slots    []string `json:"slots,omitempty"` // protector ids
	Digest   string   `json:"digest"`          // "sha256:" over its canonical JSON
	Meaning  string   `json:"meaning"`         // what it means for a restore elsewhere
	Portable bool     `json:"portable"`
}

// Kind of secret, as in custody.
type Kind string

// The kinds.
const (
	KindPassphrase       Kind = "passphrase"
	KindKeyFile          Kind = "key-file"
	KindRecoveryPassword Kind = "recovery-password"
	KindStartupKey       Kind = "startup-key"
	KindVolumeKey        Kind = "volume-key"        // of BitLocker: the FVEK
	KindVolumeMasterKey  Kind = "volume-master-key" // of BitLocker: the VMK
	KindVeraCrypt        Kind = "veracrypt"         // passphrase with PIM and key files
)

// Kinds lists all, in the order help texts show them.
var Kinds = []Kind{KindPassphrase, KindKeyFile, KindRecoveryPassword, KindStartupKey, KindVolumeKey, KindVolumeMasterKey, KindVeraCrypt}

// KindNone with an empty secret opens what opens itself (Volume.SelfOpening). It
// is no kind of secret, and proves none.
const KindNone Kind = "none"

// Limits bounds what a header may ask of us.
type Limits struct {
	KDFMemory int64 // bytes; 0 = 4 GiB, the most the LUKS2 format allows
	// KDFWork bounds the time of one Open or OpensAll, all protectors together, in
	// bytes written: Argon2 passes × memory, PBKDF2 iterations × hash blocks × 1 KiB
	// (about as long). 0 = default of the adapter.
	KDFWork int64
}

// Place is where a volume's bytes are: the disk's bytes of the volume, and the
// header where that is detached (nil otherwise).
type Place struct {
	Data     io.ReaderAt // offset 0 = first byte of the volume
	Size     int64
	Header   io.ReaderAt
	HeadSize int64
	// Declared is Volume.Declared: what nothing on the disk shows.
	Declared map[string]string
}

// Format is one kind of encryption. Implementations hold no state.
type Format interface {
	// Name is the volume type or family, e.g. "luks".
	Name() string
	// Inspect reads the header. ErrNotThisFormat where it is something else;
	// with ErrDamaged the Volume is non-nil and says what is known.
	Inspect(ctx context.Context, p Place) (*Volume, error)
	// Open tries secret against the volume's protectors, newest header, in
	// order, and returns the opened volume, or ErrWrongSecret, ErrUnsupported, ErrLimit.
	Open(ctx context.Context, p Place, kind Kind, secret envelope.Secret, lim Limits) (Opened, error)
	// OpensAll is like Open but tries every protector, and returns the ids of all
	// that opened. With ErrLimit or ErrUnsupported (some protectors were passed over)
	// the ids of those that did open come with the error.
	// It needs no support for the data's cipher, only for the protectors'.
	OpensAll(ctx context.Context, p Place, kind Kind, secret envelope.Secret, lim Limits) ([]string, error)
}

// Deriver is a Format whose volumes hold secrets of their own under their key.
type Deriver interface {
	// Derive opens the volume as Open does and gives the secrets of its other
	// protectors, none if there are none. The caller wipes them.
	Derive(ctx context.Context, p Place, kind Kind, secret envelope.Secret, lim Limits) ([]Derived, error)
}

// Derived is a secret that Derive gives.
type Derived struct {
	Protector string // the id of the protector that it opens
	Kind      Kind
	Secret    envelope.Secret
}

// Speller is a Format that knows how secrets of some kinds are written.
type Speller interface {
	// CheckSecret says what is mistyped and where, never with what was typed:
	// ErrMistyped, or nil where nothing is, or nothing is known of the kind.
	CheckSecret(kind Kind, secret envelope.Secret) error
}

// CheckSecret has the formats look at a secret before it is tried or kept.
func CheckSecret(formats []Format, kind Kind, secret envelope.Secret) error {
	for _, f := range formats {
		if s, ok := f.(Speller); ok {
			if err := s.CheckSecret(kind, secret); err != nil {
				return err
			}
		}
	}
	return nil
}

// Opened is a volume whose key is known. ReadAt gives plaintext, offset 0 =
// first byte of the plaintext device.
type Opened interface {
	io.ReaderAt
	Size() int64
	Protector() string // id of the protector that opened, "volume-key" if the key itself was given
	// KeyCheck names the check the volume key passed, e.g. "luks2-digest-0".
	KeyCheck() string
	// KeyMAC is HMAC-SHA256(key, "vk" || container id || volume key): equal MACs
	// under one key mean equal volume keys.
	KeyMAC(key []byte) []byte
	Close() error // wipes the keys
}
