package prover

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// opening is what came of one attempt, and what goes into a proof.
type opening struct {
	custody.AttemptOutcome
	keyCheck string
	class    string
	vkproof  []byte
}

// attempt tries secrets on one volume whose header was read and found right.
type attempt struct {
	s      *server
	format diskcrypt.Format
	header *diskcrypt.Volume
	place  diskcrypt.Place
	all    bool
}

// run tries one secret.
func (a attempt) run(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret) opening {
	start := time.Now()
	got, err := a.open(ctx, kind, secret)
	got.Seconds = time.Since(start).Seconds()
	switch {
	case err == nil:
		got.Tried = custody.Opens
	case errors.Is(err, diskcrypt.ErrWrongSecret):
		got = opening{AttemptOutcome: custody.AttemptOutcome{Tried: custody.Refused, Seconds: got.Seconds, Reused: got.Reused}}
	default:
		got = opening{AttemptOutcome: custody.AttemptOutcome{Tried: custody.Stopped, Why: printable(err.Error()), Seconds: got.Seconds}}
	}
	return got
}

func (a attempt) open(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret) (opening, error) {
	var out opening
	e, err := a.derived(ctx, kind, secret, &out.Reused)
	if err != nil {
		return out, err
	}
	if e.bound {
		defer func() { _ = e.vol.Close() }()
	}
	// From here on reads go to this recovery point, whosever opened the entry.
	e.data.set(a.place.Data)
	e.head.set(a.place.Header)
	defer func() {
		e.data.set(nil)
		e.head.set(nil)
	}()
	buf := make([]byte, min(4096, e.vol.Size()))
	defer envelope.Wipe(buf)
	if n, err := e.vol.ReadAt(buf, 0); n < len(buf) || len(buf) == 0 {
		if err == nil || len(buf) == 0 {
			err = io.ErrUnexpectedEOF
		}
		return out, readError{err}
	}
	out.class = classify(e.vol, e.vol.Size())
	out.Protectors = slices.Clone(e.protectors)
	out.keyCheck = e.vol.KeyCheck()
	if a.s.deps.MACKey.Len() > 0 {
		out.vkproof = e.vol.KeyMAC(a.s.deps.MACKey.Expose())
	}
	return out, nil
}

type readError struct{ err error }

func (e readError) Error() string { return "read decrypted volume: " + e.err.Error() }
func (e readError) Unwrap() error { return e.err }

// derived returns the opened volume for this header and secret, from the cache
// where the same bytes of both were tried before.
func (a attempt) derived(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret, reused *bool) (*entry, error) {
	key := a.s.opened.key(a, kind, secret)
	if e, ok := a.s.opened.get(key); ok && (e.vol == nil || e.complete || !a.wantsAll(kind)) {
		*reused = true
		if e.vol == nil {
			return nil, diskcrypt.ErrWrongSecret
		}
		return e, nil
	}
	e := &entry{}
	e.data.set(a.place.Data)
	p := diskcrypt.Place{Data: &e.data, Size: a.place.Size, Declared: a.place.Declared}
	if a.place.Header != nil {
		e.head.set(a.place.Header)
		p.Header, p.HeadSize = &e.head, a.place.HeadSize
	}
	err := a.bounded(ctx, kind, secret, p, e)
	switch {
	case err == nil:
		if b, ok := e.vol.(interface{ BoundToData() bool }); ok && b.BoundToData() {
			e.bound = true // another recovery point with this header has other data
			return e, nil
		}
		a.s.opened.put(key, e)
		return e, nil
	case errors.Is(err, diskcrypt.ErrWrongSecret):
		a.s.opened.put(key, &entry{})
	}
	return nil, err
}

// wantsAll says whether every protector is to be tried, and there is more than one.
func (a attempt) wantsAll(kind diskcrypt.Kind) bool {
	return a.all && kind != diskcrypt.KindVolumeKey && len(a.header.Protectors) > 1
}

