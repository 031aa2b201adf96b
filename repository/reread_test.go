package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// flippingStore flips bits in what the first reads of each place
// below a prefix return, as a bad wire does.
type flippingStore struct {
	store.Store
	prefix string
	times  int

	mu      sync.Mutex
	flipped map[string]int
}

func (s *flippingStore) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	n, err := s.Store.ReadRange(ctx, key, off, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	place := fmt.Sprint(key, " ", off, " ", len(p))
	if n > 0 && strings.HasPrefix(key, s.prefix) && s.flipped[place] < s.times {
		s.flipped[place]++
		for i := 0; i < n; i += 64 { // every page of a map, too
			p[i] ^= 4
		}
	}
	return n, err
}

// keepingStore keeps all that was read until it is told to forget it.
type keepingStore struct {
	store.Store
	mu   sync.Mutex
	kept map[string][]byte
}

func (s *keepingStore) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	place := fmt.Sprint(key, " ", off, " ", len(p))
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.kept[place]; ok {
		if n := copy(p, data); n < len(p) {
			return n, io.EOF
		}
		return len(p), nil
	}
	n, err := s.Store.ReadRange(ctx, key, off, p)
	if err == nil || n > 0 && errors.Is(err, io.EOF) {
		s.kept[place] = bytes.Clone(p[:n])
	}
	return n, err
}

func (s *keepingStore) Forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for place := range s.kept {
		if strings.HasPrefix(place, key+" ") {
			delete(s.kept, place)
		}
	}
}

// limitedStore stands for what lies between the repository and a cache.
type limitedStore struct{ store.Store }

func (s limitedStore) Unwrap() store.Store { return s.Store }

func TestABitThatFlippedOnTheWayIsReadAgain(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		for _, prefix := range []string{"seg/", "map/", "points/"} {
			for _, times := range []int{1, 1 << 30} {
				t.Run(fmt.Sprint(sealing, "/", prefix, times), func(t *testing.T) {
					mem := memstore.New()
					f := newFixture(t, mem, sealing)
					d := &memDisk{p: noise(1, 3<<20)}
					p1, _ := f.backup(t, d, repository.BeginOptions{})
					copy(d.p[1<<20:], noise(2, 12345)) // a block of several extents
					p2, _ := f.backup(t, d, repository.BeginOptions{})

					flips := &flippingStore{Store: mem, prefix: prefix, times: times, flipped: map[string]int{}}
					f.st = limitedStore{&keepingStore{Store: flips, kept: map[string][]byte{}}}
					r := f.open(t)
					for _, p := range []repository.Point{p1, p2} {
						got, err := readPoint(r, p)
						if times > 1 {
							if !errors.Is(err, repository.ErrDamaged) {
								t.Errorf("damaged for good: %v, want ErrDamaged", err)
							}
							return
						}
						if err != nil {
							t.Fatalf("one bad read: %v", err)
						}
						if p == p2 && !bytes.Equal(got, d.p) {
							t.Error("content differs")
						}
					}
					if len(flips.flipped) == 0 {
						t.Error("nothing was read")
					}
				})
			}
		}
	}
}
