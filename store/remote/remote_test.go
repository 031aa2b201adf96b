package remote_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/store/remote"
)

var quick = remote.Policy{Attempts: 4, First: time.Microsecond, Max: time.Millisecond}

func TestRetry(t *testing.T) {
	final := errors.New("final")
	for _, k := range []struct {
		name     string
		errs     []error // of the attempts; nil from then on
		attempts int
		want     error
	}{
		{"at once", nil, 1, nil},
		{"after two", []error{syscall.ECONNRESET, io.ErrUnexpectedEOF}, 3, nil},
		{"final", []error{syscall.ECONNREFUSED, final}, 2, final},
		{"for ever", []error{syscall.EPIPE, syscall.EPIPE, syscall.EPIPE, syscall.ECONNRESET, nil}, 4, syscall.ECONNRESET},
	} {
		t.Run(k.name, func(t *testing.T) {
			n := 0
			err := quick.Do(t.Context(), func(_ context.Context, attempt int) error {
				if attempt != n {
					t.Errorf("attempt %d, want %d", attempt, n)
				}
				n++
				if attempt < len(k.errs) {
					return k.errs[attempt]
				}
				return nil
			}, nil)
			if !errors.Is(err, k.want) || n != k.attempts {
				t.Errorf("%v after %d attempts, want %v after %d", err, n, k.want, k.attempts)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	slow := remote.Policy{Attempts: 3, First: time.Hour, Max: time.Hour}
	err := slow.Do(ctx, func(context.Context, int) error { cancel(); return syscall.ECONNRESET }, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	limited := remote.Policy{Attempts: 2, First: 1, Max: 1, Timeout: time.Millisecond}
	err = limited.Do(t.Context(), func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, nil)
	if !errors.Is(err, remote.ErrStalled) {
		t.Errorf("timeout: %v, want ErrStalled", err)
	}
}

func TestRetryAfter(t *testing.T) {
	for s, want := range map[string]time.Duration{"": 0, "3": 3 * time.Second, "-1": 0, "soon": 0, "99999": 5 * time.Minute, "99999999999999999999": 0} {
		if got := remote.RetryAfter(http.Header{"Retry-After": {s}}); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

func client(t *testing.T, o remote.TransportOptions) *http.Client {
	t.Helper()
	rt, err := remote.NewTransport(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: rt}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

func TestTransportCounts(t *testing.T) {
	ahead := 90 * time.Minute
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(make([]byte, 1000))
	}))
	defer server.Close()
	var counter remote.Counter
	var clock remote.Clock
	c := client(t, remote.TransportOptions{Counter: &counter, Clock: &clock})
	before := counter.Snapshot()
	for _, method := range []string{"PUT", "POST", "GET", "GET", "HEAD", "DELETE", "OPTIONS"} {
		var body io.Reader
		if method == "PUT" {
			body = bytes.NewReader(make([]byte, 5000))
		}
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL, body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	got := counter.Snapshot().Sub(before)
	want := remote.Counts{Put: 2, Get: 2, Head: 1, Delete: 1, Other: 1, Up: 5000, Down: 6000}
	if got != want || got.Requests() != 7 {
		t.Errorf("%+v, want %+v", got, want)
	}
	if off := time.Until(clock.Now()); off < ahead-10*time.Second || off > ahead+10*time.Second {
		t.Errorf("server's clock is ahead by %v, want %v", off, ahead)
	}
}

func TestStalledRequestsEnd(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			_, _ = w.Write([]byte("some"))
			_ = http.NewResponseController(w).Flush()
		}
		<-hang
	}))
	defer server.Close()
	defer close(hang)
	c := client(t, remote.TransportOptions{Stall: 20 * time.Millisecond})
	for _, path := range []string{"/answer", "/body"} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		if !errors.Is(err, remote.ErrStalled) || !remote.Temporary(err) {
			t.Errorf("%s: %v, want ErrStalled", path, err)
		}
	}
}

func TestOwnCA(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	defer server.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(o remote.TransportOptions) error {
		req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client(t, o).Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(remote.TransportOptions{CAFile: file}); err != nil {
		t.Errorf("with the CA: %v", err)
	}
	if err := get(remote.TransportOptions{}); err == nil {
		t.Error("without the CA the server is trusted")
	}
	if err := os.WriteFile(file, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{file, filepath.Join(t.TempDir(), "absent")} {
		if _, err := remote.NewTransport(remote.TransportOptions{CAFile: name}); err == nil {
			t.Errorf("%s is taken for a CA", name)
		}
	}
}

func TestLocations(t *testing.T) {
	allowed := []string{"endpoint", "part-size", "path-style"}
	for raw, want := range map[string]string{
		"s3://bucket":      "s3://bucket",
		"S3://bucket/":     "s3://bucket",
		"s3://bucket/a/b/": "s3://bucket/a/b",
		"s3://bucket/a?path-style=1&endpoint=https:x": "s3://bucket/a?endpoint=https%3Ax&path-style=1",
	} {
		l, err := remote.ParseLocation(raw, "s3", allowed, "elsewhere")
		if err != nil || l.String() != want {
			t.Errorf("%s: %q, %v; want %q", raw, l.String(), err, want)
		}
	}
	for _, raw := range []string{
		"", "bucket", "gs://bucket", "s3:bucket", "s3://", "s3:///prefix", "s3://hush:secret@bucket/", "s3://hush@bucket", "s3://host:9000/bucket",
		"s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/a\x01", "s3://bucket#f", "s3://bucket?secret-key=secret", "s3://bucket?X-Amz-Signature=secret",
		"s3://bucket?unknown=1", "s3://bucket?endpoint=a&endpoint=b", "s3://bucket?%zz", "s3://bucket/%zz", "s3://bucket/" + strings.Repeat("a", 300),
	} {
		_, err := remote.ParseLocation(raw, "s3", allowed, "elsewhere")
		var hint interface{ Hint() string }
		if !errors.Is(err, remote.ErrLocation) || !errors.As(err, &hint) || hint.Hint() == "" || strings.Contains(err.Error(), "secret@") || strings.Contains(err.Error(), "=secret") {
			t.Errorf("%q: %v, want ErrLocation with a hint", raw, err)
		}
	}
	l, err := remote.ParseLocation("s3://b/p/q?part-size=16M&path-style=1", "s3", allowed, "")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := l.Size("part-size", 1, 1, 1<<30); n != 16<<20 || err != nil {
		t.Errorf("size: %d, %v", n, err)
	}
	if _, err := l.Size("part-size", 1, 1, 1<<20); !errors.Is(err, remote.ErrLocation) {
		t.Errorf("size above the bound: %v", err)
	}
	if on, err := l.Switch("path-style", false); !on || err != nil {
		t.Errorf("switch: %v, %v", on, err)
	}
	if key, ok := l.Key(l.Name("a/b")); key != "a/b" || !ok {
		t.Errorf("key: %q, %v", key, ok)
	}
	if _, ok := l.Key("p/qq/a"); ok {
		t.Error("a sibling's object is ours")
	}
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"s3://bucket/a/b?part-size=16M&path-style=1", "s3://u:p@b", "s3://b/%2e%2e/x", "s3://b?part-size=9999999999999999999G", "s3://[::1]/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		l, err := remote.ParseLocation(raw, "s3", []string{"part-size", "path-style"}, "elsewhere")
		if err != nil {
			if !errors.Is(err, remote.ErrLocation) {
				t.Errorf("%q: %v", raw, err)
			}
			return
		}
		again, err := remote.ParseLocation(l.String(), "s3", []string{"part-size", "path-style"}, "elsewhere")
		if err != nil || again.String() != l.String() {
			t.Errorf("%q → %q → %q, %v", raw, l, again, err)
		}
		if n, err := l.Size("part-size", 5, 1, 1<<30); err == nil && (n < 1 || n > 1<<30) {
			t.Errorf("size %d", n)
		}
		_, _ = l.Switch("path-style", false)
	})
}

func TestReadParallel(t *testing.T) {
	object := make([]byte, 1003)
	for i := range object {
		object[i] = byte(i * 7)
	}
	var calls atomic.Int64
	read := func(_ context.Context, off int64, p []byte) (int, error) {
		calls.Add(1)
		n := copy(p, object[min(off, int64(len(object))):])
		if n < len(p) || off+int64(n) == int64(len(object)) {
			return n, io.EOF
		}
		return n, nil
	}
	for _, off := range []int64{0, 1, 500, 1002, 1003, 2000} {
		for _, length := range []int{1, 100, 149, 150, 151, 503, 1002, 1003, 1004, 3000} {
			for _, parallel := range []int{1, 3, 50} {
				p := make([]byte, length)
				n, err := remote.ReadParallel(t.Context(), off, p, 100, parallel, read)
				want := object[min(off, 1003):min(off+int64(length), 1003)]
				if !bytes.Equal(p[:n], want) || n < length && !errors.Is(err, io.EOF) || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("%d at %d: %d bytes, %v; want %d", length, off, n, err, len(want))
				}
			}
		}
	}
	broken := errors.New("broken")
	if n, err := remote.ReadParallel(t.Context(), 0, make([]byte, 1000), 100, 3, func(_ context.Context, off int64, p []byte) (int, error) {
		if off == 500 {
			return 0, broken
		}
		return len(p), nil
	}); !errors.Is(err, broken) || n != 0 {
		t.Errorf("%d, %v; want the piece's error", n, err)
	}
}

