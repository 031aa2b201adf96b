// Package format holds the bytes of the repository format and nothing else:
// object keys, segments, map pages, digests. No I/O, no key management.
// docs/spec/repository.md is what it follows; everything parsed is hostile.
package format

import (
	"errors"
	"hash/crc32"
)

// ErrCorrupt is what every parser of the package returns, wrapped, for bytes
// that are not what a writer makes.
var ErrCorrupt = errors.New("malformed")

// ErrVersion is ErrCorrupt's counterpart for what a later version may have made.
var ErrVersion = errors.New("not known to this program")

// Sizes in bytes.
const (
	PageSize      = 4096
	BlockSize     = 65536
	PagesPerBlock = 16
	LeafBlocks    = 32 // blocks that a leaf covers
	Fanout        = 32 // children of an inner node
	LeafSize      = LeafBlocks * BlockSize
	DigestSize    = 32
	TagSize       = 16
	IDSize        = 32 // segment and map ids
	MaxLevel      = 9
	MaxMapPage    = 64 << 10
	CRCChunk      = 1 << 20
)

// Castagnoli is the polynomial of all CRCs here.
var Castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC is CRC-32C.
func CRC(p []byte) uint32 { return crc32.Checksum(p, Castagnoli) }
