// Package remotetest puts a faulty network between an adapter and a real
// server: answers that are lost, refusals, bodies that are cut.
//
// It is not random: every fault names the request it strikes. Its invariant: a
// fault that never struck fails the test.
package remotetest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Effect is what becomes of a request.
type Effect int

// The effects.
const (
	// LoseAnswer lets the server act, and closes the connection without its answer.
	LoseAnswer Effect = iota
	// LoseRequest closes the connection; the server hears nothing.
	LoseRequest
	// Refuse answers with Status; the server hears nothing.
	Refuse
	// RefuseAfter lets the server act, and answers with Status.
	RefuseAfter
	// Truncate cuts the answer's body to half of what its head promises.
	Truncate
)

// Fault strikes requests that Match takes: the Nth of them (from 1), or every
// one if Nth is 0.
type Fault struct {
	Effect Effect
	Match  func(*http.Request) bool
	Nth    int
	Status int               // of Refuse and RefuseAfter
	Header map[string]string // of Refuse and RefuseAfter
	Body   string            // of Refuse and RefuseAfter

	seen, hits int
}

// Proxy passes requests on to a server, under a script.
type Proxy struct {
	URL string // of the proxy, http://127.0.0.1:PORT

	t      testing.TB
	target string
	client *http.Client
	mu     sync.Mutex
	faults []*Fault
}

// NewProxy starts one before target (http://HOST:PORT), until the test ends.
func NewProxy(t testing.TB, target string, faults ...*Fault) *Proxy {
	t.Helper()
	p := &Proxy{t: t, target: strings.TrimSuffix(target, "/"), faults: faults, client: &http.Client{
		Transport:     &http.Transport{DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	server := httptest.NewServer(p)
	p.URL = server.URL
	t.Cleanup(func() {
		server.Close()
		p.client.CloseIdleConnections()
		for i, f := range p.faults {
			if f.hits == 0 {
				t.Errorf("fault %d (effect %d) never struck", i, f.Effect)
			}
		}
	})
	return p
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := p.strike(r)
	if f != nil && f.Effect == LoseRequest {
		panic(http.ErrAbortHandler)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // the client went away
	}
	if f != nil && f.Effect == Refuse {
		f.answer(w)
		return
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, p.target+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		p.t.Errorf("proxy: %v", err)
		panic(http.ErrAbortHandler)
	}
	out.Header = r.Header.Clone()
	out.Host = r.Host
	resp, err := p.client.Do(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	switch {
	case err != nil, f != nil && f.Effect == LoseAnswer:
		panic(http.ErrAbortHandler)
	case f != nil && f.Effect == RefuseAfter:
		f.answer(w)
		return
	}
	maps.Copy(w.Header(), resp.Header)
	if rest, ok := strings.CutPrefix(resp.Header.Get("Location"), p.target); ok {
		w.Header().Set("Location", p.URL+rest) // an upload goes on through the proxy
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	}
	w.WriteHeader(resp.StatusCode)
	if f != nil && f.Effect == Truncate {
		_, _ = w.Write(answer[:len(answer)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(answer)
}

// Strikes tells how often a fault struck.
func (p *Proxy) Strikes(f *Fault) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f.hits
}

func (p *Proxy) strike(r *http.Request) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.Match != nil && !f.Match(r) {
			continue
		}
		f.seen++
		if f.Nth == 0 || f.Nth == f.seen {
			f.hits++
			return f
		}
	}
	return nil
}

func (f *Fault) answer(w http.ResponseWriter) {
	for name, value := range f.Header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(f.Status)
	fmt.Fprint(w, f.Body)
}

// On matches requests of a method whose path ends in suffix and whose query
// has all of query ("comp=block").
func On(method, suffix string, query ...string) func(*http.Request) bool {
	return func(r *http.Request) bool {
		if r.Method != method || !strings.HasSuffix(r.URL.Path, suffix) {
			return false
		}
		for _, want := range query {
			name, value, _ := strings.Cut(want, "=")
			if !r.URL.Query().Has(name) || r.URL.Query().Get(name) != value {
				return false
			}
		}
		return true
	}
}
