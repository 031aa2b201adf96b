package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is what a request counts as; providers bill by it.
type Kind int

// The kinds of requests.
const (
	Put    Kind = iota // creates an object whole, or begins or completes one of parts
	Part               // carries a part of an object
	Get                // reads bytes of an object
	Head               // asks for an object's or a container's properties
	List               // lists objects, versions, uploads
	Delete             // deletes an object or a version, or drops an upload
	Other              // anything else
	kinds
)

func (k Kind) String() string {
	return [...]string{"PUT", "PART", "GET", "HEAD", "LIST", "DELETE", "OTHER"}[k]
}

// Counter counts requests. The zero value is ready, and safe for concurrent use.
type Counter struct {
	requests [kinds]atomic.Int64
	up, down atomic.Int64
}

// Counts are a counter's figures at one moment.
type Counts struct {
	Put, Part, Get, Head, List, Delete, Other int64 // requests, repeated ones included
	Up, Down                                  int64 // bytes of bodies
}

// Request counts one request.
func (c *Counter) Request(k Kind) { c.requests[k].Add(1) }

// Bytes counts bytes of bodies.
func (c *Counter) Bytes(up, down int64) { c.up.Add(up); c.down.Add(down) }

// Snapshot is what was counted so far.
func (c *Counter) Snapshot() Counts {
	n := func(k Kind) int64 { return c.requests[k].Load() }
	return Counts{
		Put: n(Put), Part: n(Part), Get: n(Get), Head: n(Head), List: n(List), Delete: n(Delete), Other: n(Other),
		Up: c.up.Load(), Down: c.down.Load(),
	}
}

// Sub is what was counted since an earlier snapshot.
func (c Counts) Sub(earlier Counts) Counts {
	return Counts{
		Put: c.Put - earlier.Put, Part: c.Part - earlier.Part, Get: c.Get - earlier.Get, Head: c.Head - earlier.Head,
		List: c.List - earlier.List, Delete: c.Delete - earlier.Delete, Other: c.Other - earlier.Other,
		Up: c.Up - earlier.Up, Down: c.Down - earlier.Down,
	}
}

// Requests is the sum over all kinds.
func (c Counts) Requests() int64 {
	return c.Put + c.Part + c.Get + c.Head + c.List + c.Delete + c.Other
}

// TransportOptions configure NewTransport.
type TransportOptions struct {
	Classify func(*http.Request) Kind // nil: by method alone
	Counter  *Counter                 // nil: not counted
	Clock    *Clock                   // learns the server's clock; nil: nothing does
	// Stall ends a request that moved no byte of a body, and got no answer, for
	// so long; the error matches ErrStalled. 0 = DefaultStall.
	Stall time.Duration
	// CAFile names PEM certificates that are trusted besides the system's.
	CAFile string
	// Base carries the requests, nil = a new http.Transport made for CAFile.
	Base http.RoundTripper
}

// DefaultStall is how long a request may make no progress.
const DefaultStall = 60 * time.Second

// NewTransport is the RoundTripper to give to a provider's SDK. It counts
// what really goes over the wire, the SDK's own retries included.
func NewTransport(o TransportOptions) (http.RoundTripper, error) {
	if o.Base == nil {
		t := &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ExpectContinueTimeout: time.Second,
			IdleConnTimeout:       90 * time.Second,
			MaxIdleConns:          64,
			MaxIdleConnsPerHost:   32,
			ForceAttemptHTTP2:     true,
			DisableCompression:    true, // lengths and ranges are of what is stored
		}
		if o.CAFile != "" {
			pool, err := caPool(o.CAFile)
			if err != nil {
				return nil, err
			}
			t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
		}
		o.Base = t
	}
	if o.Classify == nil {
		o.Classify = byMethod
	}
	if o.Counter == nil {
		o.Counter = &Counter{}
	}
	if o.Stall == 0 {
		o.Stall = DefaultStall
	}
	return &transport{o}, nil
}

// maxCAFile bounds a file of certificates.
const maxCAFile = 4 << 20

func caPool(name string) (*x509.CertPool, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read CA certificates: %w", err)
	}
	defer f.Close()
	pem, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return nil, fmt.Errorf("read CA certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, WithHint(fmt.Errorf("read CA certificates: %s holds no PEM certificate", name), "give the CA's certificate in PEM form (-----BEGIN CERTIFICATE-----)")
	}
	return pool, nil
}

func byMethod(r *http.Request) Kind {
	switch r.Method {
	case http.MethodPut, http.MethodPost:
		return Put
	case http.MethodGet:
		return Get
	case http.MethodHead:
		return Head
	case http.MethodDelete:
		return Delete
	}
	return Other
}

type transport struct{ o TransportOptions }

// CloseIdleConnections lets http.Client close them.
func (t *transport) CloseIdleConnections() {
	if c, ok := t.o.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	w := &watch{stall: t.o.Stall, cancel: cancel}
	w.timer = time.AfterFunc(t.o.Stall, func() { cancel(ErrStalled) })
	t.o.Counter.Request(t.o.Classify(r))
	r = r.Clone(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &body{under: r.Body, watch: w, count: func(n int) { t.o.Counter.Bytes(int64(n), 0) }}
	}
	resp, err := t.o.Base.RoundTrip(r)
	if err != nil {
		stalled := errors.Is(context.Cause(ctx), ErrStalled)
		w.end()
		if stalled {
			err = fmt.Errorf("%w: %w", ErrStalled, err)
		}
		return nil, err
	}
	w.touch()
	if o := t.o.Clock; o != nil {
		o.learn(resp.Header.Get("Date"))
	}
	resp.Body = &body{under: resp.Body, watch: w, last: true, cause: func() error { return context.Cause(ctx) }, count: func(n int) { t.o.Counter.Bytes(0, int64(n)) }}
	return resp, nil
}

// watch ends a request that stands still.
type watch struct {
	stall  time.Duration
	cancel context.CancelCauseFunc
	mu     sync.Mutex
	timer  *time.Timer
	ended  bool
}

func (w *watch) touch() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.timer.Reset(w.stall)
	}
}

func (w *watch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.timer.Stop()
	w.cancel(context.Canceled)
}

// body counts what passes.
type body struct {
	under io.ReadCloser
	watch *watch
	count func(n int)
	cause func() error
	last  bool // the request ends with it
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.under.Read(p)
	if n > 0 {
		b.count(n)
		b.watch.touch()
	}
	if err != nil && b.cause != nil && !errors.Is(err, io.EOF) && errors.Is(b.cause(), ErrStalled) {
		err = fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return n, err
}

func (b *body) Close() error {
	err := b.under.Close()
	if b.last {
		b.watch.end()
	}
	return err
}

// Clock is a server's clock, as its answers show it, to the second. The zero
// value follows the local clock.
type Clock struct{ ahead atomic.Int64 }

func (c *Clock) learn(date string) {
	if t, err := http.ParseTime(date); err == nil {
		c.ahead.Store(int64(time.Until(t)))
	}
}

// Now is the time by the server's clock.
func (c *Clock) Now() time.Time {
	ahead := time.Duration(c.ahead.Load())
	if ahead.Abs() < 2*time.Second {
		ahead = 0 // a date has no fraction
	}
	return time.Now().Add(ahead)
}