// upload records what a writer sends, and fails where it is told to.
type upload struct {
	mu                        sync.Mutex
	fail                      string
	whole                     []byte
	parts                     map[int][]byte
	begun, completed, dropped int
	inFlight, mostInFlight    int
	release                   chan struct{} // parts wait for it, nil: they do not
	sizeCompleted             int64
}

var errUpload = errors.New("upload failed")

func (u *upload) Whole(_ context.Context, d remote.Data) error {
	if u.fail == "whole" {
		return errUpload
	}
	var err error
	u.whole, err = io.ReadAll(d.Reader())
	return err
}

func (u *upload) Begin(context.Context) error {
	if u.fail == "begin" {
		return errUpload
	}
	u.begun++
	return nil
}

func (u *upload) Part(ctx context.Context, n int, data []byte) error {
	u.mu.Lock()
	u.inFlight++
	u.mostInFlight = max(u.mostInFlight, u.inFlight)
	u.mu.Unlock()
	if u.release != nil {
		select {
		case <-u.release:
		case <-ctx.Done():
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inFlight--
	if u.fail == fmt.Sprint("part ", n) {
		return errUpload
	}
	u.parts[n] = bytes.Clone(data)
	return nil
}

func (u *upload) Complete(_ context.Context, n int, size int64) error {
	if u.fail == "complete" {
		return errUpload
	}
	u.completed, u.sizeCompleted = n, size
	return nil
}

func (u *upload) Drop(ctx context.Context) error {
	u.dropped++
	return ctx.Err()
}

func TestWriter(t *testing.T) {
	const part, whole = 64 << 10, 256 << 10
	var buffers remote.Buffers
	for _, size := range []int{0, 1, 1000, part - 1, part, part + 1, whole - 1, whole, whole + 1, whole + part, whole + part + 1, 10*part + 7} {
		for _, piece := range []int{1000, 4096, part, 3*part + 5, 1 << 20} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(i>>8) ^ byte(i)
			}
			u := &upload{parts: map[int][]byte{}}
			w := remote.NewWriter(t.Context(), "key", u, remote.UploadOptions{Whole: whole, Part: part, Parallel: 2, Buffers: &buffers})
			for p := range slices.Chunk(data, piece) {
				p = bytes.Clone(p)
				if n, err := w.Write(p); n != len(p) || err != nil {
					t.Fatalf("write: %d, %v", n, err)
				}
				clear(p) // the writer keeps no reference
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			got := u.whole
			if size > whole {
				for i := 1; i <= len(u.parts); i++ {
					if len(u.parts[i]) != part && i != len(u.parts) {
						t.Errorf("size %d: part %d of %d has %d bytes", size, i, len(u.parts), len(u.parts[i]))
					}
					got = append(got, u.parts[i]...)
				}
				if u.begun != 1 || u.completed != len(u.parts) || u.sizeCompleted != int64(size) || len(u.parts) != (size+part-1)/part {
					t.Errorf("size %d: begun %d, %d parts, completed %d of %d", size, u.begun, len(u.parts), u.completed, u.sizeCompleted)
				}
			} else if u.begun != 0 {
				t.Errorf("size %d is sent in parts", size)
			}
			if !bytes.Equal(got, data) || u.dropped != 0 || u.mostInFlight > 2 {
				t.Errorf("size %d by %d: %d bytes arrived, dropped %d, %d parts at once", size, piece, len(got), u.dropped, u.mostInFlight)
			}
			if w.Commit() == nil || w.Abort() != nil || u.dropped != 0 {
				t.Error("something happens after commit")
			}
		}
	}
}

func TestWriterFails(t *testing.T) {
	for _, fail := range []string{"whole", "begin", "part 1", "part 3", "part 5", "complete"} {
		t.Run(fail, func(t *testing.T) {
			u := &upload{parts: map[int][]byte{}, fail: fail}
			w := remote.NewWriter(t.Context(), "key", u, remote.UploadOptions{Whole: 2000, Part: 1000, Parallel: 2, Buffers: &remote.Buffers{}})
			size := 4500
			if fail == "whole" {
				size = 1500
			}
			_, err := w.Write(make([]byte, size))
			if err == nil {
				err = w.Commit()
			} else if aerr := w.Abort(); aerr != nil {
				t.Errorf("abort: %v", aerr)
			}
			if !errors.Is(err, errUpload) {
				t.Errorf("%v, want the upload's error", err)
			}
			if want := min(u.begun, 1); u.dropped != want {
				t.Errorf("dropped %d times, want %d", u.dropped, want)
			}
		})
	}
}

// An abort waits for the parts under way, and drops also when the context is over.
func TestWriterAborts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	u := &upload{parts: map[int][]byte{}, release: make(chan struct{})}
	w := remote.NewWriter(ctx, "key", u, remote.UploadOptions{Whole: 1000, Part: 1000, Parallel: 4, Buffers: &remote.Buffers{}})
	if _, err := w.Write(make([]byte, 3500)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := w.Abort(); err != nil || u.dropped != 1 || u.inFlight != 0 {
		t.Errorf("abort: %v, dropped %d, %d parts under way", err, u.dropped, u.inFlight)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("write after abort succeeded")
	}
}
