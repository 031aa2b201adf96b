package repository_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// lyingStore shows other bytes for one object of a store that it shares with
// others, and notes which objects are read.
type lyingStore struct {
	store.Store
	key  string
	data []byte
	gone bool

	mu   sync.Mutex
	read map[string]bool
}

func (s *lyingStore) note(key string) {
	if s.read == nil {
		return
	}
	s.mu.Lock()
	s.read[key] = true
	s.mu.Unlock()
}

func (s *lyingStore) Stat(ctx context.Context, key string) (store.Info, error) {
	s.note(key)
	switch {
	case key != s.key:
		return s.Store.Stat(ctx, key)
	case s.gone:
		return store.Info{}, fmt.Errorf("stat %s: %w", key, store.ErrNotExist)
	}
	return store.Info{Key: key, Size: int64(len(s.data))}, nil
}

func (s *lyingStore) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	s.note(key)
	switch {
	case key != s.key:
		return s.Store.ReadRange(ctx, key, off, p)
	case s.gone:
		return 0, fmt.Errorf("read %s: %w", key, store.ErrNotExist)
	}
	n := copy(p, s.data[min(off, int64(len(s.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *lyingStore) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return s.Store.List(ctx, prefix, func(i store.Info) error {
		if i.Key == s.key {
			if s.gone {
				return nil
			}
			i.Size = int64(len(s.data))
		}
		return fn(i)
	})
}

// stage is one thing that a reader does with a repository; it fails the
// comparison with wrong, and detects with err.
type stage struct {
	name string
	run  func(r *repository.Repository) (err, wrong error)
}

// stages are all that readers do. What a stage reads was recorded on the sound
// store, each time by a repository opened anew: a stage that never reads an
// object cannot come out otherwise for it.
func (s *sample) stages(tb testing.TB) (stages []stage, reads []map[string]bool) {
	ctx := context.Background()
	add := func(name string, run func(r *repository.Repository) ([]byte, error)) {
		rec := &lyingStore{Store: s.mem, read: map[string]bool{}}
		r, err := s.openReader(rec)
		if err != nil {
			tb.Fatal(err)
		}
		want, err := run(r)
		if err != nil {
			tb.Fatalf("%s: %v", name, err)
		}
		stages = append(stages, stage{name, func(r *repository.Repository) (err, wrong error) {
			got, err := run(r)
			if err == nil && !bytes.Equal(got, want) {
				wrong = fmt.Errorf("%s reads otherwise: %.300q, was %.300q", name, got, want)
			}
			return err, wrong
		}})
		reads = append(reads, rec.read)
	}
	text := func(v any, err error) ([]byte, error) {
		p, merr := json.Marshal(v)
		return p, errors.Join(err, merr)
	}
	add("machines", func(r *repository.Repository) ([]byte, error) { return text(r.Machines(ctx)) })
	add("points", func(r *repository.Repository) ([]byte, error) { return text(r.Points(ctx, s.machine.ID)) })
	add("holders", func(r *repository.Repository) ([]byte, error) { return text(r.Holders(ctx)) })
	for _, p := range s.points {
		add("manifest", func(r *repository.Repository) ([]byte, error) {
			m, err := r.Manifest(ctx, p)
			if err != nil {
				return nil, err
			}
			return text(*m, nil)
		})
		add("sidecars", func(r *repository.Repository) ([]byte, error) { return text(r.Sidecars(ctx, s.machine.ID, p.ID)) })
		m, err := s.repo.Manifest(ctx, p)
		if err != nil {
			tb.Fatal(err)
		}
		for _, d := range m.Disks {
			want := s.images[imageKey(p.ID, d.ID)]
			add("content", func(r *repository.Repository) ([]byte, error) { return readData(r, m, d) })
			if got, err := scanDisk(s.repo, m, d); err != nil || !bytes.Equal(got, want) {
				tb.Fatal("the sample is not what was backed up", err)
			}
			for _, h := range d.Headers {
				add("header", func(r *repository.Repository) ([]byte, error) {
					h, err := r.Header(ctx, s.machine.ID, h.ID)
					if err != nil {
						return nil, err
					}
					p := make([]byte, h.Size)
					_, err = h.ReadAt(p, 0)
					return p, err
				})
			}
		}
	}
	add("machine sidecars", func(r *repository.Repository) ([]byte, error) {
		return text(r.Sidecars(ctx, s.machine.ID, repository.MachineSidecars))
	})
	return stages, reads
}

// readData reads a disk's ranges of data, each behind its place: cheaper than
// all of it, and as good for comparing.
func readData(r *repository.Repository, m *repository.Manifest, d repository.Disk) (out []byte, err error) {
	rd, err := r.OpenDisk(ctxBackground, m.Machine, d)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	for at := int64(0); ; {
		g, err := rd.NextData(at)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = fmt.Appendf(out, "%d+%d:", g.Offset, g.Length)
		n := len(out)
		out = append(out, make([]byte, g.Length)...)
		if k, err := rd.ReadAt(out[n:], g.Offset); k != int(g.Length) {
			return nil, err
		}
		at = g.End()
	}
}

// readers puts one variant of an object before every stage that reads it:
// each must detect it or come out the same.
func (s *sample) readers(stages []stage, reads []map[string]bool, v *lyingStore) (detected, wrong error) {
	r, err := s.openReader(v)
	if err != nil {
		return err, nil
	}
	defer r.Close()
	for i, st := range stages {
		if !reads[i][v.key] {
			continue
		}
		if err, bad := st.run(r); bad != nil {
			return detected, bad
		} else if err != nil {
			detected = err
		}
	}
	return detected, nil
}

// forEach runs fn for 0…n-1 on all processors.
func forEach(n int, fn func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				fn(i)
			}
		})
	}
	wg.Wait()
}

