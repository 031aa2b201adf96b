package headers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/target"
)

// Errors of Restore that callers act on.
var (
	// ErrNotRestorable: the recovery point has no header that could be written back.
	ErrNotRestorable = errors.New("this header cannot be written back")
	// ErrOther: the target has what the header would ruin; Force writes all the same.
	ErrOther = errors.New("the target does not need this header, or is not its volume")
	// ErrPlace: the target is neither the disk nor the volume.
	ErrPlace = errors.New("the target is neither the disk nor the volume")
)

// What the target has in the place of a header.
const (
	TargetSame    = "same"    // this header already
	TargetDamaged = "damaged" // a damaged one, or none, of this volume
	TargetOther   = "other"   // a sound one, or what is no header of this volume
)

// RestoreRequest writes a header back.
type RestoreRequest struct {
	Repository *repository.Repository
	Formats    []diskcrypt.Format
	Manifest   *repository.Manifest
	Disk       string
	Volume     string
	// Open opens the target (in place) and the backup (a new file).
	Open   func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error)
	Target string
	Backup string
	Force  bool
	DryRun bool
	// Begin is called when all checks have passed, before anything is written.
	Begin func() error
}

// Restored says what was done.
type Restored struct {
	Found    string       // what the target had: TargetSame, …
	Why      string       // in words
	Ranges   []disk.Range // of the target: what is written
	Bytes    int64
	Samples  int // pages behind the header that were compared
	Equal    int // of them, those that are as in the recovery point
	Written  bool
	BackedUp bool
	UUID     string
}

// piece is a part of the header, from the start of the volume.
type piece struct {
	off int64
	b   []byte
}

// Restore writes the header of a volume, as the recovery point has it, over
// that of the same volume on a target: a disk or the volume alone. What was
// there is copied to a new file before, and what was written is read back and
// inspected. The error is ErrNotRestorable, ErrPlace, ErrOther, or the target's.
func Restore(ctx context.Context, r RestoreRequest) (Restored, error) {
	h, err := open(ctx, r)
	if err != nil {
		return Restored{}, err
	}
	defer func() { _ = h.stored.Close() }()
	t, err := r.Open(ctx, r.Target, 0, target.Options{InPlace: true})
	if err != nil {
		return Restored{}, err
	}
	out, err := h.restore(ctx, r, t)
	if err != nil || !out.Written {
		return out, errors.Join(err, t.Abort())
	}
	if err := t.Commit(); err != nil {
		return out, errors.Join(err, t.Abort())
	}
	// Read it back from what was committed, not from what was sent.
	if t, err = r.Open(ctx, r.Target, 0, target.Options{InPlace: true}); err != nil {
		return out, fmt.Errorf("read back: %w", err)
	}
	return out, errors.Join(h.verify(ctx, t), t.Abort())
}

// stored is a volume of a recovery point with its header.
type stored struct {
	vol    diskcrypt.Volume
	size   int64 // of the disk
	format diskcrypt.Format
	stored *repository.DiskReader
	pieces []piece
}

func open(ctx context.Context, r RestoreRequest) (*stored, error) {
	i := slices.IndexFunc(r.Manifest.Disks, func(d repository.Disk) bool { return d.ID == r.Disk })
	if i < 0 {
		return nil, fmt.Errorf("disk %s: %w", r.Disk, repository.ErrNotFound)
	}
	d := r.Manifest.Disks[i]
	rep, err := backup.Inspection(d)
	if err != nil {
		return nil, err
	}
	j := slices.IndexFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == r.Volume })
	if j < 0 {
		return nil, fmt.Errorf("volume %s/%s: %w", r.Disk, r.Volume, repository.ErrNotFound)
	}
	h := &stored{vol: rep.Volumes[j], size: d.Size}
	switch v := h.vol; {
	case v.Detached:
		return nil, fmt.Errorf("%w: it is a file of its own, which 'header export' makes", ErrNotRestorable)
	case len(v.HeaderRanges) == 0 || v.HeaderDigest == "":
		return nil, fmt.Errorf("%w: a volume of type %s has none, or it is damaged in this recovery point too", ErrNotRestorable, v.Type)
	case v.Conversion != "":
		return nil, fmt.Errorf("%w: %s: it tells where the data were then, which they are not any more", ErrNotRestorable, v.Conversion)
	}
	if err := h.vol.CheckPlace(d.Size); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRestorable, err)
	}
	if h.stored, err = r.Repository.OpenDisk(ctx, r.Manifest.Machine, d); err != nil {
		return nil, err
	}
	if err := h.read(ctx, r, d); err != nil {
		return nil, errors.Join(err, h.stored.Close())
	}
	return h, nil
}

