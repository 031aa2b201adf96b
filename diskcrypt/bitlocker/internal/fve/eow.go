package fve

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"

	"github.com/lockstep-backup/lockstep/disk"
)

// Limits on what a conversion's information may say.
const (
	maxRegions    = 4096
	maxEOWHeader  = 64 << 10
	maxBitmapRead = 1 << 20 // one bitmap block
	maxBitmaps    = 4 << 20 // all of them
	minChunk      = 4096
	maxStretches  = 1 << 20 // encrypted ones, with gaps between them
)

var (
	MagicEOW    = []byte("FVE-EOW\x00")
	magicBitmap = []byte("FVE-EOWBM\x00")
	magicRecord = []byte("FVE-EOWBR\x00")
)

// EOW says which parts of a volume are encrypted while it is converted the way
// of Windows 8 and later ("encrypt on write").
type EOW struct {
	Encrypted disk.Ranges // of the volume
	Chunks    int64       // all
	Done      int64       // of them encrypted
	Reserved  disk.Ranges // what the volume keeps for its own use
	Digest    []byte      // all that was read
	Warnings  []string
}

// Mixed says that some chunks are encrypted and some are not.
func (e *EOW) Mixed() bool { return e.Done > 0 && e.Done < e.Chunks }

type eowInfo struct {
	raw       []byte
	size      int64
	sector    int64
	chunk     int64
	logSize   int64
	bitmapsAt []int64
	offsets   [2]int64
}

// parseEOWInfo reads one copy of the information.
func parseEOWInfo(b []byte) (*eowInfo, error) {
	if len(b) < 56 || !bytes.Equal(b[:8], MagicEOW) {
		return nil, fmt.Errorf("%w: no conversion information", ErrDamaged)
	}
	head, total, regions := int(le.Uint16(b[8:])), int(le.Uint16(b[10:])), le.Uint32(b[32:])
	if head < 56 || regions > maxRegions || total > len(b) || total < head+8*int(regions) {
		return nil, fmt.Errorf("%w: conversion information of %d bytes for %d regions", ErrDamaged, total, regions)
	}
	raw := bytes.Clone(b[:total])
	sum := le.Uint32(raw[36:])
	clear(raw[36:40])
	if crc32.ChecksumIEEE(raw) != sum {
		return nil, fmt.Errorf("%w: checksum of the conversion information", ErrDamaged)
	}
	info := &eowInfo{raw: raw, size: int64(total), sector: int64(le.Uint32(b[12:])), chunk: int64(le.Uint32(b[20:])), logSize: int64(le.Uint32(b[24:]))}
	if info.chunk < minChunk || info.chunk%minChunk != 0 {
		return nil, fmt.Errorf("%w: conversion in chunks of %d bytes", ErrDamaged, info.chunk)
	}
	for i := range info.offsets {
		info.offsets[i] = int64(le.Uint64(b[40+8*i:]) & math.MaxInt64)
	}
	for i := range int(regions) {
		off := le.Uint64(b[head+8*i:])
		if off > math.MaxInt64-maxBitmapRead {
			return nil, fmt.Errorf("%w: bitmap at %d", ErrDamaged, off)
		}
		info.bitmapsAt = append(info.bitmapsAt, int64(off))
	}
	return info, nil
}

// ReadEOW reads the conversion's information from one of its places, and all
// its bitmaps. Without a good copy of everything nobody can say what is
// encrypted, which is ErrDamaged.
func ReadEOW(r io.ReaderAt, size int64, at []int64, sector int64) (*EOW, error) {
	var info *eowInfo
	out := &EOW{}
	reason := fmt.Errorf("%w: the conversion's information is nowhere", ErrDamaged)
	for _, off := range at {
		b, err := readSome(r, size, off, maxEOWHeader)
		if err != nil {
			return nil, err
		}
		got, err := parseEOWInfo(b)
		if err != nil {
			reason = err
			out.Warnings = append(out.Warnings, fmt.Sprintf("the copy of the conversion's information at %d: %v", off, err))
			continue
		}
		if info == nil {
			info = got
		}
	}
	if info == nil {
		return nil, reason
	}
	out.Digest = info.raw
	var reserved []disk.Range
	round := func(n int64) int64 { return (n + sector - 1) / sector * sector }
	for _, off := range at {
		reserved = append(reserved, disk.Range{Offset: off, Length: round(info.size)})
	}
	var encrypted []disk.Range
	end, total := int64(0), int64(0)
	for i, off := range info.bitmapsAt {
		b, err := readSome(r, size, off, maxBitmapRead)
		if err != nil {
			return nil, err
		}
		m, err := parseBitmap(b, info.chunk, size)
		if err != nil {
			return nil, fmt.Errorf("bitmap %d: %w", i+1, err)
		}
		if total += int64(len(m.raw)); total > maxBitmaps {
			return nil, fmt.Errorf("%w: bitmaps of more than %d bytes", ErrDamaged, maxBitmaps)
		}
		if m.region.Offset < end || m.region.Offset%sector != 0 {
			return nil, fmt.Errorf("bitmap %d: %w: its region starts at %d, behind %d", i+1, ErrDamaged, m.region.Offset, end)
		}
		end = m.region.End()
		out.Digest = append(out.Digest, m.raw...)
		reserved = append(reserved, disk.Range{Offset: off, Length: round(int64(m.size))})
		if m.log > 0 {
			reserved = append(reserved, disk.Range{Offset: m.log, Length: round(info.logSize)})
		}
		if encrypted = append(encrypted, m.encrypted(info.chunk)...); len(encrypted) > maxStretches {
			return nil, fmt.Errorf("%w: more than %d encrypted stretches", ErrDamaged, maxStretches)
		}
		out.Chunks += m.bits
		for k := range m.bits {
			out.Done += int64(m.chunks[k/8] >> (k % 8) & 1)
		}
	}
	out.Reserved = disk.Normalize(reserved...)
	out.Encrypted = disk.Normalize(encrypted...)
	return out, nil
}

