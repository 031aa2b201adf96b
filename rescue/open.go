package rescue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
)

// Opening is what came of trying a volume.
type Opening struct {
	Volume    Volume
	Opened    bool
	Key       Key    // that opened it
	Protector string // id
	Class     string // recognised behind it, "none" if nothing
	Err       error  // why it was not opened; ErrNoSecret where there was nothing to try
	Header    string // where the header came from, if not from the disk itself
}

// OpenCheck opens the volumes of a recovery point with the secrets of its key
// packages, straight from the repository: header, volume key, and the first
// bytes behind it. Problems name key packages that could not be opened.
func (r *Rescue) OpenCheck(ctx context.Context, p *Point) (out []Opening, problems []error, err error) {
	if p.Manifest == nil {
		return nil, nil, fmt.Errorf("open recovery point %s: %w", p.ID, errors.Join(p.Problems...))
	}
	secrets, problems := r.Secrets(p)
	defer func() {
		for _, s := range secrets {
			s.Bytes.Wipe()
		}
	}()
	for _, v := range p.Volumes {
		o := Opening{Volume: v}
		err := r.tryVolume(ctx, p, secrets, &o)
		if ctx.Err() != nil {
			return out, problems, ctx.Err()
		}
		if err != nil {
			o.Err = fmt.Errorf("open %s: %w", v.Name(), err)
		}
		out = append(out, o)
	}
	return out, problems, nil
}

func (r *Rescue) tryVolume(ctx context.Context, p *Point, secrets []Secret, o *Opening) error {
	// Its own secrets first; then the others of the recovery point, one secret may open many volumes.
	own := slices.Clone(secrets)
	slices.SortStableFunc(own, func(a, b Secret) int {
		rank := func(s Secret) int {
			if s.Disk == o.Volume.Disk && s.Volume == o.Volume.ID {
				return 0
			}
			return 1
		}
		return rank(a) - rank(b)
	})
	own = slices.DeleteFunc(own, func(s Secret) bool { return !custody.KindFits(s.Key.Kind, o.Volume.Type) })
	if len(own) == 0 {
		return ErrNoSecret
	}
	var tried []error
	for _, h := range r.headers(ctx, p, o.Volume) {
		format, err := r.formatOf(ctx, h.place, o.Volume)
		if err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", h.from, err))
			continue
		}
		for _, s := range own {
			vol, err := format.Open(ctx, h.place, s.Key.Kind, s.Bytes, r.limits)
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				tried = append(tried, fmt.Errorf("secret %s: %w", s.Key.Secret, err))
				continue
			}
			protector := vol.Protector()
			err = look(vol, o)
			_ = vol.Close()
			if err != nil {
				return err
			}
			o.Opened, o.Key, o.Protector = true, s.Key, protector
			if h.from != fromDisk {
				o.Header = h.from
			}
			return nil
		}
		// The header is the right one: another copy of it opens with nothing else.
		return errors.Join(tried...)
	}
	return errors.Join(tried...)
}

// look reads and decrypts the beginning of the volume.
func look(vol diskcrypt.Opened, o *Opening) error {
	head := make([]byte, min(128<<10, vol.Size()))
	defer envelope.Wipe(head)
	n, err := vol.ReadAt(head, 0)
	if n < min(disk.SectorSize, len(head)) || len(head) == 0 {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read decrypted volume: %w", err)
	}
	switch o.Class = blockstack.Class(head[:n]); o.Class {
	case "", blockstack.Empty:
		o.Class = custody.ClassNone
	case blockstack.LVM2:
		o.Class = "lvm"
	}
	return nil
}

// formatOf finds the format that reads the header there, and whether it is the
// header that the manifest names.
func (r *Rescue) formatOf(ctx context.Context, place diskcrypt.Place, want Volume) (diskcrypt.Format, error) {
	for _, f := range r.formats {
		v, err := f.Inspect(ctx, place)
		if errors.Is(err, diskcrypt.ErrNotThisFormat) || place.Declared != nil && v != nil && v.Declared == nil {
			continue
		}
		if err != nil {
			return nil, err
		}
		if want.HeaderDigest != "" && v.HeaderDigest != want.HeaderDigest {
			return nil, fmt.Errorf("%w: its digest is not the manifest's", diskcrypt.ErrDamaged)
		}
		return f, nil
	}
	return nil, fmt.Errorf("%s: %w", want.Type, diskcrypt.ErrUnsupported)
}

// headerSource is a place to read a volume with its header from.
type headerSource struct {
	from  string
	place diskcrypt.Place
}

// Sources of a header.
const (
	fromDisk    = "the disk"
	fromCopy    = "the header copy"
	fromPackage = "the header package"
)

