// Package disk is about disks as bytes: ranges, partition tables, sparse
// files, aligned buffers. It knows nothing of encryption or backups.
package disk

// Sizes in bytes that the whole project shares (see docs/glossary.md).
const (
	SectorSize    = 512
	PageSize      = 4 << 10
	BlockSize     = 64 << 10
	PagesPerBlock = BlockSize / PageSize
)

// Range is Length bytes at Offset of a disk.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the first byte behind the range.
func (r Range) End() int64 { return r.Offset + r.Length }
