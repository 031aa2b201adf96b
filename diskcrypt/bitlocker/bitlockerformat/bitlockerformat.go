// Package bitlockerformat makes BitLocker volumes: for tests, on images that
// they own. Nothing that backs up or restores imports it. It holds the keys of
// what it made. Its invariant: what it writes, dislocker decrypts and
// cryptsetup lists, as far as those know the feature.
package bitlockerformat

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/keys"
)

// Flavours of a volume.
const (
	Seven = fve.Seven
	ToGo  = fve.ToGo
	Vista = fve.Vista
)

// Kinds of protectors that can be made.
const (
	Password    = "passphrase"
	Recovery    = "recovery-password"
	StartupKey  = "startup-key"
	ClearKey    = "clear-key"
	TPM         = "tpm"        // a stub: nothing opens it
	SmartCard   = "smart-card" // a stub
	Unknown     = "other"      // a stub of a protection that nobody knows
	TPMAndPIN   = "tpm-pin"    // a stub
	NetworkLock = "network-unlock"
)

var protections = map[string]fve.Protection{
	Password: fve.ByPassword, Recovery: fve.ByRecovery, StartupKey: fve.ByExternal, ClearKey: fve.ByClearKey, TPM: fve.ByTPM,
	SmartCard: fve.ByPublicKey, Unknown: 0x4000, TPMAndPIN: fve.ByTPM | fve.ByPIN, NetworkLock: fve.ByTPM | fve.ByPublicKey,
}

// Protector is one to be made, and when it was, one that is there.
type Protector struct {
	Kind   string
	Name   string
	GUID   string // set by Format
	Secret []byte // Password: given. Recovery, StartupKey: set by Format, the digits or the .BEK file
}

// Options of Format. Zero values are the defaults named.
type Options struct {
	Flavour    string // Seven
	Method     string // "aes-xts-128"; aes-xts-256, aes-cbc-128, aes-cbc-256, aes-cbc-elephant-128, aes-cbc-elephant-256
	SectorSize int    // 512
	Label      string
	Protectors []Protector

	State, Next uint16 // 4, 4
	// Watermark is how many bytes from the start are encrypted, all of them by default.
	Watermark int64
	// Window is the length of what the log covers at the watermark, in state 2.
	Window int64
	// Chunks, where given, makes a used-space-only conversion with one bit for each
	// chunk of ChunkSize bytes.
	Chunks    []bool
	ChunkSize int
	// Moved is the number of sectors of the moved boot area: 8 KiB, on ToGo 48 sectors.
	Moved int
}

// Volume is what was made.
type Volume struct {
	Options
	GUID      string
	VMK, FVEK []byte
	// Plain is the logical volume: what was given, with zeroes where BitLocker
	// keeps its own.
	Plain  []byte
	Blocks [3]int64 // of the metadata
	Moved  int64    // where the boot area was moved
	EOW    [2]int64 // of the conversion's information
	size   int64
	raw    []byte
	nonce  uint32
}

const (
	kib      = 1 << 10
	fileTime = 132066973151562352 // 4 July 2019
	cluster  = 4096
)

// methodSpec is how a method is written and what it does; apart from the
// reader's own table on purpose.
type methodSpec struct {
	code    uint16
	keySize int
	fvek    int
	mode    byte // 'x' XTS, 'c' CBC, 'e' CBC with diffuser
}

var methodSpecs = map[string]methodSpec{
	"aes-cbc-elephant-128": {0x8000, 16, 64, 'e'},
	"aes-cbc-elephant-256": {0x8001, 32, 64, 'e'},
	"aes-cbc-128":          {0x8002, 16, 16, 'c'},
	"aes-cbc-256":          {0x8003, 32, 32, 'c'},
	"aes-xts-128":          {0x8004, 16, 32, 'x'},
	"aes-xts-256":          {0x8005, 32, 64, 'x'},
}

// Methods are the names that Options.Method takes.
var Methods = []string{"aes-cbc-elephant-128", "aes-cbc-elephant-256", "aes-cbc-128", "aes-cbc-256", "aes-xts-128", "aes-xts-256"}

