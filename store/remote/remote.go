// Package remote is the ground that adapters of remote stores stand on: retries
// with back-off and jitter, requests that stall, counting of requests, URLs,
// parallel ranged reads and uploads in parts. It knows no provider and no
// store.Store.
//
// Its invariant: nothing here waits for ever; a stalled request ends after
// TransportOptions.Stall, a failing one after Policy.Attempts, and everything
// with its context.
package remote

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// ErrStalled says that a request made no progress for the time allowed.
var ErrStalled = errors.New("server made no progress")

// Policy says how often and how patiently an operation is tried. The zero
// value is DefaultPolicy.
type Policy struct {
	Attempts int           // in all
	First    time.Duration // the most waited before the second attempt; doubles from then on
	Max      time.Duration // the most waited between two attempts
	Timeout  time.Duration // of one attempt, 0 = none: for requests without a body of note
}

// DefaultPolicy gives up after about a minute of failures.
var DefaultPolicy = Policy{Attempts: 8, First: 250 * time.Millisecond, Max: 20 * time.Second}

// Do calls try until it succeeds, fails for good, or attempts or ctx are used
// up; it returns try's last error, or the context's. again says whether an
// error may pass, and how long the server asked to wait (0 = not said); nil
// stands for Temporary. attempt counts from 0: whoever creates an object asks
// at attempt > 0 whether the lost answer was a success.
func (p Policy) Do(ctx context.Context, try func(ctx context.Context, attempt int) error, again func(error) (bool, time.Duration)) error {
	if p.Attempts == 0 {
		timeout := p.Timeout
		p = DefaultPolicy
		p.Timeout = timeout
	}
	if again == nil {
		again = func(err error) (bool, time.Duration) { return Temporary(err), 0 }
	}
	for attempt := 0; ; attempt++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := p.once(ctx, try, attempt)
		if err == nil {
			return nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return fmt.Errorf("%w (last failure: %w)", cerr, err)
		}
		passes, wait := again(err)
		if !passes || attempt+1 >= p.Attempts {
			if attempt > 0 && passes {
				return fmt.Errorf("%w (%d attempts)", err, attempt+1)
			}
			return err
		}
		if err := sleep(ctx, min(max(wait, p.backoff(attempt)), max(p.Max, wait))); err != nil {
			return err
		}
	}
}

func (p Policy) once(ctx context.Context, try func(context.Context, int) error, attempt int) error {
	if p.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, p.Timeout, ErrStalled)
		defer cancel()
	}
	err := try(ctx, attempt)
	if err != nil && errors.Is(context.Cause(ctx), ErrStalled) {
		return fmt.Errorf("%w: %w", ErrStalled, err)
	}
	return err
}

// backoff is half of what the exponential gives and a random part of the other
// half, so that writers that failed together do not come back together.
func (p Policy) backoff(attempt int) time.Duration {
	d := min(p.First<<min(attempt, 20), p.Max)
	if d <= 0 {
		return 0
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return d/2 + time.Duration(binary.LittleEndian.Uint64(b[:])%uint64(d/2+1))
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Temporary tells whether an error of the network, not of the service, may
// pass: connections refused, reset and cut, time-outs, stalled requests.
func Temporary(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) && !errors.Is(err, ErrStalled) {
		return false
	}
	var netErr net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, ErrStalled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true
	case errors.As(err, &netErr):
		return netErr.Timeout()
	}
	return errors.Is(err, net.ErrClosed)
}

// Unreachable tells whether nothing answers where a service was to be.
func Unreachable(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH)
}

// TemporaryStatus tells whether an HTTP status says "try again".
func TemporaryStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// maxRetryAfter bounds what a server may make us wait.
const maxRetryAfter = 5 * time.Minute

// RetryAfter is the wait in seconds that a response's header asks for, 0 if none.
func RetryAfter(h http.Header) time.Duration {
	s, err := strconv.ParseInt(h.Get("Retry-After"), 10, 32)
	if err != nil || s <= 0 {
		return 0
	}
	return min(time.Duration(s)*time.Second, maxRetryAfter)
}

// WithHint adds to an error what the operator can do about it: Hint() string
// is what the command line shows.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }
func (h *hinted) Hint() string  { return h.hint }
