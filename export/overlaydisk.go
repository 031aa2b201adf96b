package export

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
)

// States of a page.
const (
	stateBelow = 0 // as in the recovery point
	stateData  = 1
	stateZero  = 2
)

const (
	pagesPerWord = 32
	stateWords   = pagesPerState / pagesPerWord
)

// statePage is one state page in memory. Those that are not there are all below.
type statePage struct {
	words      [stateWords]uint64
	generation uint64 // of what the file has
	slot       int64  // where the next one goes
	dirty      bool
}

// overlayDisk is one disk with what was written over it.
type overlayDisk struct {
	o                *Overlay
	index            int
	base             BaseDisk
	pages            int64
	statesAt, dataAt int64
	below            *Disk

	// mu keeps states and the data area together: a page's bytes are read and
	// written under it. What lies below never changes and is read without it.
	mu     sync.RWMutex
	states map[int64]*statePage
}

func (d *overlayDisk) Size() int64 { return d.base.Size }

// loadStates reads the state area, as far as it was ever written.
func (d *overlayDisk) loadStates() error {
	end := d.statesAt + (d.pages+pagesPerState-1)/pagesPerState*2*slotSize
	var p [2 * slotSize]byte
	for at := d.statesAt; at < end; {
		r, err := disk.NextData(d.o.f, at, end)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for k := (r.Offset - d.statesAt) / (2 * slotSize); ; k++ {
			at = d.statesAt + k*2*slotSize
			if at >= r.End() || at >= end {
				break
			}
			if _, err := d.o.f.ReadAt(p[:], at); err != nil {
				return fmt.Errorf("read state page %d: %w", k, err)
			}
			s, err := d.parseStates(k, &p)
			if err != nil {
				return err
			}
			if s != nil {
				d.states[k] = s
			}
		}
	}
	return nil
}

// parseStates chooses between the two slots of a state page; nil: none was written.
func (d *overlayDisk) parseStates(k int64, p *[2 * slotSize]byte) (*statePage, error) {
	var best *statePage
	blank := false
	for slot := range int64(2) {
		q := p[slot*slotSize : (slot+1)*slotSize]
		le := binary.LittleEndian
		if le.Uint32(q) != checksum(q[4:]) || le.Uint32(q[4:]) != uint32(d.index) || le.Uint64(q[8:]) != uint64(k) || le.Uint64(q[16:]) == 0 {
			blank = blank || isZero(q)
			continue
		}
		if g := le.Uint64(q[16:]); best == nil || g > best.generation {
			best = &statePage{generation: g, slot: 1 - slot}
			for i := range best.words {
				best.words[i] = le.Uint64(q[slotFixed+8*i:])
				if w := best.words[i]; w&(w>>1)&0x5555555555555555 != 0 {
					return nil, fmt.Errorf("state page %d has states that do not exist: %w", k, ErrOverlay)
				}
			}
		}
	}
	if best == nil && !blank {
		return nil, fmt.Errorf("state page %d: both slots are damaged: %w", k, ErrOverlay)
	}
	return best, nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// takeDirty gives every state page that changed to write, with its place, and
// takes it for written.
func (d *overlayDisk) takeDirty(write func(at int64, p []byte)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k, s := range d.states {
		if !s.dirty {
			continue
		}
		s.generation++
		p := make([]byte, slotSize)
		le := binary.LittleEndian
		le.PutUint32(p[4:], uint32(d.index))
		le.PutUint64(p[8:], uint64(k))
		le.PutUint64(p[16:], s.generation)
		for i, w := range s.words {
			le.PutUint64(p[slotFixed+8*i:], w)
		}
		le.PutUint32(p, checksum(p[4:]))
		write(d.statesAt+k*2*slotSize+s.slot*slotSize, p)
		s.slot, s.dirty = 1-s.slot, false
	}
}

func (d *overlayDisk) state(page int64) uint64 {
	s := d.states[page/pagesPerState]
	if s == nil {
		return stateBelow
	}
	in := page % pagesPerState
	return s.words[in/pagesPerWord] >> (in % pagesPerWord * 2) & 3
}

// run is the state of a page and the first page behind it that has another,
// or end.
func (d *overlayDisk) run(page, end int64) (state uint64, until int64) {
	state = d.state(page)
	pattern := state * 0x5555555555555555
	for page < end {
		s := d.states[page/pagesPerState]
		in := page % pagesPerState
		if s == nil {
			if state != stateBelow {
				return state, page
			}
			page += pagesPerState - in
			continue
		}
		skip := in % pagesPerWord
		differ := (s.words[in/pagesPerWord] ^ pattern) >> (skip * 2)
		if differ != 0 {
			return state, min(page+int64(bits.TrailingZeros64(differ))/2, end)
		}
		page += pagesPerWord - skip
	}
	return state, end
}

// set gives pages a state.
func (d *overlayDisk) set(page, end int64, state uint64) {
	for page < end {
		s := d.states[page/pagesPerState]
		if s == nil {
			s = new(statePage)
			d.states[page/pagesPerState] = s
		}
		s.dirty = true
		in := page % pagesPerState
		skip := in % pagesPerWord
		n := min(pagesPerWord-skip, end-page)
		mask := (^uint64(0) >> (64 - 2*n)) << (skip * 2)
		w := &s.words[in/pagesPerWord]
		*w = *w&^mask | state*0x5555555555555555&mask
		page += n
	}
}

// clip cuts [off, off+n) to the disk; an error where it begins outside.
func (d *overlayDisk) outside(off int64, n int) error {
	if off < 0 || int64(n) > d.base.Size-off {
		return fmt.Errorf("%d bytes at %d of a disk of %d bytes", n, off, d.base.Size)
	}
	return nil
}

// ReadAt reads what was written last, or else the recovery point.
func (d *overlayDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read overlay: negative offset")
	}
	if off >= d.base.Size {
		return 0, io.EOF
	}
	var short error
	if left := d.base.Size - off; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	below, err := d.readOwn(p, off)
	if err != nil {
		return 0, fmt.Errorf("read overlay: %w", err)
	}
	for _, r := range below {
		if n, err := d.below.ReadAt(p[r.Offset-off:r.End()-off], r.Offset); int64(n) < r.Length {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return int(r.Offset-off) + n, err
		}
	}
	return len(p), short
}