// TestEveryFlippedBit flips a bit of every byte of every object. The check
// without keys must see each; every reader that meets it must see it or not
// be touched by it.
func TestEveryFlippedBit(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		t.Run(sealing, func(t *testing.T) {
			s := newSample(t, sealing)
			stages, reads := s.stages(t)
			type variant struct {
				key string
				at  int
			}
			var variants []variant
			perKind := map[string][2]int{} // objects, bytes put before readers
			segments := 0
			for _, key := range allKeys(t, s.mem, "") {
				raw := get(t, s.mem, key)
				// Without keys: every byte of all.
				for at := range raw {
					raw[at] ^= 1 << (at % 8)
					if err := repository.CheckStored(t.Context(), &lyingStore{Store: s.mem, key: key, data: raw}, key); err == nil {
						t.Fatalf("%s: bit flipped at %d is not seen without keys", key, at)
					}
					raw[at] ^= 1 << (at % 8)
				}
				kind := kindOf(key)
				n := perKind[kind]
				n[0]++
				step := 1
				switch strings.TrimPrefix(kind, "copies/") {
				case "seg":
					// Headers are mostly zeroes under one checksum, extents under one tag.
					if step = 197; segments == 0 {
						step = 61
					}
					segments++
				case "config", "keys", "trust", "machines":
					step = 5 // read by every stage; the check without keys saw every byte
				case "map":
				default:
					step = 4 // frames
				}
				if sealing == repository.SealingNone && kind != "seg" {
					step *= 40 // what is not an extent is sealed all the same
				}
				if testing.Short() {
					step *= 16
				}
				for at := range raw {
					tail := kind == "seg" && (at < 70 || at >= len(raw)-400)
					if at%step == n[0]%step || tail && !testing.Short() {
						variants = append(variants, variant{key, at})
						n[1]++
					}
				}
				perKind[kind] = n
			}
			var seen, harmless atomic.Int64
			forEach(len(variants), func(i int) {
				v := variants[i]
				raw := get(t, s.mem, v.key)
				raw[v.at] ^= 1 << ((v.at + i) % 8)
				detected, wrong := s.readers(stages, reads, &lyingStore{Store: s.mem, key: v.key, data: raw})
				switch {
				case wrong != nil:
					t.Errorf("%s: bit flipped at %d: %v", v.key, v.at, wrong)
				case detected != nil:
					seen.Add(1)
				default:
					harmless.Add(1)
				}
			})
			kinds := make([]string, 0, len(perKind))
			for k := range perKind {
				kinds = append(kinds, fmt.Sprintf("%s %d objects %d bytes", k, perKind[k][0], perKind[k][1]))
			}
			sort.Strings(kinds)
			t.Logf("%d flips before readers: %d detected, %d without effect (%s)", len(variants), seen.Load(), harmless.Load(), strings.Join(kinds, ", "))
			for _, k := range []string{"config", "copies/config", "keys", "trust", "machines", "points", "log", "headers-a", "headers-b", "side", "map", "seg"} {
				if perKind[k][0] == 0 {
					t.Errorf("no object of kind %s was there to be damaged", k)
				}
			}
			if seen.Load() == 0 || harmless.Load() == 0 {
				t.Error("one of the outcomes never came: the test does not test")
			}
		})
	}
}
