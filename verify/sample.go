package verify

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
)

// Seed chooses a sample.
type Seed [16]byte

// NewSeed draws one that nobody can foresee.
func NewSeed() Seed {
	var s Seed
	_, _ = rand.Read(s[:]) // never fails since Go 1.24
	return s
}

// ErrSeed says that a text is no seed.
var ErrSeed = errors.New("not a seed of 32 hex digits")

// ParseSeed reads what String gave.
func ParseSeed(text string) (s Seed, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("%.40q: %w", text, ErrSeed)
	}
	return Seed(b), nil
}

func (s Seed) String() string { return hex.EncodeToString(s[:]) }

// scan reads a disk as far as the depth says.
func (v *verifier) scan(ctx context.Context, p repository.Point, d repository.Disk, reader *repository.DiskReader, o repository.ScanOptions) error {
	if v.req.pick != nil {
		o.Pick, o.Stored = v.req.pick, func(string, format.Extent) error { return nil }
	}
	if v.req.Depth == Data || v.req.pick != nil {
		_, err := reader.Scan(ctx, o)
		return err
	}
	var mu sync.Mutex
	var units []int64            // that this recovery point has and the one before has not, by offset
	reported := map[int64]bool{} // damage, by offset
	inner := o.Damaged
	o.Damaged = func(de *repository.DamageError) error {
		mu.Lock()
		known := reported[de.Range.Offset]
		reported[de.Range.Offset] = true
		mu.Unlock()
		if known {
			return nil
		}
		return inner(de)
	}
	o.Pick = func(off int64, segments []string) bool {
		if v.req.Depth == Sample && len(segments) > 0 {
			mu.Lock()
			units = append(units, off)
			mu.Unlock()
		}
		return false
	}
	o.Stored = func(key string, e format.Extent) error { return v.segment(ctx, key, e) }
	if _, err := reader.Scan(ctx, o); err != nil || v.req.Depth == Structure {
		return err
	}
	slices.Sort(units)
	chosen := choose(units, v.req.Share, v.req.Seed, p.Machine+"/"+p.ID+"/"+d.ID)
	o.Pick = func(off int64, _ []string) bool { return chosen[off] }
	o.Stored = func(string, format.Extent) error { return nil } // looked at above
	_, err := reader.Scan(ctx, o)
	return err
}

// segment is what was found out about a segment, in the store and not in memory.
type segment struct {
	*repository.Segment
	err    error
	looked int // how often
}

// segment checks that an extent is stored; each segment is looked at once, and
// once more where an extent is missing: a replica may have come since.
func (v *verifier) segment(ctx context.Context, key string, e format.Extent) error {
	v.mu.Lock()
	s, known := v.segments[key]
	v.mu.Unlock()
	for {
		if !known {
			s.Segment, s.err = v.req.Repository.CheckSegment(ctx, key)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.looked++
			v.mu.Lock()
			v.segments[key] = s
			v.mu.Unlock()
		}
		err := s.err
		if err == nil {
			err = s.Has(e)
		}
		if err == nil || s.looked > 1 || !errors.Is(err, repository.ErrNotFound) {
			return err
		}
		known = false
	}
}

// choose draws a share of units, at least one where there is one: each set of
// that size is as likely as any other, but the same for the same seed.
func choose(units []int64, share float64, seed Seed, what string) map[int64]bool {
	want := min(len(units), int(math.Ceil(share*float64(len(units)))))
	chosen := make(map[int64]bool, want)
	h := sha256.Sum256(append(seed[:], what...))
	var draw [sha256.Size + 8]byte
	copy(draw[:], h[:])
	for i, off := range units {
		if len(chosen) == want {
			break
		}
		binary.BigEndian.PutUint64(draw[sha256.Size:], uint64(off))
		x := sha256.Sum256(draw[:])
		// 64 bits over at most 2^41 units: the bias is nothing.
		if binary.BigEndian.Uint64(x[:8])%uint64(len(units)-i) < uint64(want-len(chosen)) {
			chosen[off] = true
		}
	}
	return chosen
}