// read reads the header from the disk, or where that cannot be from its copy,
// and sees that it is what was inspected when the recovery point was made.
func (h *stored) read(ctx context.Context, r RestoreRequest, d repository.Disk) error {
	err := h.readPieces(diskcrypt.PlaceOf(h.stored, h.vol))
	for _, u := range d.Unread {
		if h.vol.Overlaps(u) {
			err = errors.New("part of the volume could not be read when the recovery point was made")
		}
	}
	if err == nil {
		err = h.recognise(ctx, r.Formats, diskcrypt.PlaceOf(h.stored, h.vol))
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	i := slices.IndexFunc(d.Headers, func(c repository.HeaderRef) bool { return c.Volume == h.vol.ID })
	if i < 0 {
		return err
	}
	c, cerr := r.Repository.Header(ctx, r.Manifest.Machine, d.Headers[i].ID)
	if cerr == nil {
		cerr = h.readPieces(io.NewSectionReader(c, 0, c.Size))
	}
	if cerr == nil {
		cerr = h.recognise(ctx, r.Formats, diskcrypt.PlaceOf(h.stored, h.vol))
	}
	if cerr != nil {
		return errors.Join(err, cerr)
	}
	return nil
}

func (h *stored) readPieces(from io.ReaderAt) error {
	h.pieces = nil
	var total int64
	for _, g := range h.vol.HeaderRanges {
		if total += g.Length; g.Offset < 0 || g.Length < 0 || total > maxExport || g.Offset > h.length()-g.Length {
			return fmt.Errorf("%w: its ranges are no header's", ErrNotRestorable)
		}
		b := make([]byte, g.Length)
		if n, err := from.ReadAt(b, g.Offset); n < len(b) {
			return fmt.Errorf("read the header at %d: %w", g.Offset, errors.Join(err, io.ErrUnexpectedEOF))
		}
		h.pieces = append(h.pieces, piece{g.Offset, b})
	}
	return nil
}

// recognise finds the format that reads the pieces, over data, as they were inspected.
func (h *stored) recognise(ctx context.Context, formats []diskcrypt.Format, data io.ReaderAt) error {
	p := diskcrypt.Place{Data: overlay{data, h.pieces}, Size: h.length(), Declared: h.vol.Declared}
	for _, f := range formats {
		v, err := f.Inspect(ctx, p)
		if errors.Is(err, diskcrypt.ErrNotThisFormat) {
			continue
		}
		if err == nil && v.HeaderDigest == h.vol.HeaderDigest && v.UUID == h.vol.UUID {
			h.format = f
			return nil
		}
		return fmt.Errorf("%w: it is not the header that was inspected when the recovery point was made", errors.Join(ErrNotRestorable, err))
	}
	return fmt.Errorf("%w: no format of this version reads it", ErrNotRestorable)
}

// overlay reads pieces over data.
type overlay struct {
	data   io.ReaderAt
	pieces []piece
}

func (o overlay) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.data.ReadAt(p, off)
	for _, x := range o.pieces {
		from, to := max(off, x.off), min(off+int64(len(p)), x.off+int64(len(x.b)))
		if from < to {
			copy(p[from-off:to-off], x.b[from-x.off:])
			if to-off > int64(n) && from-off <= int64(n) {
				n = int(to - off)
			}
		}
	}
	if n == len(p) {
		err = nil
	}
	return n, err
}

