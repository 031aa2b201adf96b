package luks

import (
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
)

// essential are the ranges of a header file that hold anything: the binary
// headers and the areas of live slots. The rest is the random filling of
// formatting, some 98 % of the usual 16 MiB, and not worth a copy.
func essential(h *header.Header) []disk.Range {
	if h.Extent <= 0 || h.HeaderSize <= 0 {
		return nil
	}
	head := disk.Range{Length: 2 * h.HeaderSize}
	if h.Version == 1 {
		head.Length = min(luks1AreaAlign, h.Extent)
	}
	rs := disk.Normalize(head)
	for _, s := range h.Slots {
		if s.Area.Offset < 0 || s.Area.Size <= 0 || s.Area.Offset > h.Extent-s.Area.Size {
			continue
		}
		rs = rs.Add(disk.Range{Offset: s.Area.Offset, Length: s.Area.Size})
	}
	return rs
}
