package s3_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/store/s3"
)

// fault strikes the nth request that match accepts (0 = every one).
type fault struct {
	name   string
	match  func(*http.Request) bool
	nth    int
	effect func(r *http.Request, forward http.RoundTripper) (*http.Response, error)

	seen, hits int
}

// wire is a network with faults between the store and a real server.
type wire struct {
	mu     sync.Mutex
	faults []*fault
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	var struck *fault
	for _, f := range w.faults {
		if f.match(r) {
			f.seen++
			if struck == nil && (f.nth == 0 || f.nth == f.seen) {
				f.hits++
				struck = f
			}
		}
	}
	w.mu.Unlock()
	if struck != nil {
		return struck.effect(r, http.DefaultTransport)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func (w *wire) assertExercised(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.faults {
		if f.hits == 0 {
			t.Errorf("fault never struck: %s", f.name)
		}
	}
}

func is(method, query string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == method && (query == "" || r.URL.Query().Has(query)) && strings.Contains(r.URL.Path, "/faults/")
	}
}

// loseAnswer lets the server do it, and nobody hears of it.
func loseAnswer(r *http.Request, forward http.RoundTripper) (*http.Response, error) {
	resp, err := forward.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return nil, syscall.ECONNRESET
}

// answer is a refusal that the server never made.
func answer(status int, code string) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = r.Body.Close()
		}
		body := "<Error><Code>" + code + "</Code><Message>injected</Message></Error>"
		return &http.Response{
			StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
			Header: http.Header{"Content-Type": {"application/xml"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
		}, nil
	}
}

// cut ends the connection within the answer's body.
func cut(after int64) func(*http.Request, http.RoundTripper) (*http.Response, error) {
	return func(r *http.Request, forward http.RoundTripper) (*http.Response, error) {
		resp, err := forward.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(io.LimitReader(resp.Body, after), failing{}), resp.Body}
		return resp, nil
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// stall never answers.
func stall(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// damage changes a byte of the request's body on its way.
func damage(r *http.Request, forward http.RoundTripper) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	_ = r.Body.Close()
	body[len(body)/2] ^= 1
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	return forward.RoundTrip(r)
}

func content(size int) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>16)*5
	}
	return p
}

func writeAll(t *testing.T, s *s3.Store, key string, data []byte) error {
	t.Helper()
	w, err := s.Create(t.Context(), key)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// Every fault is met, and what was asked for happens all the same, once.
func TestFaultsThatPass(t *testing.T) {
	sv := newService(t)
	small, large := content(100_000), content(12<<20)
	read := func(t *testing.T, s *s3.Store, want []byte) {
		t.Helper()
		got := make([]byte, len(want))
		n, err := s.ReadRange(t.Context(), "object", 0, got)
		if n != len(want) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
			t.Errorf("read: %d bytes, %v; want %d, the same", n, err, len(want))
		}
	}
	put := func(t *testing.T, s *s3.Store) {
		t.Helper()
		if err := s.Put(t.Context(), "object", small); err != nil {
			t.Errorf("put: %v", err)
		}
		read(t, s, small)
		if err := s.Put(t.Context(), "object", small); !errors.Is(err, store.ErrExist) {
			t.Errorf("put again: %v, want ErrExist", err)
		}
	}
	parts := func(t *testing.T, s *s3.Store) {
		t.Helper()
		if err := writeAll(t, s, "object", large); err != nil {
			t.Errorf("write: %v", err)
		}
		read(t, s, large)
	}
	for _, k := range []struct {
		name   string
		faults []*fault
		do     func(*testing.T, *s3.Store)
	}{
		{"lost answer to a put", []*fault{{match: is("PUT", ""), nth: 1, effect: loseAnswer}}, put},
		{"slow down twice, then a put", []*fault{{match: is("PUT", ""), nth: 1, effect: answer(503, "SlowDown")}, {match: is("PUT", ""), nth: 2, effect: answer(503, "SlowDown")}}, put},
		{"conflict of conditional puts", []*fault{{match: is("PUT", ""), nth: 1, effect: answer(409, "ConditionalRequestConflict")}}, put},
		{"put that stalls", []*fault{{match: is("PUT", ""), nth: 1, effect: stall}}, put},
		{"put damaged on its way", []*fault{{match: is("PUT", ""), nth: 1, effect: damage}}, put},
		{"lost answer to the beginning of parts", []*fault{{match: is("POST", "uploads"), nth: 1, effect: loseAnswer}}, parts},
		{"lost answer to a part", []*fault{{match: is("PUT", "uploadId"), nth: 2, effect: loseAnswer}}, parts},
		{"part damaged on its way", []*fault{{match: is("PUT", "uploadId"), nth: 1, effect: damage}}, parts},
		{"lost answer to the completion", []*fault{{match: is("POST", "uploadId"), nth: 1, effect: loseAnswer}}, parts},
		{"completion answered with 500", []*fault{{match: is("POST", "uploadId"), nth: 1, effect: answer(500, "InternalError")}}, parts},
		{"body of a read cut off, three times", []*fault{
			{match: is("GET", ""), nth: 1, effect: cut(1000)}, {match: is("GET", ""), nth: 2, effect: cut(0)}, {match: is("GET", ""), nth: 3, effect: cut(50_000)},
		}, put},
		{"read that stalls", []*fault{{match: is("GET", ""), nth: 1, effect: stall}}, put},
		{"lost answer to a deletion", []*fault{{match: is("DELETE", ""), nth: 1, effect: loseAnswer}}, func(t *testing.T, s *s3.Store) {
			put(t, s)
			if err := s.Delete(t.Context(), "object"); err != nil {
				t.Errorf("delete: %v", err)
			}
			if err := s.Delete(t.Context(), "object"); !errors.Is(err, store.ErrNotExist) {
				t.Errorf("delete again: %v, want ErrNotExist", err)
			}
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			w := &wire{faults: k.faults}
			for _, f := range w.faults {
				f.name = k.name
			}
			prefix := "faults/" + strings.Map(func(r rune) rune {
				if r == ' ' || r == ',' {
					return '-'
				}
				return r
			}, k.name)
			s := sv.open(t, sv.url("plain", prefix, "part-size", "5M", "put-size", "5M"), s3.Options{
				Base: w, Stall: 2 * time.Second, Retry: remote.Policy{Attempts: 5, First: time.Millisecond, Max: 5 * time.Millisecond},
			})
			k.do(t, s)
			w.assertExercised(t)
			judge.Decided(t, "versitygw (S3 server)")
		})
	}
}