// on is where the volume's bytes at [off, +length) are on the target.
func (h *stored) on(capacity int64, off, length int64) ([]disk.Range, error) {
	switch {
	case capacity >= h.size:
		return h.vol.OnDisk(disk.Range{Offset: off, Length: length}), nil
	case capacity == h.length():
		return []disk.Range{{Offset: off, Length: length}}, nil
	}
	return nil, fmt.Errorf("%w: it has %d bytes; disk %d, volume %d", ErrPlace, capacity, h.size, h.length())
}

// length is the size of the volume.
func (h *stored) length() int64 {
	if h.vol.Extents == nil {
		return h.vol.Range.Length
	}
	var n int64
	for _, e := range h.vol.Extents {
		n += e.Length
	}
	return n
}

// volumeOn reads the volume on the target.
type volumeOn struct {
	h        *stored
	t        io.ReaderAt
	capacity int64
}

func (v volumeOn) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= v.h.length() {
		return 0, io.EOF
	}
	short := int64(len(p)) > v.h.length()-off
	if short {
		p = p[:v.h.length()-off]
	}
	places, err := v.h.on(v.capacity, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	n := 0
	for _, g := range places {
		m, err := v.t.ReadAt(p[n:n+int(g.Length)], g.Offset)
		n += m
		if int64(m) < g.Length {
			return n, errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
	if short {
		return n, io.EOF
	}
	return n, nil
}

func (h *stored) restore(ctx context.Context, r RestoreRequest, t target.Disk) (Restored, error) {
	out := Restored{UUID: h.vol.UUID}
	capacity := t.Capacity()
	for _, x := range h.pieces {
		g, err := h.on(capacity, x.off, int64(len(x.b)))
		if err != nil {
			return out, err
		}
		out.Ranges = append(out.Ranges, g...)
		out.Bytes += int64(len(x.b))
	}
	v := volumeOn{h, t, capacity}
	if err := h.look(ctx, v, &out); err != nil {
		return out, err
	}
	switch {
	case out.Found == TargetSame:
		return out, nil
	case out.Found == TargetOther && !r.Force:
		return out, fmt.Errorf("%w: %s", ErrOther, out.Why)
	case r.DryRun:
		return out, nil
	}
	if err := r.Begin(); err != nil {
		return out, err
	}
	if err := h.backUp(ctx, r, v); err != nil {
		return out, fmt.Errorf("keep what is there: %w", err)
	}
	out.BackedUp = true
	return out, h.write(t, capacity, &out)
}

// look says what the target has in the place of the header.
func (h *stored) look(ctx context.Context, v volumeOn, out *Restored) error {
	if err := h.sample(v, out); err != nil {
		return err
	}
	now, err := h.format.Inspect(ctx, diskcrypt.Place{Data: v, Size: h.length(), Declared: h.vol.Declared})
	damaged := errors.Is(err, diskcrypt.ErrDamaged)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && !damaged && !errors.Is(err, diskcrypt.ErrNotThisFormat):
		return err
	}
	switch {
	case err == nil && now.HeaderDigest == h.vol.HeaderDigest:
		out.Found, out.Why = TargetSame, "the target has this header already"
	case now != nil && now.UUID != "" && !strings.EqualFold(now.UUID, h.vol.UUID):
		out.Found, out.Why = TargetOther, fmt.Sprintf("it has a header of another volume, UUID %s", now.UUID)
	case err == nil && now.Conversion != "":
		out.Found, out.Why = TargetOther, now.Conversion+": the header that is there is the only record of it"
	case err == nil && now.Epoch != "" && h.vol.Epoch != "" && now.Epoch != h.vol.Epoch:
		out.Found, out.Why = TargetOther, "it has a header of another epoch: its data are encrypted with another volume key, which would be lost"
	case out.Samples > 0 && out.Equal == 0:
		out.Found, out.Why = TargetOther, fmt.Sprintf("of %d pages behind the header none is as in the recovery point", out.Samples)
	case err != nil:
		out.Found, out.Why = TargetDamaged, "it has no header that can be read"
	case len(now.Warnings) > 0:
		out.Found, out.Why = TargetDamaged, now.Warnings[0]
	default:
		out.Found, out.Why = TargetOther, "it has a sound header of this volume, with other protectors, or later ones"
	}
	return nil
}

const (
	samples = 64
	page    = 4096
	chunk   = 1 << 20
)

// sample compares pages behind the header with those of the recovery point:
// ciphertext is not the same by chance. Pages of zeroes say nothing.
func (h *stored) sample(v volumeOn, out *Restored) error {
	var start int64
	for _, x := range h.pieces {
		if end := x.off + int64(len(x.b)); end > start && x.off <= start {
			start = end
		}
	}
	was, is := make([]byte, page), make([]byte, page)
	data := diskcrypt.PlaceOf(h.stored, h.vol)
	step := max(page, (h.length()-start)/samples/page*page)
	for off := (start + page - 1) / page * page; off+page <= h.length(); off += step {
		if n, err := data.ReadAt(was, off); n < page {
			return fmt.Errorf("read the recovery point at %d: %w", off, err)
		}
		if bytes.Count(was, []byte{0}) == page {
			continue
		}
		if n, _ := v.ReadAt(is, off); n < page {
			continue // a bad sector is no reason not to help
		}
		out.Samples++
		if bytes.Equal(was, is) {
			out.Equal++
		}
	}
	return nil
}

func (h *stored) sameBytes(v volumeOn) bool {
	for _, x := range h.pieces {
		b := make([]byte, len(x.b))
		if n, _ := v.ReadAt(b, x.off); n < len(b) || !bytes.Equal(b, x.b) {
			return false
		}
	}
	return true
}

// backUp copies what is there to a new file, each byte where it is in the
// volume, holes between.
func (h *stored) backUp(ctx context.Context, r RestoreRequest, v volumeOn) error {
	var size int64
	for _, x := range h.pieces {
		size = max(size, x.off+int64(len(x.b)))
	}
	b, err := r.Open(ctx, r.Backup, size, target.Options{})
	if err != nil {
		return err
	}
	for _, x := range h.pieces {
		old := make([]byte, len(x.b))
		n, err := v.ReadAt(old, x.off)
		if n < len(old) {
			return errors.Join(fmt.Errorf("read the target at %d: %w", x.off+int64(n), err), b.Abort())
		}
		if _, err := b.WriteAt(old, x.off); err != nil {
			return errors.Join(err, b.Abort())
		}
	}
	if err := b.Commit(); err != nil {
		return errors.Join(err, b.Abort())
	}
	return nil
}

// write writes the pieces from their ends, so that what says that a header is
// there comes last.
func (h *stored) write(t target.Disk, capacity int64, out *Restored) error {
	out.Written = true
	for _, x := range slices.Backward(h.pieces) {
		for end := len(x.b); end > 0; {
			from := (end - 1) / chunk * chunk
			if from == 0 && end > page {
				from = page // the first page alone, and last
			}
			places, err := h.on(capacity, x.off+int64(from), int64(end-from))
			if err != nil {
				return err
			}
			b := x.b[from:end]
			for _, g := range places {
				if _, err := t.WriteAt(b[:g.Length], g.Offset); err != nil {
					return err
				}
				b = b[g.Length:]
			}
			end = from
		}
	}
	return nil
}

func (h *stored) verify(ctx context.Context, t target.Disk) error {
	v := volumeOn{h, t, t.Capacity()}
	if !h.sameBytes(v) {
		return fmt.Errorf("read back: what was written is not what is there: %w", repository.ErrDamaged)
	}
	now, err := h.format.Inspect(ctx, diskcrypt.Place{Data: v, Size: h.length(), Declared: h.vol.Declared})
	if err != nil || now.HeaderDigest != h.vol.HeaderDigest {
		return errors.Join(fmt.Errorf("read back: the header is not the recovery point's: %w", repository.ErrDamaged), err)
	}
	return nil
}