// readOwn reads what the overlay has of a range, and says what it does not have.
func (d *overlayDisk) readOwn(p []byte, off int64) (below []disk.Range, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	end := off + int64(len(p))
	for at := off; at < end; {
		state, until := d.run(at/disk.PageSize, (end+disk.PageSize-1)/disk.PageSize)
		to := min(until*disk.PageSize, end)
		part := p[at-off : to-off]
		switch state {
		case stateBelow:
			below = append(below, disk.Range{Offset: at, Length: to - at})
		case stateZero:
			clear(part)
		default:
			if _, err := d.o.f.ReadAt(part, d.dataAt+at); err != nil {
				return nil, err
			}
		}
		at = to
	}
	return below, nil
}

// WriteAt takes what is written. Writes of less than a page bring the rest of
// the page along.
func (d *overlayDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.outside(off, len(p)); err != nil {
		return 0, fmt.Errorf("write overlay: %w", err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	end := off + int64(len(p))
	first, last := off/disk.PageSize, (end-1)/disk.PageSize
	// What lies below is read before the lock is taken: it may take long.
	head, err := d.edge(first, off, end)
	if err != nil {
		return 0, err
	}
	tail := head
	if last != first {
		if tail, err = d.edge(last, off, end); err != nil {
			return 0, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if last == first {
		err = d.put(first, head, p, off)
	} else {
		from, to := off, end
		if head != nil {
			from = (first + 1) * disk.PageSize
			err = d.put(first, head, p[:from-off], off)
		}
		if err == nil && tail != nil {
			to = last * disk.PageSize
			err = d.put(last, tail, p[to-off:], to)
		}
		if err == nil && from < to {
			_, err = d.o.f.WriteAt(p[from-off:to-off], d.dataAt+from)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("write overlay: %w", err)
	}
	d.set(first, last+1, stateData)
	return len(p), nil
}

// edge is a page of what lies below, where [off, end) covers only a part of it;
// nil where it covers all of the page that the disk has.
func (d *overlayDisk) edge(page, off, end int64) ([]byte, error) {
	from, to := page*disk.PageSize, min((page+1)*disk.PageSize, d.base.Size)
	if off <= from && end >= to && to-from == disk.PageSize {
		return nil, nil
	}
	buf := make([]byte, disk.PageSize)
	d.mu.RLock()
	state := d.state(page)
	d.mu.RUnlock()
	if state == stateBelow && (off > from || end < to) {
		if n, err := d.below.ReadAt(buf[:to-from], from); int64(n) < to-from {
			return nil, fmt.Errorf("write overlay: read the page around: %w", err)
		}
	}
	return buf, nil
}

// put writes a part of a page, or all of it. whole is the page as it lies
// below, or nil where p is a page.
func (d *overlayDisk) put(page int64, whole, p []byte, off int64) error {
	switch {
	case whole == nil || d.state(page) == stateData: // never goes back to what lies below
		_, err := d.o.f.WriteAt(p, d.dataAt+off)
		return err
	case d.state(page) == stateZero:
		clear(whole)
	}
	copy(whole[off-page*disk.PageSize:], p)
	_, err := d.o.f.WriteAt(whole, d.dataAt+page*disk.PageSize)
	return err
}

// Zero makes a range read as zeroes.
func (d *overlayDisk) Zero(off, length int64) error {
	if length < 0 || off < 0 || length > d.base.Size-off {
		return fmt.Errorf("zero overlay: %d bytes at %d of a disk of %d bytes", length, off, d.base.Size)
	}
	end := off + length
	from, to := (off+disk.PageSize-1)/disk.PageSize, end/disk.PageSize
	if end == d.base.Size {
		to = d.pages
	}
	if from >= to {
		return d.zeroPart(off, end)
	}
	if err := d.zeroPart(off, from*disk.PageSize); err != nil {
		return err
	}
	if err := d.zeroPart(to*disk.PageSize, end); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := from; at < to; {
		state, until := d.run(at, to)
		if state == stateData {
			// Only to give space back: the state says that it is zeroes.
			_ = disk.PunchHole(d.o.f, d.dataAt+at*disk.PageSize, (until-at)*disk.PageSize)
		}
		at = until
	}
	d.set(from, to, stateZero)
	return nil
}

// zeroPart writes zeroes where there is less than a page.
func (d *overlayDisk) zeroPart(from, to int64) error {
	for ; from < to; from = (from/disk.PageSize + 1) * disk.PageSize {
		n := min(to, (from/disk.PageSize+1)*disk.PageSize) - from
		if _, err := d.WriteAt(make([]byte, n), from); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes everything durable that was written to the overlay.
func (d *overlayDisk) Sync() error { return d.o.Sync() }

// Prefetch reads what lies below into the cache.
func (d *overlayDisk) Prefetch(off, length int64) error { return d.below.Prefetch(off, length) }

// NextData returns the next range at or behind off that is not known to be
// zeroes.
func (d *overlayDisk) NextData(off int64) (disk.Range, error) {
	off = max(off, 0)
	for off < d.base.Size {
		d.mu.RLock()
		state, until := d.run(off/disk.PageSize, d.pages)
		d.mu.RUnlock()
		end := min(until*disk.PageSize, d.base.Size)
		switch state {
		case stateData:
			return disk.Range{Offset: off, Length: end - off}, nil
		case stateBelow:
			r, err := d.below.NextData(off)
			if err == nil && r.Offset < end {
				return disk.Range{Offset: r.Offset, Length: min(r.End(), end) - r.Offset}, nil
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return disk.Range{}, err
			}
		}
		off = end
	}
	return disk.Range{}, io.EOF
}

// written are the ranges that were written, whatever to.
func (d *overlayDisk) written() disk.Ranges {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out disk.Ranges
	for at := int64(0); at < d.pages; {
		state, until := d.run(at, d.pages)
		if state != stateBelow {
			from, to := at*disk.PageSize, min(until*disk.PageSize, d.base.Size)
			out = out.Add(disk.Range{Offset: from, Length: to - from})
		}
		at = until
	}
	return out
}
