// Package badrange reads sources that have ranges which cannot be read.
package badrange

import (
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
)

// Read fills p, at most a leaf's blocks, from src. Where that has bad ranges,
// as unreadable tells by the error, they are narrowed down to pages, which stay
// zero and are named in the masks; without skip a bad range is an error.
func Read(src io.ReaderAt, p []byte, off int64, unreadable func(error) bool, skip bool) (unread [format.LeafBlocks]uint16, err error) {
	err = full(src, p, off)
	if err == nil || unreadable == nil || !unreadable(err) {
		return unread, err
	}
	if !skip {
		return unread, fmt.Errorf("disk cannot be read at %d: %w", off, err)
	}
	for b := 0; b*format.BlockSize < len(p); b++ {
		block := p[b*format.BlockSize : min((b+1)*format.BlockSize, len(p))]
		at := off + int64(b)*format.BlockSize
		if err := full(src, block, at); err == nil {
			continue
		} else if !unreadable(err) {
			return unread, err
		}
		for i := 0; i*format.PageSize < len(block); i++ {
			page := block[i*format.PageSize : min((i+1)*format.PageSize, len(block))]
			if err := full(src, page, at+int64(i)*format.PageSize); err == nil {
				continue
			} else if !unreadable(err) {
				return unread, err
			}
			clear(page)
			unread[b] |= 1 << i
		}
	}
	return unread, nil
}

func full(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("read source at %d: %w", off+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}

// Ranges gives the byte ranges of a block's pages, cut at the disk's size.
func Ranges(start int64, mask uint16, size int64) (rs []disk.Range) {
	for i := range format.PagesPerBlock {
		if mask&(1<<i) == 0 {
			continue
		}
		r := disk.Range{Offset: start + int64(i)*format.PageSize, Length: format.PageSize}
		if r.Length = min(r.Length, size-r.Offset); r.Length <= 0 {
			break
		}
		if n := len(rs); n > 0 && rs[n-1].End() == r.Offset {
			rs[n-1].Length += r.Length
			continue
		}
		rs = append(rs, r)
	}
	return rs
}
