package limit_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/limit"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/target"
)

// clock is time that passes only where somebody waits.
type clock struct {
	mu     sync.Mutex
	at     time.Time
	waited time.Duration
	most   time.Duration // longest single wait
}

func newClock() *clock { return &clock{at: time.Date(2026, 3, 14, 2, 0, 0, 0, time.UTC)} }

func (c *clock) limits(s limit.Schedule) *limit.Limits {
	return limit.New(s, limit.Clock{
		Now: func() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.at },
		Sleep: func(ctx context.Context, d time.Duration) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.at, c.waited, c.most = c.at.Add(d), c.waited+d, max(c.most, d)
			return ctx.Err()
		},
	})
}

// about compares durations to a millisecond: rates are fractions.
func about(a, b time.Duration) bool { return (a - b).Abs() < time.Millisecond }

func TestWaitsAddUp(t *testing.T) {
	for name, c := range map[string]struct {
		rate int64
		asks []int
		want time.Duration
	}{
		"one ask":                 {1 << 20, []int{10 << 20}, 10 * time.Second},
		"many asks":               {1 << 20, []int{1, 100, 4096, 1<<20 - 4197}, time.Second},
		"larger than a burst":     {200 << 20, []int{2 << 20, 398 << 20}, 2 * time.Second},
		"no limit":                {0, []int{1 << 30}, 0},
		"slower than the slowest": {1, []int{limit.Slowest}, time.Second},
		"nothing":                 {1 << 20, []int{0}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			k := newClock()
			l := k.limits(limit.Constant(c.rate, 0))
			for _, n := range c.asks {
				if err := l.Read(t.Context(), n); err != nil {
					t.Fatal(err)
				}
			}
			if !about(k.waited, c.want) {
				t.Errorf("waited %s, want %s", k.waited, c.want)
			}
			if k.most > 251*time.Millisecond {
				t.Errorf("a single wait of %s: a change of the rate would go unnoticed", k.most)
			}
			before := k.waited
			if err := l.Write(t.Context(), 1<<30); err != nil || k.waited != before {
				t.Errorf("writing is not limited, but waits %s, %v", k.waited-before, err)
			}
		})
	}
}

// TestWaitsAddUpInPieces: however the bytes are asked for, they take size/rate.
func TestWaitsAddUpInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rapid.Int64Range(limit.Slowest, 1<<30).Draw(t, "rate")
		k := newClock()
		l := k.limits(limit.Constant(0, r))
		var total int64
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 4<<20), 1, 50).Draw(t, "asks") {
			if err := l.Write(context.Background(), n); err != nil {
				t.Fatal(err)
			}
			total += int64(n)
		}
		want := time.Duration(float64(total) / float64(r) * float64(time.Second))
		if !about(k.waited, want) {
			t.Fatalf("%d bytes at %d a second waited %s, want %s", total, r, k.waited, want)
		}
	})
}

func TestRateChangesOnTheWay(t *testing.T) {
	k := newClock()
	night := k.at.Add(10 * time.Second)
	l := k.limits(func(at time.Time) (int64, int64) {
		if at.Before(night) {
			return 1 << 20, 0
		}
		return 0, 0
	})
	// One read that would take two hours by day.
	if err := l.Read(t.Context(), 7200<<20); err != nil {
		t.Fatal(err)
	}
	if k.waited < 9*time.Second || k.waited > 11*time.Second {
		t.Errorf("waited %s, want the 10 s until the limit ends", k.waited)
	}
}

func TestGivingUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := limit.New(limit.Constant(limit.Slowest, limit.Slowest), limit.Clock{Sleep: func(ctx context.Context, _ time.Duration) error {
		cancel()
		return ctx.Err()
	}})
	if err := l.Read(ctx, 1<<40); !errors.Is(err, context.Canceled) {
		t.Errorf("reading: %v", err)
	}
	if err := l.Write(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("writing after it: %v", err)
	}
	// The system's clock, too.
	if err := limit.New(limit.Constant(limit.Slowest, 0), limit.Clock{}).Read(ctx, 1<<40); !errors.Is(err, context.Canceled) {
		t.Errorf("with the system's clock: %v", err)
	}
}

func TestStrictest(t *testing.T) {
	if limit.Strictest(nil, nil) != nil || limit.New(nil, limit.Clock{}) != nil {
		t.Error("nothing limits something")
	}
	r, w := limit.Strictest(limit.Constant(0, 100), nil, limit.Constant(50, 200), limit.Constant(70, 0))(time.Time{})
	if r != 50 || w != 100 {
		t.Errorf("%d, %d", r, w)
	}
}

