package rescue

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Unlock opens the encrypted volumes of a recovery point with the secrets of its
// key packages, straight from the repository, and all that lies in them. The
// caller closes the tree. Problems name key packages that could not be opened.
func (r *Rescue) Unlock(ctx context.Context, p *Point) (tree *unlock.Tree, problems []error, err error) {
	if p.Manifest == nil {
		return nil, nil, fmt.Errorf("unlock recovery point %s: %w", p.ID, errors.Join(p.Problems...))
	}
	secrets, problems := r.Secrets(p)
	defer func() {
		for _, s := range secrets {
			s.Bytes.Wipe()
		}
	}()
	var disks []unlock.Disk
	for _, d := range p.Manifest.Disks {
		x := unlock.Disk{ID: d.ID, Size: d.Size, Headers: func(volume string) []unlock.Header { return r.storedHeaders(ctx, p, d.ID, volume) }}
		if reader, err := r.repo.OpenDisk(ctx, p.Machine, d); err != nil {
			x.R = failing{err}
		} else {
			x.R = stored{reader, d.Unread}
		}
		for _, v := range p.Volumes {
			if v.Disk == d.ID {
				x.Volumes = append(x.Volumes, v.Volume)
			}
		}
		disks = append(disks, x)
	}
	tree, err = unlock.Open(ctx, disks, keysOf(secrets), unlock.Options{Formats: r.formats, Limits: r.limits})
	if err != nil {
		return nil, problems, fmt.Errorf("unlock recovery point %s: %w", p.ID, err)
	}
	return tree, problems, nil
}

// keysOf gives a volume's own secrets first; then the others of the recovery
// point, for one secret may open many volumes.
func keysOf(secrets []Secret) unlock.Keys {
	return func(_ context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			for _, own := range []bool{true, false} {
				for _, s := range secrets {
					if own != (s.Disk == disk && s.Volume == v.ID) || !custody.KindFits(s.Key.Kind, v.Type) {
						continue
					}
					if !yield(unlock.Key{Name: s.Key.Secret.String(), Kind: s.Key.Kind, Secret: envelope.CopySecret(s.Bytes.Expose())}, nil) {
						return
					}
				}
			}
		}
	}
}

// storedHeaders are the copies of a volume's header outside of its disk.
func (r *Rescue) storedHeaders(ctx context.Context, p *Point, diskID, volume string) (out []unlock.Header) {
	i := slices.IndexFunc(p.Volumes, func(v Volume) bool { return v.Disk == diskID && v.ID == volume })
	if i < 0 {
		return nil
	}
	v := p.Volumes[i]
	for _, d := range p.Manifest.Disks {
		for _, h := range d.Headers {
			if d.ID != diskID || h.Volume != volume {
				continue
			}
			if c, err := r.repo.Header(ctx, p.Machine, h.ID); err == nil {
				out = append(out, unlock.Header{From: fromCopy, R: c, Size: c.Size, Ranges: []disk.Range{{Length: c.Size}}})
			}
		}
	}
	if pkg := r.headerPackage(ctx, p.Machine, v); pkg != nil {
		end := int64(0)
		for _, g := range v.HeaderRanges {
			end = max(end, g.End())
		}
		out = append(out, unlock.Header{From: fromPackage, R: packaged(pkg), Size: pkg.Cover.Size, Ranges: []disk.Range{{Length: min(end, pkg.Cover.Size)}}})
	}
	return out
}