func (o *Options) complete() error {
	if o.Flavour == "" {
		o.Flavour = Seven
	}
	if o.Method == "" {
		o.Method = "aes-xts-128"
	}
	if o.SectorSize == 0 {
		o.SectorSize = 512
	}
	if o.State == 0 {
		o.State, o.Next = 4, 4
	}
	if o.Moved == 0 {
		o.Moved = 8 * kib / o.SectorSize
		if o.Flavour == ToGo {
			o.Moved = 48
		}
	}
	if o.Flavour == Vista {
		o.Moved = 0
	}
	if _, ok := methodSpecs[o.Method]; !ok {
		return fmt.Errorf("method %q", o.Method)
	}
	for _, p := range o.Protectors {
		if _, ok := protections[p.Kind]; !ok {
			return fmt.Errorf("protector %q", p.Kind)
		}
	}
	return nil
}

// Format encrypts plain, whose start should be the boot sector of a file
// system (see BootSector), and writes it with its metadata to dev. The image is as long as
// plain: at least 1 MiB.
func Format(ctx context.Context, dev io.WriterAt, plain []byte, o Options) (*Volume, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("format bitlocker: %w", err)
	}
	if len(plain) < 1024*kib || len(plain)%cluster != 0 {
		return nil, errors.New("format bitlocker: the volume is smaller than 1 MiB, or no whole number of clusters")
	}
	v := &Volume{Options: o, size: int64(len(plain)), VMK: random(32), FVEK: random(methodSpecs[o.Method].fvek), nonce: 1}
	v.place()
	v.Plain = append([]byte(nil), plain...)
	for _, r := range v.reserved() {
		if head := int64(o.Moved * o.SectorSize); r.Offset < head {
			return nil, errors.New("format bitlocker: the moved boot area reaches into the metadata")
		}
		clear(v.Plain[r.Offset:r.End()])
	}
	image := append([]byte(nil), v.Plain...)
	if err := v.encrypt(image); err != nil {
		return nil, fmt.Errorf("format bitlocker: %w", err)
	}
	if err := v.metadata(ctx); err != nil {
		return nil, fmt.Errorf("format bitlocker: %w", err)
	}
	copy(image, v.bootSector(plain))
	for i := range v.Blocks {
		if err := v.Seal(image, i); err != nil {
			return nil, fmt.Errorf("format bitlocker: %w", err)
		}
	}
	v.conversion(image)
	if o.Flavour == Vista {
		// The reader gives back the file system's own boot sector.
		copy(v.Plain, image[:fve.BootSize])
		copy(v.Plain[3:], "NTFS    ")
		copy(v.Plain[56:64], plain[56:64])
	}
	if _, err := dev.WriteAt(image, 0); err != nil {
		return nil, fmt.Errorf("format bitlocker: %w", err)
	}
	return v, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// place lays out the metadata: at a quarter, the half and three quarters.
func (v *Volume) place() {
	for i := range v.Blocks {
		v.Blocks[i] = v.size / 4 * int64(i+1) / cluster * cluster
	}
	if v.Options.Moved > 0 {
		v.Moved = v.Blocks[0] + v.room()
	}
	if v.Chunks != nil {
		v.EOW = [2]int64{v.Blocks[1] + v.room(), v.Blocks[2] + v.room()}
	}
}

func (v *Volume) room() int64 {
	if v.Flavour == Vista {
		return 16 * kib
	}
	return 64 * kib
}

// bitmapAt is where the bitmap block lies behind each conversion information.
func (v *Volume) bitmapAt() int64 { return v.EOW[0] + 4*kib }

func (v *Volume) logAt() int64 { return v.EOW[0] + 8*kib }

const (
	logSize      = 8 * kib
	infoSize     = 64
	bitmapHeader = 64
	recordSize   = 512
	bitmapSize   = bitmapHeader + 2*recordSize
)

func (v *Volume) reserved() disk.Ranges {
	rs := []disk.Range{{Offset: v.Moved, Length: int64(v.Options.Moved * v.SectorSize)}}
	for _, off := range v.Blocks {
		rs = append(rs, disk.Range{Offset: off, Length: v.room()})
	}
	if v.Chunks != nil {
		whole := func(n int) int64 { return int64((n + v.SectorSize - 1) / v.SectorSize * v.SectorSize) }
		rs = append(rs, disk.Range{Offset: v.EOW[0], Length: whole(infoSize)}, disk.Range{Offset: v.EOW[1], Length: whole(infoSize)},
			disk.Range{Offset: v.bitmapAt(), Length: whole(bitmapSize)}, disk.Range{Offset: v.logAt(), Length: logSize})
	}
	return disk.Normalize(rs...)
}