// bounded opens within the attempt's time. A key derivation cannot be stopped
// from outside: where one runs on, the process is given up.
func (a attempt) bounded(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret, p diskcrypt.Place, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, a.s.deps.Timeout)
	defer cancel()
	// The goroutine has a copy: the caller wipes its own when this returns.
	own := envelope.CopySecret(secret.Expose())
	type result struct {
		vol        diskcrypt.Opened
		protectors []string
		err        error
	}
	done := make(chan result, 1)
	go func() {
		defer own.Wipe()
		var r result
		if r.vol, r.err = a.format.Open(ctx, p, kind, own, a.s.deps.Limits); r.err == nil {
			r.protectors = []string{r.vol.Protector()}
			if a.wantsAll(kind) {
				if ids, err := a.format.OpensAll(ctx, p, kind, own, a.s.deps.Limits); err == nil && len(ids) > 0 {
					r.protectors = ids
				}
			}
		}
		done <- r
	}()
	take := func(r result) error {
		e.vol, e.protectors, e.complete = r.vol, r.protectors, a.wantsAll(kind)
		return r.err
	}
	select {
	case r := <-done:
		return take(r)
	case <-ctx.Done():
	}
	grace := time.NewTimer(a.s.deps.Grace)
	defer grace.Stop()
	select {
	case r := <-done:
		return take(r)
	case <-grace.C:
		a.s.abandon()
		return ErrAbandoned
	}
}

// abandon keeps an attempt that runs on from the pipe.
func (s *server) abandon() {
	s.pipe.Lock()
	defer s.pipe.Unlock()
	s.abandoned = true
}

// anchor is a reader whose source is exchanged: an opened volume reads the
// recovery point that it is set to, and nothing when it is set to none.
type anchor struct {
	mu sync.Mutex
	r  io.ReaderAt
}

func (a *anchor) set(r io.ReaderAt) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.r = r
}

func (a *anchor) ReadAt(p []byte, off int64) (int, error) {
	a.mu.Lock()
	r := a.r
	a.mu.Unlock()
	if r == nil {
		return 0, errors.New("read recovery point: none is set")
	}
	return r.ReadAt(p, off)
}

// entry is an opened volume, or, without one, the knowledge that the secret
// opens nothing there.
type entry struct {
	data, head anchor
	vol        diskcrypt.Opened
	protectors []string
	complete   bool // protectors are all that the secret opens
	bound      bool // cannot be read over other data: it is closed after use
}

type cacheKey [sha256.Size]byte

// cache holds opened volumes by header and secret. Its keys are MACs under a
// key of this process: a key says nothing about the secret.
type cache struct {
	seed [32]byte
	idle time.Duration

	using sync.Mutex // held while a request runs: its volumes are not closed under it

	mu      sync.Mutex
	entries map[cacheKey]*entry
	order   []cacheKey // oldest first
	timer   *time.Timer
}

const maxCached = 64

func newCache(seed [32]byte, idle time.Duration) *cache {
	return &cache{seed: seed, idle: idle, entries: map[cacheKey]*entry{}}
}

func (c *cache) key(a attempt, kind diskcrypt.Kind, secret envelope.Secret) cacheKey {
	mac := hmac.New(sha256.New, c.seed[:])
	field := func(b []byte) {
		_ = binary.Write(mac, binary.BigEndian, uint64(len(b)))
		mac.Write(b)
	}
	field([]byte(a.header.Type))
	field([]byte(a.header.HeaderDigest))
	field([]byte(kind))
	_ = binary.Write(mac, binary.BigEndian, []int64{a.place.Size, a.place.HeadSize})
	_ = binary.Write(mac, binary.BigEndian, a.place.Header != nil)
	field(secret.Expose())
	return cacheKey(mac.Sum(nil))
}

func (c *cache) get(k cacheKey) (*entry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touch()
	e, ok := c.entries[k]
	return e, ok
}

func (c *cache) put(k cacheKey, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touch()
	if _, replaced := c.entries[k]; replaced {
		c.drop(k)
		c.order = slices.DeleteFunc(c.order, func(o cacheKey) bool { return o == k })
	}
	for len(c.order) >= maxCached {
		c.drop(c.order[0])
		c.order = c.order[1:]
	}
	c.entries[k] = e
	c.order = append(c.order, k)
}

// touch puts off the moment at which an idle process forgets its keys.
func (c *cache) touch() {
	if c.timer == nil {
		c.timer = time.AfterFunc(c.idle, c.expire)
		return
	}
	c.timer.Reset(c.idle)
}

func (c *cache) expire() {
	if !c.using.TryLock() {
		return // the request that runs sets the time anew
	}
	defer c.using.Unlock()
	c.clear()
}

// use keeps the opened volumes open until its result is called.
func (c *cache) use() func() {
	c.using.Lock()
	return func() {
		c.using.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.entries) > 0 {
			c.touch()
		}
	}
}

func (c *cache) drop(k cacheKey) {
	if e := c.entries[k]; e != nil && e.vol != nil {
		_ = e.vol.Close()
	}
	delete(c.entries, k)
}

func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.entries {
		c.drop(k)
	}
	c.order = nil
}