// A writer whose answer was lost is not told apart from one that lost the race
// by the status alone: another's object is never taken for one's own.
func TestLostAnswerOfTheLoser(t *testing.T) {
	sv := newService(t)
	location := sv.url("plain", "faults/loser", "part-size", "5M", "put-size", "5M")
	other := sv.open(t, location, s3.Options{})
	for _, k := range []struct {
		name string
		data []byte
		hit  func(*http.Request) bool
	}{
		{"put", content(1000), is("PUT", "")},
		{"parts", content(6 << 20), is("POST", "uploadId")},
	} {
		// The other's object arrives while the first request is on its way.
		w := &wire{faults: []*fault{{name: k.name, match: k.hit, nth: 1, effect: func(r *http.Request, _ http.RoundTripper) (*http.Response, error) {
			if err := other.Put(r.Context(), k.name, k.data); err != nil {
				t.Error(err)
			}
			return nil, syscall.ECONNRESET
		}}}}
		s := sv.open(t, location, s3.Options{Base: w, Retry: remote.Policy{Attempts: 3, First: time.Millisecond, Max: time.Millisecond}})
		if err := writeAll(t, s, k.name, k.data); !errors.Is(err, store.ErrExist) {
			t.Errorf("%s: %v, want ErrExist", k.name, err)
		}
		w.assertExercised(t)
	}
}

// Errors that stay say what they are, and give up.
func TestFaultsThatStay(t *testing.T) {
	sv := newService(t)
	for _, k := range []struct {
		name     string
		effect   func(*http.Request, http.RoundTripper) (*http.Response, error)
		want     error
		attempts int
	}{
		{"denied", answer(403, "AccessDenied"), store.ErrDenied, 1},
		{"wrong signature", answer(403, "SignatureDoesNotMatch"), store.ErrDenied, 1},
		{"clock", answer(403, "RequestTimeTooSkewed"), store.ErrDenied, 1},
		{"quota", answer(403, "QuotaExceeded"), store.ErrFull, 1},
		{"full", answer(507, "XMinioStorageFull"), store.ErrFull, 1},
		{"exists", answer(412, "PreconditionFailed"), store.ErrExist, 1},
		{"slow down for ever", answer(503, "SlowDown"), nil, 3},
		{"stalled for ever", stall, remote.ErrStalled, 3},
	} {
		t.Run(k.name, func(t *testing.T) {
			f := &fault{name: k.name, match: is("PUT", ""), effect: k.effect}
			s := sv.open(t, sv.url("plain", "faults/stay"), s3.Options{
				Base: &wire{faults: []*fault{f}}, Stall: 50 * time.Millisecond, Retry: remote.Policy{Attempts: 3, First: time.Millisecond, Max: time.Millisecond},
			})
			err := s.Put(t.Context(), "object", []byte("x"))
			if err == nil || k.want != nil && !errors.Is(err, k.want) {
				t.Errorf("%v, want %v", err, k.want)
			}
			if f.hits != k.attempts {
				t.Errorf("%d attempts, want %d", f.hits, k.attempts)
			}
			if hinted, ok := errors.AsType[interface {
				error
				Hint() string
			}](err); errors.Is(k.want, store.ErrDenied) && (!ok || hinted.Hint() == "") {
				t.Errorf("%v has no hint", err)
			}
		})
	}
}

