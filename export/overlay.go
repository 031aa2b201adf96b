package export

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// The overlay file: docs/spec/overlay.md.
const (
	overlayMagic   = "LSOVRLAY"
	overlayVersion = 1
	headerSize     = 64 << 10
	headerFixed    = 20
	areaAlign      = 1 << 20
	slotSize       = 4096
	slotFixed      = 32
	pagesPerState  = (slotSize - slotFixed) * 4
	maxDisks       = 256
	maxDiskSize    = 1 << 50
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Base says what an overlay lies over.
type Base struct {
	Repository  string     `json:"repository"`
	Machine     string     `json:"machine"`
	MachineName string     `json:"machine_name"`
	Point       string     `json:"point"`
	Time        time.Time  `json:"time"`
	Disks       []BaseDisk `json:"disks"`
}

// BaseDisk is one disk below an overlay.
type BaseDisk struct {
	ID          string `json:"id"`
	Size        int64  `json:"size"`
	ContentRoot string `json:"content_root"`
}

func baseOf(m *repository.Manifest) Base {
	b := Base{Repository: m.Repository, Machine: m.Machine, MachineName: m.MachineName, Point: m.Point, Time: m.Time.UTC()}
	for _, d := range m.Disks {
		b.Disks = append(b.Disks, BaseDisk{ID: d.ID, Size: d.Size, ContentRoot: d.ContentRoot})
	}
	return b
}

// Overlay takes what is written over a recovery point.
type Overlay struct {
	Base  Base
	f     *os.File
	disks []*overlayDisk

	syncing sync.Mutex
	failed  error // of a synchronisation: what is durable is not known any more
}

// CreateOverlay makes the file over a recovery point. It must not exist.
func CreateOverlay(path string, p *Point) (*Overlay, error) {
	o := &Overlay{Base: baseOf(p.Manifest)}
	header, err := encodeHeader(o.Base)
	if err != nil {
		return nil, fmt.Errorf("make overlay: %w", err)
	}
	if o.f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("make overlay: %w", err)
	}
	err = o.lock()
	if err == nil {
		// Whoever finds a file without a header takes it for no overlay.
		err = o.f.Truncate(o.layOut())
	}
	if err == nil {
		_, err = o.f.WriteAt(header, 0)
	}
	if err == nil {
		err = o.f.Sync()
	}
	if err == nil {
		err = o.Attach(p)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make overlay: %w", err), o.f.Close(), os.Remove(path))
	}
	return o, nil
}

// OpenOverlay opens the file and reads what was written. Its disks can be read
// once the recovery point is attached.
func OpenOverlay(path string) (*Overlay, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	o := &Overlay{f: f}
	if err := o.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay %s: %w", path, err), f.Close())
	}
	return o, nil
}

func (o *Overlay) lock() error {
	err := disk.LockForWriting(o.f)
	if errors.Is(err, disk.ErrLocked) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	return err
}

func (o *Overlay) load() error {
	st, err := o.f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("no regular file: %w", ErrOverlay)
	}
	if err := o.lock(); err != nil {
		return err
	}
	p := make([]byte, headerSize)
	if _, err := io.ReadFull(io.NewSectionReader(o.f, 0, headerSize), p); err != nil {
		return fmt.Errorf("read header: %w: %w", err, ErrOverlay)
	}
	if o.Base, err = parseHeader(p); err != nil {
		return err
	}
	if end := o.layOut(); st.Size() != end {
		return fmt.Errorf("%d bytes where the header says %d: %w", st.Size(), end, ErrOverlay)
	}
	for _, d := range o.disks {
		if err := d.loadStates(); err != nil {
			return fmt.Errorf("disk %s: %w", d.base.ID, err)
		}
	}
	return nil
}

// layOut gives every disk its place and returns the file's size.
func (o *Overlay) layOut() int64 {
	at := int64(headerSize)
	for i, b := range o.Base.Disks {
		d := &overlayDisk{o: o, index: i, base: b, pages: (b.Size + disk.PageSize - 1) / disk.PageSize, states: map[int64]*statePage{}}
		d.statesAt = alignArea(at)
		d.dataAt = alignArea(d.statesAt + (d.pages+pagesPerState-1)/pagesPerState*2*slotSize)
		at = d.dataAt + d.pages*disk.PageSize
		o.disks = append(o.disks, d)
	}
	return at
}

func alignArea(n int64) int64 { return (n + areaAlign - 1) / areaAlign * areaAlign }

func encodeHeader(b Base) ([]byte, error) {
	text, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	if len(text) > headerSize-headerFixed {
		return nil, fmt.Errorf("header of %d bytes is too large", len(text))
	}
	p := make([]byte, headerSize)
	copy(p, overlayMagic)
	binary.LittleEndian.PutUint32(p[8:], overlayVersion)
	binary.LittleEndian.PutUint32(p[12:], checksum(text))
	binary.LittleEndian.PutUint32(p[16:], uint32(len(text)))
	copy(p[headerFixed:], text)
	if _, err := parseHeader(p); err != nil { // nothing is made that is refused later
		return nil, err
	}
	return p, nil
}

