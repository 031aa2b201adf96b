// Package headers finds the encryption header of a volume in a recovery point
// and writes it as the usual tools read it. It is not the reading of a format:
// that is package diskcrypt's. Its invariant: what could not be read whole is an
// error, never a header with holes.
package headers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/repository"
)

// MaxDetached bounds a detached header's file, in bytes.
const MaxDetached = 64 << 20

// exporter is a format that writes a header as the usual tools do.
type exporter interface {
	ExportHeader(ctx context.Context, p diskcrypt.Place, w io.Writer) (int64, error)
}

// Detached are the volumes of a disk whose header lies apart from it: a restore
// of the disk does not bring it.
func Detached(d repository.Disk) ([]string, error) {
	rep, err := backup.Inspection(d)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, v := range rep.Volumes {
		if v.Detached {
			ids = append(ids, v.ID)
		}
	}
	return ids, nil
}

// Export reads a volume's header from the recovery point's own extents, and
// where these cannot be read (copied says why, then) or the header is detached,
// from the copies that were stored apart.
func Export(ctx context.Context, repo *repository.Repository, formats []diskcrypt.Format, mf *repository.Manifest, disk, volume string) (raw []byte, copied, err error) {
	i := slices.IndexFunc(mf.Disks, func(d repository.Disk) bool { return d.ID == disk })
	if i < 0 {
		return nil, nil, fmt.Errorf("disk %s: %w", disk, repository.ErrNotFound)
	}
	rep, err := backup.Inspection(mf.Disks[i])
	if err != nil {
		return nil, nil, err
	}
	j := slices.IndexFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == volume })
	if j < 0 {
		return nil, nil, fmt.Errorf("volume %s/%s: %w", disk, volume, repository.ErrNotFound)
	}
	vol := rep.Volumes[j]
	if !vol.Detached {
		if raw, copied = fromDisk(ctx, formats, repo, mf.Disks[i], mf.Machine, vol); copied == nil {
			return raw, nil, nil
		}
	}
	raw, err = fromCopy(ctx, formats, repo, mf.Disks[i], mf.Machine, vol)
	return raw, copied, err
}

func fromDisk(ctx context.Context, formats []diskcrypt.Format, repo *repository.Repository, d repository.Disk, machine string, vol diskcrypt.Volume) ([]byte, error) {
	for _, u := range d.Unread {
		for _, h := range vol.HeaderRanges {
			for _, at := range vol.OnDisk(h) {
				if u.Offset < at.End() && at.Offset < u.End() {
					return nil, errors.New("part of it could not be read when the recovery point was made")
				}
			}
		}
	}
	r, err := repo.OpenDisk(ctx, machine, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	at := diskcrypt.Place{Data: diskcrypt.PlaceOf(r, vol), Size: vol.Size(), Declared: vol.Declared}
	return export(ctx, formats, at, vol)
}

func fromCopy(ctx context.Context, formats []diskcrypt.Format, repo *repository.Repository, d repository.Disk, machine string, vol diskcrypt.Volume) ([]byte, error) {
	i := slices.IndexFunc(d.Headers, func(h repository.HeaderRef) bool { return h.Volume == vol.ID })
	if i < 0 {
		return nil, fmt.Errorf("volume %s/%s has no header that is known here: %w", d.ID, vol.ID, repository.ErrNotFound)
	}
	h, err := repo.Header(ctx, machine, d.Headers[i].ID)
	if err != nil {
		return nil, err
	}
	if h.Size > MaxDetached {
		return nil, fmt.Errorf("%d bytes are too many for a header: %w", h.Size, repository.ErrDamaged)
	}
	at := diskcrypt.Place{Header: io.NewSectionReader(h, 0, h.Size), HeadSize: h.Size, Data: bytes.NewReader(nil), Size: vol.Size(), Declared: vol.Declared}
	return export(ctx, formats, at, vol)
}

// maxExport bounds what is kept in memory; a LUKS2 header has 4 MiB of
// metadata and 128 MiB of key areas at most.
const maxExport = 256 << 20

func export(ctx context.Context, formats []diskcrypt.Format, at diskcrypt.Place, vol diskcrypt.Volume) ([]byte, error) {
	for _, f := range formats {
		e, ok := f.(exporter)
		if !ok {
			continue
		}
		w := &bounded{max: maxExport}
		_, err := e.ExportHeader(ctx, at, w)
		if errors.Is(err, diskcrypt.ErrNotThisFormat) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return w.b, nil
	}
	return nil, fmt.Errorf("a header of type %s has no file form: %w", vol.Type, diskcrypt.ErrUnsupported)
}

// bounded collects at most max bytes.
type bounded struct {
	b   []byte
	max int
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(w.b)+len(p) > w.max {
		return 0, fmt.Errorf("longer than %d bytes: %w", w.max, diskcrypt.ErrUnsupported)
	}
	w.b = append(w.b, p...)
	return len(p), nil
}