// A server that ignores conditions is found out before a repository is made.
func TestServerWithoutConditions(t *testing.T) {
	sv := newService(t)
	forget := &fault{name: "condition forgotten", match: is("PUT", ""), effect: func(r *http.Request, forward http.RoundTripper) (*http.Response, error) {
		resp, err := forward.RoundTrip(r)
		if err == nil && resp.StatusCode == http.StatusPreconditionFailed {
			resp.StatusCode = http.StatusOK
		}
		return resp, err
	}}
	_, err := s3.Create(t.Context(), sv.url("plain", "faults/conditions"), s3.Options{Base: &wire{faults: []*fault{forget}}})
	if !errors.Is(err, s3.ErrNoConditions) || forget.hits != 2 {
		t.Errorf("%v after %d puts, want ErrNoConditions after 2", err, forget.hits)
	}
	s, err := s3.Create(t.Context(), sv.url("plain", "faults/conditions"), s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.List(t.Context(), "", func(i store.Info) error { return errors.New(i.Key) }); err != nil {
		t.Errorf("left behind: %v", err)
	}
}

func TestIncompleteUploadsAreSwept(t *testing.T) {
	sv := newService(t)
	location := sv.url("plain", "sweep", "part-size", "5M", "put-size", "5M")
	// A part that is still under way when its upload is dropped brings it back on
	// some servers: the process dies after two parts were answered.
	parts := make(chan struct{}, 3)
	answered := &fault{match: func(r *http.Request) bool { return r.URL.Query().Has("partNumber") }, effect: func(r *http.Request, forward http.RoundTripper) (*http.Response, error) {
		defer func() { parts <- struct{}{} }()
		return forward.RoundTrip(r)
	}}
	s := sv.open(t, location, s3.Options{Base: &wire{faults: []*fault{answered}}})
	w, err := s.Create(t.Context(), "killed")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content(11 << 20)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		<-parts
	}
	sibling := sv.open(t, sv.url("plain", "sweeping"), s3.Options{})
	for _, k := range []struct {
		s    *s3.Store
		age  time.Duration
		want int
	}{{s, time.Hour, 0}, {sibling, 0, 0}, {s, 0, 1}, {s, 0, 0}} {
		if n, err := k.s.CleanTemp(t.Context(), k.age); n != k.want || err != nil {
			t.Errorf("%s, age %v: %d dropped, %v; want %d", k.s.Location(), k.age, n, err, k.want)
		}
	}
	if err := w.Abort(); err != nil {
		t.Errorf("abort of what was swept: %v", err)
	}
	if err := s.List(t.Context(), "", func(i store.Info) error { return errors.New(i.Key) }); err != nil {
		t.Errorf("visible: %v", err)
	}
}

// One PUT for what fits; beginning, parts and completion for the rest.
func TestRequestsAreCounted(t *testing.T) {
	sv := newService(t)
	s := sv.open(t, sv.url("plain", "count", "part-size", "5M", "put-size", "10M"), s3.Options{})
	for _, k := range []struct {
		name string
		do   func() error
		want remote.Counts // bytes are compared where the object is one request
	}{
		{"whole", func() error { return writeAll(t, s, "whole", content(10<<20)) }, remote.Counts{Put: 1}},
		{"parts", func() error { return writeAll(t, s, "parts", content(10<<20+1)) }, remote.Counts{Put: 2, Part: 3, Head: 2}},
		{"stat", func() error { _, err := s.Stat(t.Context(), "whole"); return err }, remote.Counts{Head: 1}},
		{"read", func() error { _, err := s.ReadRange(t.Context(), "whole", 5, make([]byte, 100)); return err }, remote.Counts{Get: 1}},
		{"large read", func() error { _, err := s.ReadRange(t.Context(), "whole", 0, make([]byte, 10<<20-1)); return err }, remote.Counts{Get: 1}},
		{"larger read", func() error {
			_, err := s.ReadRange(t.Context(), "parts", 0, make([]byte, 40<<20))
			if !errors.Is(err, io.EOF) {
				return errors.New("no end")
			}
			return nil
		}, remote.Counts{Get: 5}},
		{"list", func() error { return s.List(t.Context(), "", func(store.Info) error { return nil }) }, remote.Counts{List: 1}},
		{"delete", func() error { return s.Delete(t.Context(), "whole") }, remote.Counts{Head: 1, Delete: 1}},
	} {
		before := s.Counts()
		if err := k.do(); err != nil {
			t.Fatalf("%s: %v", k.name, err)
		}
		got := s.Counts().Sub(before)
		if k.name == "whole" && got.Up < 10<<20 || k.name == "read" && got.Down != 100 {
			t.Errorf("%s: %d bytes up, %d down", k.name, got.Up, got.Down)
		}
		if got.Up, got.Down = 0, 0; got != k.want {
			t.Errorf("%s: %+v, want %+v", k.name, got, k.want)
		}
	}
}
