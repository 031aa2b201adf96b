package fve

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math"
)

// Sizes of a metadata block.
const (
	blockHeader   = 64
	datasetHeader = 48
	// BlockSize is the room of a block on the volume, of Vista's VistaBlockSize.
	BlockSize      = 64 << 10
	VistaBlockSize = 16 << 10
	validationHead = 8
)

// States of a volume.
const (
	StateDecrypted = 1
	StateSwitching = 2 // in the middle of a conversion step: its log is in use
	StatePaused    = 3
	StateEncrypted = 4
)

// Encryption methods.
const (
	MethodCBC128Elephant = 0x8000
	MethodCBC256Elephant = 0x8001
	MethodCBC128         = 0x8002
	MethodCBC256         = 0x8003
	MethodXTS128         = 0x8004
	MethodXTS256         = 0x8005
)

// Block is one copy of the metadata.
type Block struct {
	At             int64 // where it was found
	Version        int   // 1: Vista, 2: later
	State, Next    uint16
	StateOffset    int64 // version 2: bytes encrypted from the start, 0: not said
	StateSize      int64 // state 2: length of the window at StateOffset that the log covers
	VirtualSectors int64 // version 2: sectors of the start that were moved
	VirtualOffset  int64 // version 2: where to
	MirrorLCN      uint64
	Offsets        [3]int64

	GUID      GUID // of the volume
	NextNonce uint32
	Method    uint16
	FileTime  uint64
	Datums    []Datum

	Raw        []byte // what the checksum and the validation's hash cover
	Validation *Datum // nil: the checksum alone
	tail       int
}

// Extent is how much of the block at At holds anything.
func (b *Block) Extent() int64 { return int64(len(b.Raw) + b.tail) }

// Room is what the volume reserves for a block.
func (b *Block) Room() int64 {
	if b.Version == 1 {
		return VistaBlockSize
	}
	return BlockSize
}

// ParseBlock reads a copy of the metadata from the bytes at offset at of a
// volume of size bytes. ErrNone: no block starts there; ErrDamaged: it is one,
// and wrong.
func ParseBlock(b []byte, at, size int64) (*Block, error) {
	if len(b) < blockHeader+datasetHeader || !bytes.Equal(b[:8], Magic) {
		return nil, ErrNone
	}
	fail := func(format string, args ...any) (*Block, error) {
		return nil, fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
	}
	out := &Block{At: at, Version: int(le.Uint16(b[10:])), State: le.Uint16(b[12:]), Next: le.Uint16(b[14:])}
	n := int(le.Uint16(b[8:]))
	switch out.Version {
	case 1:
	case 2:
		n *= 16
	default:
		return fail("version %d of the metadata", out.Version)
	}
	if n < blockHeader+datasetHeader || n+validationHead > min(len(b), BlockSize) {
		return fail("metadata of %d bytes", n)
	}
	out.Raw = bytes.Clone(b[:n])
	tail := b[n:]
	if sum := crc32.ChecksumIEEE(out.Raw); sum != le.Uint32(tail[4:]) {
		return fail("checksum %08x, not %08x", sum, le.Uint32(tail[4:]))
	}
	if err := out.header(size); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := out.dataset(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := out.validation(bytes.Clone(tail[:min(len(tail), 512)])); err != nil {
		return nil, err
	}
	return out, nil
}

func (b *Block) header(size int64) error {
	for i := range b.Offsets {
		off := le.Uint64(b.Raw[32+8*i:])
		if off > math.MaxInt64-BlockSize {
			return fmt.Errorf("copy %d at %d", i+1, off)
		}
		b.Offsets[i] = int64(off)
	}
	if b.At >= 0 && b.At != b.Offsets[0] && b.At != b.Offsets[1] && b.At != b.Offsets[2] {
		return fmt.Errorf("it stands at %d, which is none of its own offsets", b.At)
	}
	if b.Version == 1 {
		b.MirrorLCN = le.Uint64(b.Raw[56:])
		return nil
	}
	watermark, moved := le.Uint64(b.Raw[16:]), le.Uint64(b.Raw[56:])
	b.VirtualSectors, b.StateSize = int64(le.Uint32(b.Raw[28:])), int64(le.Uint32(b.Raw[24:]))
	// Nothing that is moved is larger than a part of the volume; 2^32 sectors are not possible.
	if watermark > math.MaxInt64-math.MaxUint32 {
		return fmt.Errorf("%d encrypted bytes", watermark)
	}
	if moved > math.MaxInt64-math.MaxUint32<<12 || b.VirtualSectors > 0 && (int64(moved) >= size || b.VirtualSectors*512 > size-int64(moved)) {
		return fmt.Errorf("the moved boot area of %d sectors at %d lies outside the volume of %d bytes", b.VirtualSectors, moved, size)
	}
	b.StateOffset, b.VirtualOffset = int64(watermark), int64(moved)
	return nil
}

func (b *Block) dataset() (err error) {
	d := b.Raw[blockHeader:]
	size, version, start, end := le.Uint32(d), le.Uint32(d[4:]), le.Uint32(d[8:]), le.Uint32(d[12:])
	if version != 1 || start < datasetHeader || end < start || uint64(end) > uint64(len(d)) || size < end {
		return fmt.Errorf("dataset version %d, entries from %d to %d of %d bytes", version, start, end, len(d))
	}
	copy(b.GUID[:], d[16:])
	b.NextNonce, b.Method, b.FileTime = le.Uint32(d[32:]), le.Uint16(d[36:]), le.Uint64(d[40:])
	if b.Datums, err = ParseDatums(d[start:end]); err != nil {
		return err
	}
	return nil
}

// validation reads what follows the checksum: a box or a plain hash. That it
// is missing is no damage; that it is garbage is.
func (b *Block) validation(tail []byte) error {
	b.tail = validationHead
	ds := tail[validationHead:]
	if len(ds) < datumHeader || le.Uint16(ds) == 0 {
		return nil
	}
	n := int(le.Uint16(ds))
	if n > len(ds) {
		return fmt.Errorf("%w: validation of %d bytes", ErrDamaged, n)
	}
	list, err := ParseDatums(ds[:n])
	if err != nil {
		return fmt.Errorf("%w: validation: %w", ErrDamaged, err)
	}
	b.tail += n
	b.Validation = &list[0]
	return nil
}

// ValidationBytes is the validation datum of the block.
func (b *Block) ValidationBytes() []byte {
	if b.Validation == nil {
		return nil
	}
	return b.Validation.Raw
}
