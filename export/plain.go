package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/nbd"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Plain is a device of plaintext: an opened volume, a partition or a logical
// volume in one. It is gone when the recovery point is closed.
type Plain struct {
	ID string // "vda-p3.plain": disk and place; "vda.plain" of a disk encrypted as a whole
	unlock.Device
}

// NextData finds data everywhere: whatever a hole is in the ciphertext, it is
// none in the plaintext.
func (p *Plain) NextData(off int64) (disk.Range, error) {
	if off >= p.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: p.Size() - off}, nil
}

// ReadAt reads plaintext.
func (p *Plain) ReadAt(b []byte, off int64) (int, error) { return p.R.ReadAt(b, off) }

// Size is the device's length in bytes.
func (p *Plain) Size() int64 { return p.Device.Size }

// Unlock opens the encrypted volumes of the recovery point, which r holds, and
// from then on the plaintext in them is among the exports and the files. It is
// called once, before them. The tree is the point's to close.
func (p *Point) Unlock(ctx context.Context, r *repository.Repository, keys unlock.Keys, o unlock.Options) (*unlock.Tree, error) {
	var disks []unlock.Disk
	for _, d := range p.Disks {
		x := unlock.Disk{ID: d.ID, R: readable{d}, Size: d.Size(), Headers: p.headers(ctx, r, d)}
		var rep diskcrypt.Report
		if err := json.Unmarshal(d.info.Inspection, &rep); len(d.info.Inspection) > 0 && err != nil {
			return nil, fmt.Errorf("unlock recovery point %s: read inspection of disk %s: %w", p.Manifest.Point, d.ID, err)
		}
		x.Volumes = rep.Volumes
		disks = append(disks, x)
	}
	tree, err := unlock.Open(ctx, disks, keys, o)
	if err != nil {
		return nil, fmt.Errorf("unlock recovery point %s: %w", p.Manifest.Point, err)
	}
	p.tree, p.Plain = tree, plains(tree)
	return tree, nil
}

// plains are the devices of plaintext under their names. Of volumes in one
// another at the same place it is the innermost.
func plains(tree *unlock.Tree) []*Plain {
	var out []*Plain
	at := map[string]int{}
	for _, d := range tree.Devices {
		if !d.Decrypted {
			continue
		}
		id := d.Disk + "-" + d.Name + ".plain"
		if d.Name == diskcrypt.WholeDisk {
			id = d.Disk + ".plain"
		}
		if i, ok := at[id]; ok {
			out[i].Device = d
			continue
		}
		at[id] = len(out)
		out = append(out, &Plain{id, d})
	}
	return out
}

// headers are the copies of headers that the recovery point has.
func (p *Point) headers(ctx context.Context, r *repository.Repository, d *Disk) func(string) []unlock.Header {
	return func(volume string) (out []unlock.Header) {
		for _, h := range d.info.Headers {
			if h.Volume != volume {
				continue
			}
			if c, err := p.header(ctx, r, h.ID); err == nil {
				// What was not stored of the header is zero there, so all of it is laid over.
				out = append(out, unlock.Header{From: "the header copy", R: c, Size: c.Size, Ranges: []disk.Range{{Length: c.Size}}})
			}
		}
		return out
	}
}

// header reads a header copy, here or where else it is whole.
func (p *Point) header(ctx context.Context, r *repository.Repository, id string) (*repository.Header, error) {
	h, err := r.Header(ctx, p.Manifest.Machine, id)
	if err == nil || ctx.Err() != nil {
		return h, err
	}
	for _, o := range p.elsewhere() {
		if h, oerr := o.Header(ctx, p.Manifest.Machine, id); oerr == nil {
			return h, nil
		}
	}
	return nil, err
}

var errUnread = errors.New("this range could not be read when the recovery point was made")

// readable is a disk whose ranges that were never read are errors: decrypted,
// their zeroes would be noise.
type readable struct{ *Disk }

func (r readable) ReadAt(p []byte, off int64) (int, error) {
	for _, u := range r.info.Unread {
		if u.Offset < off+int64(len(p)) && off < u.End() {
			return 0, fmt.Errorf("read disk %s at %d: %w", r.ID, off, errUnread)
		}
	}
	return r.Disk.ReadAt(p, off)
}

// plainExports are the plaintext for an NBD server.
func (p *Point) plainExports() []nbd.Export {
	var out []nbd.Export
	for _, x := range p.Plain {
		out = append(out, nbd.Export{
			Name:        x.ID,
			Description: fmt.Sprintf("plaintext of %s/%s of recovery point %s of %s", x.Disk, x.Name, p.Manifest.Point, p.Manifest.MachineName),
			Disk:        plainDevice{x},
		})
	}
	return out
}

type plainDevice struct{ *Plain }

func (d plainDevice) NextData(off int64) (offset, length int64, err error) {
	r, err := d.Plain.NextData(off)
	return r.Offset, r.Length, err
}
