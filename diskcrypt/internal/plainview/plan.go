package plainview

import (
	"errors"
	"fmt"
	"math"
	"sort"
)

// Cipher transforms runs of whole sectors in place. It is safe for concurrent
// use. unit is the number of the first 512 bytes of b in the cipher's own
// count: dm-crypt counts from the segment's start plus its IV tweak, BitLocker
// takes the byte offset in the volume / 512.
type Cipher interface {
	SectorSize() int // bytes, a multiple of 512
	Decrypt(b []byte, unit uint64)
	Encrypt(b []byte, unit uint64)
}

// unitSize is what Cipher counts in.
const unitSize = 512

// Kind says what becomes of the bytes of a run.
type Kind uint8

// The kinds of a run.
const (
	Crypt      Kind = iota // decrypted
	Plain                  // as they are stored
	Zero                   // zeros, nothing is stored
	Unreadable             // nobody can say: reading fails with ErrUnreadable
)

func (k Kind) String() string {
	switch k {
	case Crypt:
		return "crypt"
	case Plain:
		return "plain"
	case Zero:
		return "zero"
	case Unreadable:
		return "unreadable"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

var (
	// ErrUnreadable is wrapped by what reading or writing an Unreadable run gives.
	ErrUnreadable = errors.New("cannot be decrypted")
	// ErrReadOnly is given for writes to what is not stored, or not writable.
	ErrReadOnly = errors.New("not writable")
	// ErrPlan is given for a plan that contradicts itself: a mistake of who made it.
	ErrPlan = errors.New("the map of the volume is inconsistent")
)

// Run is a stretch of the logical device.
type Run struct {
	Offset, Length int64 // bytes of the logical device
	Kind           Kind
	From           int64  // Crypt, Plain: where its first byte is in the data
	Unit           uint64 // Crypt: number of its first 512 bytes
	Cipher         Cipher // Crypt: Length is a multiple of its sector size
	Why            error  // Unreadable: the reason
}

// Plan finds the run that covers off, an offset below the view's size. It is
// called concurrently. Runs of one plan do not overlap; a run is cut anew from
// any offset that it covers, so it must be the same for each of them.
type Plan interface {
	At(off int64) Run
}

// Runs is a Plan: ascending by Offset, without overlaps. What none of them
// covers is unreadable.
type Runs []Run

// At is Plan's.
func (r Runs) At(off int64) Run {
	i := sort.Search(len(r), func(i int) bool { return r[i].Offset > off })
	if i > 0 && off-r[i-1].Offset < r[i-1].Length {
		return r[i-1]
	}
	hole := Run{Kind: Unreadable, Why: errors.New("no part of the volume is stored there")}
	if i > 0 {
		hole.Offset = r[i-1].Offset + r[i-1].Length
	}
	hole.Length = math.MaxInt64 - hole.Offset
	if i < len(r) {
		hole.Length = r[i].Offset - hole.Offset
	}
	return hole
}

// check says what is wrong with a run that a plan gave for off.
func (r Run) check(off int64) error {
	switch {
	case r.Offset < 0 || r.Length <= 0 || r.Length > math.MaxInt64-r.Offset,
		off < r.Offset || off-r.Offset >= r.Length:
		return fmt.Errorf("%w: run [%d, +%d) for offset %d", ErrPlan, r.Offset, r.Length, off)
	case r.Kind > Unreadable:
		return fmt.Errorf("%w: %v", ErrPlan, r.Kind)
	case (r.Kind == Crypt || r.Kind == Plain) && (r.From < 0 || r.Length > math.MaxInt64-r.From):
		return fmt.Errorf("%w: run [%d, +%d) from %d", ErrPlan, r.Offset, r.Length, r.From)
	case r.Kind == Crypt:
		return r.checkCipher()
	}
	return nil
}

func (r Run) checkCipher() error {
	if r.Cipher == nil {
		return fmt.Errorf("%w: run [%d, +%d) without a cipher", ErrPlan, r.Offset, r.Length)
	}
	s := r.Cipher.SectorSize()
	if s < unitSize || s > maxSectorSize || s%unitSize != 0 || r.Length%int64(s) != 0 {
		return fmt.Errorf("%w: run [%d, +%d) of sectors of %d bytes", ErrPlan, r.Offset, r.Length, s)
	}
	return nil
}