// headers lists where the volume's header may be read, best first. What is
// damaged is seen when it is used.
func (r *Rescue) headers(ctx context.Context, p *Point, v Volume) (out []headerSource) {
	var data io.ReaderAt = failing{fmt.Errorf("disk %s: %w", v.Disk, restore.ErrNoDisk)}
	copyID := ""
	for _, d := range p.Manifest.Disks {
		if d.ID != v.Disk {
			continue
		}
		if reader, err := r.repo.OpenDisk(ctx, p.Machine, d); err != nil {
			data = failing{err}
		} else {
			data = diskcrypt.PlaceOf(stored{reader, d.Unread}, v.Volume)
		}
		for _, h := range d.Headers {
			if h.Volume == v.ID {
				copyID = h.ID
			}
		}
	}
	add := func(from string, size int64, ranges []disk.Range, header io.ReaderAt) {
		if v.Detached {
			out = append(out, headerSource{from, diskcrypt.Place{Data: data, Size: v.Size(), Header: header, HeadSize: size, Declared: v.Declared}})
			return
		}
		out = append(out, headerSource{from, diskcrypt.Place{Data: disk.Overlay{Below: data, Ranges: ranges, Top: header}, Size: v.Size(), Declared: v.Declared}})
	}
	if !v.Detached {
		out = append(out, headerSource{fromDisk, diskcrypt.Place{Data: data, Size: v.Size(), Declared: v.Declared}})
	}
	if copyID != "" {
		if h, err := r.repo.Header(ctx, p.Machine, copyID); err == nil {
			// What was not stored of the header is zero there, so all of it is overlaid.
			add(fromCopy, h.Size, []disk.Range{{Length: h.Size}}, h)
		}
	}
	if pkg := r.headerPackage(ctx, p.Machine, v); pkg != nil {
		size := pkg.Cover.Size
		end := int64(0)
		for _, g := range v.HeaderRanges {
			end = max(end, g.End())
		}
		add(fromPackage, size, []disk.Range{{Length: min(end, size)}}, packaged(pkg))
	}
	return out
}

// headerPackage opens a header package of the machine for the volume's header.
func (r *Rescue) headerPackage(ctx context.Context, machine string, v Volume) *custody.HeaderPackage {
	// Damaged ones come back as an error beside the good ones, and one good one suffices.
	sidecars, _ := r.repo.Sidecars(ctx, machine, repository.MachineSidecars)
	homes, err := r.repo.Homes(ctx, machine)
	if err != nil {
		return nil
	}
	for _, s := range sidecars {
		if s.Kind != repository.SidecarHeaderPackage {
			continue
		}
		c, err := custody.ReadHeaderCover(s.Raw, r.trust())
		if err != nil && !errors.Is(err, custody.ErrRevoked) ||
			!homes[c.Repository] || c.Machine != machine || c.HeaderDigest != v.HeaderDigest || c.Detached != v.Detached || !r.ours(c.Recipients) {
			continue
		}
		if pkg, err := custody.OpenHeaderPackage(s.Raw, r.identities, r.trust()); pkg != nil && (err == nil || errors.Is(err, custody.ErrRevoked)) {
			return pkg
		}
	}
	return nil
}

// ExportHeader writes the header of a volume as the usual tools read it, and
// says where it came from. It is read from the disk, else from a header copy,
// else from a header package, and is the one that the manifest names.
func (r *Rescue) ExportHeader(ctx context.Context, p *Point, diskID, volume string, w io.Writer) (from string, n int64, err error) {
	if p.Manifest == nil {
		return "", 0, fmt.Errorf("export header: %w", errors.Join(p.Problems...))
	}
	i := slices.IndexFunc(p.Volumes, func(v Volume) bool { return v.Disk == diskID && v.ID == volume })
	if i < 0 {
		return "", 0, fmt.Errorf("export header of %s/%s: %w", diskID, volume, ErrNoVolume)
	}
	v := p.Volumes[i]
	var failed []error
	for _, h := range r.headers(ctx, p, v) {
		format, err := r.formatOf(ctx, h.place, v)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", h.from, err))
			continue
		}
		exporter, ok := format.(interface {
			ExportHeader(context.Context, diskcrypt.Place, io.Writer) (int64, error)
		})
		if !ok {
			return "", 0, fmt.Errorf("export header of %s: %s: %w", v.Name(), v.Type, diskcrypt.ErrUnsupported)
		}
		var buf bytes.Buffer // a source that is damaged further on must not leave half a header
		if n, err = exporter.ExportHeader(ctx, h.place, &buf); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", h.from, err))
			continue
		}
		if _, err := w.Write(buf.Bytes()); err != nil {
			return "", 0, fmt.Errorf("export header of %s: %w", v.Name(), err)
		}
		return h.from, n, nil
	}
	if len(failed) == 0 {
		failed = append(failed, repository.ErrNotFound)
	}
	return "", 0, fmt.Errorf("export header of %s: %w", v.Name(), errors.Join(failed...))
}

// stored reads a disk of a recovery point; ranges that were never read are
// errors, not zeroes.
type stored struct {
	*repository.DiskReader
	unread []disk.Range
}

var errUnread = errors.New("this range could not be read when the recovery point was made")

func (s stored) ReadAt(p []byte, off int64) (int, error) {
	for _, u := range s.unread {
		if u.Offset < off+int64(len(p)) && off < u.End() {
			return 0, fmt.Errorf("read disk at %d: %w", off, errUnread)
		}
	}
	return s.DiskReader.ReadAt(p, off)
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// packaged is the header in a package as a device: zeroes between its ranges.
func packaged(pkg *custody.HeaderPackage) io.ReaderAt {
	return sparse{size: pkg.Cover.Size, ranges: pkg.Cover.Ranges, data: pkg.Bytes}
}

type sparse struct {
	size   int64
	ranges []disk.Range
	data   []byte // of the ranges, one behind the other
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	at := int64(0)
	for _, g := range s.ranges {
		lo, hi := max(g.Offset, off), min(g.End(), off+int64(n))
		if lo < hi {
			copy(p[lo-off:hi-off], s.data[at+lo-g.Offset:])
		}
		at += g.Length
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
