package storecheck

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

const piece = 4 << 20

// send writes an object of size bytes through a Writer.
func send(t *run, s store.Store, key string, size int64, seed byte) (store.Writer, error) {
	w, err := s.Create(t.ctx, key)
	if err != nil {
		return nil, err
	}
	p := aligned(piece)
	fill(p, seed)
	for left := size; left > 0; left -= piece {
		if _, err := w.Write(p[:min(left, piece)]); err != nil {
			_ = w.Abort()
			return nil, err
		}
	}
	return w, nil
}

// largeRace commits two large objects of one name at the same time: where
// adapters send in parts, servers often forget the condition.
func (o Options) largeRace(t *run, s store.Store) {
	var writers [2]store.Writer
	for i := range writers {
		w, err := send(t, s, "large", o.Large, byte(i+1))
		if err != nil {
			t.Fatalf("write: %v", err)
		}
		writers[i] = w
	}
	var errs [2]error
	var wg sync.WaitGroup
	for i, w := range writers {
		wg.Go(func() { errs[i] = w.Commit() })
	}
	wg.Wait()
	winner := slices.Index(errs[:], nil)
	if winner < 0 {
		t.Fatalf("nobody won: %v; %v", errs[0], errs[1])
	}
	if !errors.Is(errs[1-winner], store.ErrExist) {
		t.Errorf("the second commit: %v, want ErrExist: the store does not honour the condition for large objects", errs[1-winner])
	}
	info, err := s.Stat(t.ctx, "large")
	if err != nil || info.Size != o.Large {
		t.Fatalf("stat: %d bytes, %v; want %d", info.Size, err, o.Large)
	}
	want, got := aligned(piece), aligned(piece)
	fill(want, byte(winner+1))
	for off := int64(0); off < o.Large; off += piece {
		n, err := s.ReadRange(t.ctx, "large", off, got)
		if int64(n) != min(piece, o.Large-off) || err != nil && !errors.Is(err, io.EOF) || !slices.Equal(got[:n], want[:n]) {
			t.Fatalf("read at %d: %d bytes, %v; not what the winner wrote", off, n, err)
		}
	}
	third, err := send(t, s, "large", o.Large, 3)
	if err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := third.Commit(); !errors.Is(err, store.ErrExist) {
		t.Errorf("commit over an object: %v, want ErrExist", err)
	}
}

// checkConsistency looks at once for what was done: a store that shows it later
// loses races that the contract decides.
func checkConsistency(t *run, s store.Store) {
	var want []string
	for i := range 20 {
		key := fmt.Sprintf("k/%02d", i)
		if _, err := s.Stat(t.ctx, key); !errors.Is(err, store.ErrNotExist) { // so that a cache could remember it
			t.Errorf("stat %s before it is put: %v, want ErrNotExist", key, err)
		}
		put(t, s, key, pattern(100+i, byte(i)))
		wantObject(t, s, key, pattern(100+i, byte(i)))
		want = append(want, key)
		wantKeys(t, s, "k/", want...)
	}
	for len(want) > 0 {
		if err := s.Delete(t.ctx, want[0]); err != nil {
			t.Errorf("delete %s: %v", want[0], err)
		}
		wantAbsent(t, s, want[0])
		want = want[1:]
		wantKeys(t, s, "k/", want...)
	}
}

// lock sees a lock hold, and end.
func (o Options) lock(t *run, s store.Store) {
	f := s.(*folder)
	l, ok := f.Store.(store.Locker)
	if !ok {
		t.Skipf("this kind of store does not lock objects")
	}
	status, err := l.LockStatus(t.ctx)
	switch {
	case err != nil:
		t.Fatalf("lock status: %v", err)
	case !status.Enabled:
		t.Skipf("object lock is not enabled here")
	case o.Lock < 0:
		t.Skipf("object lock is enabled; it was not tried")
	}
	put(t, s, "locked", []byte("x"))
	until := status.Now.Add(o.Lock)
	if err := f.retain(t.ctx, l, "locked", until); err != nil {
		t.Fatalf("retain: %v", err)
	}
	if got, err := f.retainedUntil(t.ctx, l, "locked"); err != nil || got.Before(until) || got.After(until.Add(2*time.Second)) {
		t.Errorf("retained until %v, %v; want %v", got, err, until)
	}
	if err := f.retain(t.ctx, l, "locked", until.Add(-o.Lock/2)); err != nil {
		t.Errorf("retain for a shorter time: %v, want nothing done", err)
	}
	if err := s.Delete(t.ctx, "locked"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("delete: %v, want ErrLocked", err)
	}
	if err := s.Put(t.ctx, "locked", []byte("y")); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over it: %v, want ErrExist", err)
	}
	wantObject(t, s, "locked", []byte("x"))
	wantKeys(t, s, "", "locked")
	for {
		now, err := l.LockStatus(t.ctx)
		if err != nil {
			t.Fatalf("lock status: %v", err)
		}
		left := until.Add(2 * time.Second).Sub(now.Now)
		if left <= 0 {
			break
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-t.ctx.Done():
			timer.Stop()
			t.Fatal(t.ctx.Err())
		}
	}
	if err := s.Delete(t.ctx, "locked"); err != nil {
		t.Errorf("delete after the lock has ended: %v", err)
	}
	wantAbsent(t, s, "locked")
}

// measure takes the time of transfers as a repository makes them.
func (o Options) measure(t *run, s store.Store) {
	const object = 64 << 20
	count := max(o.Measure/object, 1)
	size := min(o.Measure, object)
	began := time.Now()
	for i := range count {
		w, err := send(t, s, fmt.Sprintf("speed/%d", i), size, byte(i))
		if err != nil {
			t.Fatalf("write: %v", err)
		}
		if err := w.Commit(); err != nil {
			t.Fatalf("commit: %v", err)
		}
	}
	t.Notef("up: %.0f MB/s (%d objects of %d MiB, one after another)", rate(count*size, began), count, size>>20)
	p := aligned(16 << 20)
	began = time.Now()
	for i := range count {
		for off := int64(0); off < size; off += int64(len(p)) {
			want := min(int64(len(p)), size-off)
			if n, err := s.ReadRange(t.ctx, fmt.Sprintf("speed/%d", i), off, p[:want]); int64(n) != want || err != nil && !errors.Is(err, io.EOF) {
				t.Fatalf("read: %d bytes, %v", n, err)
			}
		}
	}
	t.Notef("down: %.0f MB/s (reads of %d MiB, one after another)", rate(count*size, began), len(p)>>20)
	var puts, gets []time.Duration
	small := pattern(4096, 1)
	for i := range 20 {
		key := fmt.Sprintf("latency/%02d", i)
		began = time.Now()
		put(t, s, key, small)
		puts = append(puts, time.Since(began))
		began = time.Now()
		if _, err := s.ReadRange(t.ctx, key, 0, p[:4096]); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("read: %v", err)
		}
		gets = append(gets, time.Since(began))
	}
	for name, d := range map[string][]time.Duration{"create": puts, "read": gets} {
		slices.Sort(d)
		t.Notef("latency of 4 KiB, %s: median %v, longest of %d %v", name, d[len(d)/2].Round(10*time.Microsecond), len(d), d[len(d)-1].Round(10*time.Microsecond))
	}
	slices.Sort(t.notes[2:])
}

func rate(bytes int64, began time.Time) float64 {
	return float64(bytes) / 1e6 / max(time.Since(began).Seconds(), 1e-9)
}
