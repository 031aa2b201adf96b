package luks

import (
	"context"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

// ExportHeader writes the header and its key areas to w, byte for byte what
// "cryptsetup luksHeaderBackup" makes of the volume, and returns its length.
// What it writes is guessing material for ever: treat it like the disk.
func (Format) ExportHeader(ctx context.Context, p diskcrypt.Place, w io.Writer) (int64, error) {
	v, err := read(p)
	if err != nil {
		return 0, fmt.Errorf("export luks header: %w", err)
	}
	size := 2*v.h.HeaderSize + v.h.Areas
	if v.h.Version == 1 {
		size = luks1BackupSize(v.h)
	}
	if size > v.headSize {
		return 0, fmt.Errorf("export luks header: %w: device of %d bytes ends inside the header of %d bytes", diskcrypt.ErrDamaged, v.headSize, size)
	}
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return off, err
		}
		b := buf[:min(int64(len(buf)), size-off)]
		if _, err := io.ReadFull(io.NewSectionReader(v.head, off, int64(len(b))), b); err != nil {
			return off, fmt.Errorf("export luks header: %w", err)
		}
		if off == 0 && v.h.Version == 1 && v.h.FirstArea == luks1AreaAlign {
			// cryptsetup leaves out what an earlier owner left behind the header.
			clear(b[v.h.HeaderSize:luks1AreaAlign])
		}
		n, err := w.Write(b)
		off += int64(n)
		if err != nil {
			return off, fmt.Errorf("export luks header: %w", err)
		}
	}
	return size, nil
}

// luks1AreaAlign is what cryptsetup aligns LUKS1 key areas to.
const luks1AreaAlign = 4096

// luks1BackupSize is the size of eight aligned areas behind an aligned header,
// wherever the slots of this header really are.
func luks1BackupSize(h *header.Header) int64 {
	area := keyslot.MaterialSize(h.KeyBytes)
	return luks1AreaAlign + 8*((area+luks1AreaAlign-1)/luks1AreaAlign*luks1AreaAlign)
}
