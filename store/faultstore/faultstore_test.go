package faultstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

func TestConformanceWithoutFaults(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return faultstore.New(memstore.New()) })
}

func TestFailures(t *testing.T) {
	own := errors.New("own")
	for _, c := range []struct {
		fault   *faultstore.Fault
		want    []error // of three puts
		present string  // which of them the store beneath has
	}{
		{faultstore.Fail(faultstore.Put, 2, nil), []error{nil, faultstore.ErrInjected, nil}, "0 2"},
		{faultstore.Fail(faultstore.Put, 2, own), []error{nil, own, nil}, "0 2"},
		{faultstore.FailAfter(faultstore.Put, 2, nil), []error{nil, faultstore.ErrInjected, nil}, "0 1 2"},
		{faultstore.Fail(faultstore.Any, 0, own), []error{own, own, own}, ""},
		{faultstore.Fail(faultstore.Put, 1, own).On(func(k string) bool { return k == "k/1" }), []error{nil, own, nil}, "0 2"},
		{faultstore.KillBefore(faultstore.Put, 2, nil), []error{nil, faultstore.ErrKilled, faultstore.ErrKilled}, "0"},
		{faultstore.KillAfter(faultstore.Put, 2, nil), []error{nil, faultstore.ErrKilled, faultstore.ErrKilled}, "0 1"},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			under := memstore.New()
			s := faultstore.New(under, c.fault)
			for i, want := range c.want {
				if err := s.Put(t.Context(), fmt.Sprintf("k/%d", i), nil); !errors.Is(err, want) {
					t.Errorf("put %d: %v, want %v", i, err, want)
				}
			}
			var keys []string
			if err := under.List(t.Context(), "", func(i store.Info) error {
				keys = append(keys, strings.TrimPrefix(i.Key, "k/"))
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(keys, " "); got != c.present {
				t.Errorf("present: %q, want %q", got, c.present)
			}
			s.AssertExercised(t)
		})
	}
}

func TestFaultsStrikeEveryOperation(t *testing.T) {
	for _, op := range []faultstore.Op{
		faultstore.Put, faultstore.Create, faultstore.Write, faultstore.Commit, faultstore.Abort,
		faultstore.Read, faultstore.Stat, faultstore.List, faultstore.Delete,
	} {
		t.Run(string(op), func(t *testing.T) {
			s := faultstore.New(memstore.New(), faultstore.Fail(op, 1, nil))
			struck := 0
			count := func(err error) {
				if errors.Is(err, faultstore.ErrInjected) {
					struck++
				}
			}
			count(s.Put(t.Context(), "a", []byte("x")))
			for i := range 2 {
				w, err := s.Create(t.Context(), fmt.Sprint(i))
				count(err)
				if err != nil {
					continue
				}
				_, err = w.Write([]byte("x"))
				count(err)
				if i == 0 {
					count(w.Commit())
				} else {
					count(w.Abort())
				}
			}
			_, err := s.ReadRange(t.Context(), "a", 0, make([]byte, 1))
			count(err)
			_, err = s.Stat(t.Context(), "a")
			count(err)
			count(s.List(t.Context(), "", func(store.Info) error { return nil }))
			count(s.Delete(t.Context(), "a"))
			if struck != 1 {
				t.Errorf("struck %d times", struck)
			}
			s.AssertExercised(t)
		})
	}
}

func TestDamagedReads(t *testing.T) {
	under := memstore.New()
	if err := under.Put(t.Context(), "k", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	s := faultstore.New(under, faultstore.FlipBit(1, 5*8), faultstore.Truncate(2, 6))
	for _, c := range []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 4, "0123", nil},        // beside the bit
		{4, 4, "4467", nil},        // '5' with its lowest bit flipped
		{4, 4, "45", io.EOF},       // cut
		{4, 4, "4567", nil},        // both are spent
		{8, 8, "89", io.EOF},       // the object's own end
		{20, 8, "", io.EOF},        // beyond it
		{0, 10, "0123456789", nil}, // all of it
	} {
		p := make([]byte, c.n)
		n, err := s.ReadRange(t.Context(), "k", c.off, p)
		if string(p[:n]) != c.want || !errors.Is(err, c.err) {
			t.Errorf("read %d at %d: %q, %v; want %q, %v", c.n, c.off, p[:n], err, c.want, c.err)
		}
	}
	s.AssertExercised(t)
}

func TestCapacity(t *testing.T) {
	s := faultstore.New(memstore.New())
	s.SetCapacity(10)
	if err := s.Put(t.Context(), "a", make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if got := s.Unexercised(); !slices.Equal(got, []string{"full store"}) {
		t.Errorf("unexercised %q", got)
	}
	w, err := s.Create(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, store.ErrFull) {
		t.Errorf("write: %v", err)
	}
	if err := s.Put(t.Context(), "c", []byte("x")); !errors.Is(err, store.ErrFull) {
		t.Errorf("put: %v", err)
	}
	s.AssertExercised(t)
	s.SetCapacity(-1)
	if err := s.Put(t.Context(), "c", []byte("x")); err != nil {
		t.Errorf("put: %v", err)
	}
}

func TestCrashTakesWhatWasNotSynced(t *testing.T) {
	under := memstore.New()
	s := faultstore.New(under,
		faultstore.LoseOnCrash(faultstore.Put, 2),
		faultstore.LoseOnCrash(faultstore.Commit, 1))
	for _, k := range []string{"a", "b", "c"} {
		if err := s.Put(t.Context(), k, []byte(k)); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := s.Create(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	if err := committed.Commit(); err != nil {
		t.Fatal(err)
	}
	pending, err := s.Create(t.Context(), "e")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := store.GetAll(t.Context(), s, "b", 10); err != nil || !bytes.Equal(got, []byte("b")) {
		t.Errorf("before the crash: %q, %v", got, err)
	}
	lost, err := s.Crash()
	if err != nil || !slices.Equal(lost, []string{"b", "d"}) {
		t.Errorf("lost %q, %v", lost, err)
	}
	for op, err := range map[string]error{
		"commit": pending.Commit(), "abort": pending.Abort(), "put": s.Put(t.Context(), "f", nil),
	} {
		if !errors.Is(err, faultstore.ErrKilled) {
			t.Errorf("%s after the crash: %v", op, err)
		}
	}
	var keys []string
	if err := under.List(t.Context(), "", func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(keys, []string{"a", "c"}) {
		t.Errorf("left: %q", keys)
	}
	s.AssertExercised(t)
}

func TestKillFuncAndTrace(t *testing.T) {
	called := 0
	s := faultstore.New(memstore.New(), faultstore.KillBefore(faultstore.Commit, 1, func() { called++ }))
	w, err := s.Create(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("abc")); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); !errors.Is(err, faultstore.ErrKilled) || called != 1 || !s.Killed() {
		t.Errorf("commit: %v, called %d times", err, called)
	}
	if got := fmt.Sprint(s.Trace()); got != "[create k 0 write k 3 commit k 0]" {
		t.Errorf("trace %s", got)
	}
}

type spy struct{ errs []string }

func (*spy) Helper() {}
func (s *spy) Errorf(format string, args ...any) {
	s.errs = append(s.errs, fmt.Sprintf(format, args...))
}

func TestAssertExercisedReports(t *testing.T) {
	var seen spy
	s := faultstore.New(memstore.New(), faultstore.Fail(faultstore.Put, 2, nil))
	if err := s.Put(t.Context(), "k", nil); err != nil {
		t.Fatal(err)
	}
	s.AssertExercised(&seen)
	if len(seen.errs) != 1 {
		t.Errorf("reported %q", seen.errs)
	}
}