func readSome(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || off >= size {
		return nil, nil
	}
	b := make([]byte, min(n, size-off))
	if _, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(b))), b); err != nil {
		return nil, err
	}
	return b, nil
}

type bitmap struct {
	raw    []byte
	size   int
	region disk.Range
	log    int64
	bits   int64
	chunks []byte
}

// parseBitmap reads a bitmap block: the newest of its records that is sound.
func parseBitmap(b []byte, chunk, volume int64) (*bitmap, error) {
	if len(b) < 60 || !bytes.Equal(b[:10], magicBitmap) {
		return nil, fmt.Errorf("%w: no bitmap", ErrDamaged)
	}
	size := int64(le.Uint32(b[12:]))
	regionAt, regionSize, log := le.Uint64(b[20:]), le.Uint64(b[28:]), le.Uint64(b[36:])
	recordSize := int64(le.Uint32(b[52:]))
	records := [2]int64{int64(le.Uint32(b[44:])), int64(le.Uint32(b[48:]))}
	if size < 60 || size > int64(len(b)) || records[0] < 60 || records[0] > size {
		return nil, fmt.Errorf("%w: bitmap of %d bytes", ErrDamaged, size)
	}
	head := bytes.Clone(b[:records[0]])
	clear(head[56:60])
	if crc32.ChecksumIEEE(head) != le.Uint32(b[56:]) {
		return nil, fmt.Errorf("%w: checksum of a bitmap", ErrDamaged)
	}
	if regionAt > uint64(volume) || regionSize > uint64(volume)+uint64(chunk) || log > math.MaxInt64-maxBitmapRead {
		return nil, fmt.Errorf("%w: bitmap of the region [%d, +%d)", ErrDamaged, regionAt, regionSize)
	}
	out := &bitmap{
		size: int(size), region: disk.Range{Offset: int64(regionAt), Length: int64(regionSize)}, log: int64(log),
		bits: (int64(regionSize) + chunk - 1) / chunk,
	}
	newest := uint64(0)
	for _, off := range records {
		if off < 60 || off > size-recordSize || recordSize < 36 {
			continue
		}
		r := bytes.Clone(b[off : off+recordSize])
		sum := le.Uint32(r[32:])
		clear(r[32:36])
		if !bytes.Equal(r[:10], magicRecord) || crc32.ChecksumIEEE(r) != sum || int64(len(r)-36) < (out.bits+7)/8 {
			continue
		}
		if seq := le.Uint64(r[20:]); out.chunks == nil || seq > newest {
			newest, out.chunks = seq, r[36:]
			out.raw = slices.Concat(head, r)
		}
	}
	if out.chunks == nil {
		return nil, fmt.Errorf("%w: no sound record of a bitmap", ErrDamaged)
	}
	return out, nil
}

// encrypted are the encrypted ranges of the region, neighbours joined.
func (m *bitmap) encrypted(chunk int64) (out []disk.Range) {
	for k := int64(0); k < m.bits; k++ {
		if m.chunks[k/8]>>(k%8)&1 == 0 {
			continue
		}
		first := k
		for k+1 < m.bits && m.chunks[(k+1)/8]>>((k+1)%8)&1 == 1 {
			k++
		}
		from, to := first*chunk, min((k+1)*chunk, m.region.Length)
		out = append(out, disk.Range{Offset: m.region.Offset + from, Length: to - from})
	}
	return out
}