// encryptedAt says whether the sector at off is ciphertext.
func (v *Volume) encryptedAt(off int64) bool {
	switch {
	case v.State == 1:
		return false
	case v.Flavour == Vista:
		return off >= 8*kib
	case v.Chunks != nil:
		return v.Chunks[off/int64(v.ChunkSize)]
	case v.Watermark > 0:
		return off < v.Watermark
	}
	return true
}

func (v *Volume) encrypt(image []byte) error {
	c, err := newCipher(methodSpecs[v.Method], v.FVEK)
	if err != nil {
		return err
	}
	s := v.SectorSize
	reserved := v.reserved()
	if v.Options.Moved > 0 {
		copy(image[v.Moved:], image[:v.Options.Moved*s])
		clear(image[:v.Options.Moved*s])
	}
	for off := 0; off < len(image); off += s {
		at := disk.Normalize(disk.Range{Offset: int64(off), Length: int64(s)})
		moved := int64(off) >= v.Moved && off < int(v.Moved)+v.Options.Moved*s
		if off < v.Options.Moved*s || len(reserved.Intersect(at)) > 0 && !moved || !v.encryptedAt(int64(off)) {
			continue
		}
		c.encrypt(image[off:off+s], uint64(off))
	}
	return nil
}

// BootSector is a boot sector of NTFS for a volume.
func BootSector(size int64, sectorSize int) []byte {
	b := make([]byte, fve.BootSize)
	copy(b, "\xeb\x52\x90NTFS    ")
	binary.LittleEndian.PutUint16(b[11:], uint16(sectorSize))
	b[13] = byte(cluster / sectorSize)
	b[21] = 0xf8
	b[36], b[38] = 0x80, 0x80
	binary.LittleEndian.PutUint64(b[40:], uint64(size/int64(sectorSize)-1))
	binary.LittleEndian.PutUint64(b[48:], 4)
	binary.LittleEndian.PutUint64(b[56:], 2)
	b[64], b[68] = 0xf6, 1
	copy(b[72:], random(8))
	b[510], b[511] = 0x55, 0xaa
	return b
}

// bootSector is BitLocker's own, from the file system's.
func (v *Volume) bootSector(plain []byte) []byte {
	le := binary.LittleEndian
	b := BootSector(v.size, v.SectorSize)
	guid := fve.GUIDNormal
	if v.Chunks != nil {
		guid = fve.GUIDEOW
	}
	at := 160
	switch v.Flavour {
	case Vista:
		copy(b, plain[:fve.BootSize])
		copy(b, "\xeb\x52\x90-FVE-FS-")
		le.PutUint64(b[56:], uint64(v.Blocks[0]/cluster))
		return b
	case ToGo:
		copy(b, "\xeb\x58\x90MSWIN4.1")
		at = 424
	default:
		copy(b, "\xeb\x58\x90-FVE-FS-")
	}
	// Behind the first fields it looks like FAT32's, whatever is inside.
	clear(b[24:90])
	copy(b[71:], "NO NAME    FAT32   ")
	copy(b[at:], guid[:])
	for i, off := range v.Blocks {
		le.PutUint64(b[at+16+8*i:], uint64(off))
	}
	if v.Chunks != nil {
		for i, off := range v.EOW {
			le.PutUint64(b[at+40+8*i:], uint64(off))
		}
	}
	return b
}

// nextNonce is one that was not used before.
func (v *Volume) nextNonce() []byte {
	b := binary.LittleEndian.AppendUint64(nil, fileTime)
	b = binary.LittleEndian.AppendUint32(b, v.nonce)
	v.nonce++
	return b
}

// box is a datum with key sealed under another key.
func (v *Volume) box(under []byte, role, alg uint16, key []byte) ([]byte, error) {
	blob := datum(fve.RoleProperty, fve.TypeKey, keyBody(alg, key))
	nonce := v.nextNonce()
	tag, sealed, err := keys.Seal(under, nonce, blob)
	if err != nil {
		return nil, err
	}
	return datum(role, fve.TypeCCM, nonce, tag, sealed), nil
}