// memory is a source and target in memory that counts and remembers what it was asked.
type memory struct {
	p           []byte
	read, wrote int64
	last        []byte // buffer of the last call
	holes       bool
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.read, m.last = m.read+int64(len(p)), p
	return copy(p, m.p[off:]), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.wrote, m.last = m.wrote+int64(len(p)), p
	return copy(m.p[off:], p), nil
}
func (m *memory) Close() error                    { return nil }
func (m *memory) Size() int64                     { return int64(len(m.p)) }
func (m *memory) Check() error                    { return nil }
func (m *memory) Consistency() source.Consistency { return source.ConsistencyCrash }
func (m *memory) Zero(int64, int64) error         { m.holes = true; return nil }
func (m *memory) Commit() error                   { return nil }
func (m *memory) Capacity() int64                 { return m.Size() }
func (m *memory) Abort() error                    { return nil }
func (m *memory) NextData(int64) (disk.Range, error) {
	return disk.Range{Offset: 7, Length: 9}, nil
}

func (m *memory) Changed(context.Context, string) ([]disk.Range, bool, string, error) {
	return []disk.Range{{Offset: 1, Length: 2}}, true, "", nil
}

func TestDisks(t *testing.T) {
	k := newClock()
	ctx := limit.With(t.Context(), k.limits(limit.Constant(1<<20, 2<<20)))
	m := &memory{p: make([]byte, 4<<20)}
	s := limit.Source(ctx, m)
	buf := disk.AlignedBuffer(1 << 20)
	for off := int64(0); off < s.Size(); off += int64(len(buf)) {
		if n, err := s.ReadAt(buf, off); n != len(buf) || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
	}
	if m.read != 4<<20 || &m.last[0] != &buf[0] || !about(k.waited, 4*time.Second) {
		t.Errorf("%d bytes read in %s, own buffer %v", m.read, k.waited, &m.last[0] == &buf[0])
	}
	if r, err := s.NextData(0); err != nil || r != (disk.Range{Offset: 7, Length: 9}) {
		t.Errorf("NextData: %v, %v", r, err)
	}
	if c, known, _, err := s.Changed(ctx, "p"); len(c) != 1 || !known || err != nil || s.Consistency() != source.ConsistencyCrash {
		t.Errorf("what changed is not handed on")
	}
	before := k.waited
	d := limit.Target(ctx, m)
	if n, err := d.WriteAt(buf, 1<<20); n != len(buf) || err != nil || &m.last[0] != &buf[0] {
		t.Fatalf("%d, %v", n, err)
	}
	if err := d.Zero(0, 1<<40); err != nil || !m.holes {
		t.Error(err)
	}
	if got := k.waited - before; !about(got, time.Second/2) {
		t.Errorf("writing 1 MiB at 2 MiB/s waited %s", got)
	}
	if n, err := d.ReadAt(buf, 0); n != len(buf) || err != nil || !about(k.waited-before, 5*time.Second/4) { // a quarter of a second's bytes came in meanwhile
		t.Errorf("comparing: %d, %v, %s", n, err, k.waited-before)
	}
	if limit.Source(t.Context(), m) != source.Disk(m) || limit.Target(t.Context(), m) != target.Disk(m) {
		t.Error("without limits there is a wrapper")
	}
}

func TestStore(t *testing.T) {
	k := newClock()
	ctx := limit.With(t.Context(), k.limits(limit.Constant(1<<20, 1<<20)))
	mem := memstore.New()
	s := limit.Store(mem)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := s.Put(ctx, "a/b", content); err != nil {
		t.Fatal(err)
	}
	w, err := s.Create(ctx, "a/c")
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(content); i += 1 << 18 {
		if n, err := w.Write(content[i : i+1<<18]); n != 1<<18 || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if !about(k.waited, 2*time.Second) {
		t.Errorf("writing 2 MiB waited %s", k.waited)
	}
	for _, key := range []string{"a/b", "a/c"} {
		p := make([]byte, len(content))
		if n, err := s.ReadRange(ctx, key, 0, p); n != len(p) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p, content) {
			t.Errorf("%s: %d, %v", key, n, err)
		}
	}
	if !about(k.waited, 4*time.Second) {
		t.Errorf("with reading 2 MiB waited %s", k.waited)
	}
	if _, err := s.ReadRange(t.Context(), "a/b", 0, make([]byte, 1<<20)); err != nil && !errors.Is(err, io.EOF) || !about(k.waited, 4*time.Second) {
		t.Errorf("without limits: %v, %s", err, k.waited)
	}
	if u, ok := s.(interface{ Unwrap() store.Store }); !ok || u.Unwrap() != store.Store(mem) {
		t.Error("the store itself cannot be had")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(cancelled, "a/d", content); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := mem.Stat(t.Context(), "a/d"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("what was given up is there: %v", err)
	}
}