func parseHeader(p []byte) (Base, error) {
	var b Base
	if len(p) != headerSize || !bytes.HasPrefix(p, []byte(overlayMagic)) {
		return b, fmt.Errorf("header: %w", ErrOverlay)
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v != overlayVersion {
		return b, fmt.Errorf("version %d is not known: %w", v, ErrOverlay)
	}
	n := binary.LittleEndian.Uint32(p[16:])
	if n > headerSize-headerFixed || checksum(p[headerFixed:headerFixed+n]) != binary.LittleEndian.Uint32(p[12:]) {
		return b, fmt.Errorf("header's checksum: %w", ErrOverlay)
	}
	if err := json.Unmarshal(p[headerFixed:headerFixed+n], &b); err != nil {
		return b, fmt.Errorf("header: %w: %w", err, ErrOverlay)
	}
	seen := map[string]bool{}
	for _, d := range b.Disks {
		if d.Size < 0 || d.Size > maxDiskSize || seen[d.ID] {
			return b, fmt.Errorf("header's disk %q of %d bytes: %w", d.ID, d.Size, ErrOverlay)
		}
		seen[d.ID] = true
	}
	if len(b.Disks) == 0 || len(b.Disks) > maxDisks {
		return b, fmt.Errorf("header with %d disks: %w", len(b.Disks), ErrOverlay)
	}
	return b, nil
}

// Attach puts the overlay over its recovery point: ErrOtherBase if it is not that one.
func (o *Overlay) Attach(p *Point) error {
	want := baseOf(p.Manifest)
	same := want.Repository == o.Base.Repository && want.Machine == o.Base.Machine && want.Point == o.Base.Point && len(want.Disks) == len(o.Base.Disks)
	for i := 0; same && i < len(want.Disks); i++ {
		same = want.Disks[i] == o.Base.Disks[i]
	}
	if !same {
		return fmt.Errorf("it was made over %s of %s: %w", o.Base.Point, o.Base.MachineName, ErrOtherBase)
	}
	for i, d := range o.disks {
		d.below = p.Disks[i]
	}
	return nil
}

func (o *Overlay) disk(id string) *overlayDisk {
	for _, d := range o.disks {
		if d.base.ID == id {
			return d
		}
	}
	return nil
}

// Image is a disk as it is with what was written over it.
type Image interface {
	io.ReaderAt
	Size() int64
	NextData(off int64) (disk.Range, error)
}

// Image of one of the disks of an attached overlay, and the ranges that were
// written since the recovery point.
func (o *Overlay) Image(id string) (i Image, written []disk.Range, err error) {
	d := o.disk(id)
	if d == nil || d.below == nil {
		return nil, nil, fmt.Errorf("overlay has no disk %q: %w", id, ErrOtherBase)
	}
	return d, d.written(), nil
}

// Written is how many bytes of a disk the overlay has, by disk.
func (o *Overlay) Written() map[string]int64 {
	out := map[string]int64{}
	for _, d := range o.disks {
		out[d.base.ID] = disk.Ranges(d.written()).Total()
	}
	return out
}

// Sync returns when everything that was written before will outlive a crash.
func (o *Overlay) Sync() error {
	o.syncing.Lock()
	defer o.syncing.Unlock()
	if o.failed != nil {
		return o.failed
	}
	if err := o.sync(); err != nil {
		// The kernel forgets what it could not write: a second try proves nothing.
		o.failed = fmt.Errorf("synchronise overlay: %w", err)
	}
	return o.failed
}

func (o *Overlay) sync() error {
	type write struct {
		at int64
		p  []byte
	}
	var states []write
	for _, d := range o.disks {
		d.takeDirty(func(at int64, p []byte) { states = append(states, write{at, p}) })
	}
	if err := o.f.Sync(); err != nil {
		return err
	}
	for _, w := range states {
		if _, err := o.f.WriteAt(w.p, w.at); err != nil {
			return err
		}
	}
	if len(states) == 0 {
		return nil
	}
	return o.f.Sync()
}

// Close makes everything durable and lets go of the file.
func (o *Overlay) Close() error { return errors.Join(o.Sync(), o.f.Close()) }

// DiscardOverlay removes the file, if it is an overlay that nobody uses.
func DiscardOverlay(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("discard overlay: %w", err)
	}
	defer f.Close()
	o := &Overlay{f: f}
	err = o.lock()
	p := make([]byte, len(overlayMagic))
	if err == nil {
		if _, rerr := f.ReadAt(p, 0); rerr != nil || string(p) != overlayMagic {
			err = ErrOverlay // a damaged one may go, another file may not
		}
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("discard overlay %s: %w", path, err)
	}
	return nil
}
