package gcs

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/store/remote/remotetest"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

const judgeName = "fake-gcs-server"

var fake struct {
	once    sync.Once
	url     string
	err     error
	process *exec.Cmd
	ended   chan struct{}
	mu      sync.Mutex
	number  int
}

func TestMain(m *testing.M) {
	code := m.Run()
	if fake.process != nil {
		_ = fake.process.Process.Kill()
		<-fake.ended
	}
	os.Exit(code)
}

// server gives the URL of an emulator that all tests of this process share, or
// ends the test.
func server(t testing.TB) string {
	t.Helper()
	program := judge.Tool(t, "fake-gcs-server")
	fake.once.Do(func() { fake.err = startFake(program) })
	if fake.err != nil {
		t.Fatal(fake.err)
	}
	return fake.url
}

func startFake(program string) error {
	for range 3 { // another process may take the port before the server does
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return err
		}
		url := "http://127.0.0.1:" + strconv.Itoa(port)
		cmd := exec.Command(program, "-scheme", "http", "-host", "127.0.0.1", "-port", strconv.Itoa(port),
			"-backend", "memory", "-external-url", url, "-public-host", "127.0.0.1:"+strconv.Itoa(port), "-log-level", "error")
		if err := cmd.Start(); err != nil {
			return err
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		if answers(url+"/storage/v1/b?project=p", ended) {
			fake.process, fake.ended, fake.url = cmd, ended, url
			return nil
		}
		_ = cmd.Process.Kill()
		<-ended
	}
	return errors.New("fake-gcs-server did not start")
}

// answers waits until a server answers, or its process has ended.
func answers(url string, ended <-chan struct{}) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 1500 {
		if resp, err := http.Get(url); err == nil {
			_ = resp.Body.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-tick.C:
		}
	}
	return false
}

// newLocation makes a bucket, and names it behind a server's or a proxy's URL.
func newLocation(t testing.TB, url, more string) string {
	t.Helper()
	fake.mu.Lock()
	fake.number++
	bucket := "bucket" + strconv.Itoa(fake.number)
	fake.mu.Unlock()
	body, err := json.Marshal(map[string]string{"name": bucket})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(server(t)+"/storage/v1/b?project=p", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("make bucket: %s", resp.Status)
	}
	return "gs://" + bucket + more + "?anonymous=true&endpoint=" + url
}

func openAt(t testing.TB, location string, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), location, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestConformance(t *testing.T) {
	url := server(t)
	for _, more := range []string{"", "/a/prefix"} {
		t.Run("prefix"+more, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return openAt(t, newLocation(t, url, more), Options{}) })
			t.Run("reopen", func(t *testing.T) {
				location := newLocation(t, url, more)
				storetest.RunReopen(t, func(t *testing.T) store.Store { return openAt(t, location, Options{}) })
			})
			judge.Decided(t, judgeName)
		})
	}
}

// quick keeps tests of failures short.
var quick = remote.Policy{Attempts: 4, First: time.Millisecond, Max: 2 * time.Millisecond}

// inSmallParts keeps tests of blocks quick.
func inSmallParts(s *Store) *Store {
	s.sizes.Whole, s.sizes.Part = 256<<10, 256<<10
	return s
}

func bytesOf(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>20)*11 ^ seed
	}
	return p
}

func putData(s *Store, t *testing.T, key string, data []byte) error {
	return s.Put(t.Context(), key, data)
}

func createData(s *Store, t *testing.T, key string, data []byte) error {
	w, err := s.Create(t.Context(), key)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

func wantObject(t *testing.T, s *Store, key string, want []byte) {
	t.Helper()
	got := make([]byte, len(want)+1)
	n, err := s.ReadRange(t.Context(), key, 0, got)
	if !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("%s: %d bytes, %v; want %d, the same", key, n, err, len(want))
	}
}

// chunk matches requests that carry a piece of an object: the last alone, or any.
func chunk(last bool) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.URL.Query().Has("upload_id") && (!last || !strings.HasSuffix(r.Header.Get("Content-Range"), "/*"))
	}
}

// A request that makes a blob is repeated when its answer was lost, and must
// find out whose blob it meets.
func TestLostAnswers(t *testing.T) {
	url := server(t)
	unavailable := func(e remotetest.Effect) *remotetest.Fault {
		return &remotetest.Fault{Effect: e, Status: http.StatusServiceUnavailable}
	}
	small, big := []byte("content"), bytesOf(300<<10, 1)
	for _, c := range []struct {
		name  string
		match func(*http.Request) bool
		do    func(*Store, *testing.T, string, []byte) error
		data  []byte
	}{
		{"put", remotetest.On(http.MethodPost, "/o", "uploadType=multipart"), putData, small},
		{"commit of a small object", remotetest.On(http.MethodPost, "/o", "uploadType=multipart"), createData, small},
		{"chunk", chunk(false), createData, big},
		{"last chunk", chunk(true), createData, big},
	} {
		url := url
		if strings.Contains(c.name, "chunk") {
			// The emulator appends a chunk that comes twice, and forgets an upload
			// that is complete; the service does neither.
			url = newResumable(t)
		}
		for name, f := range map[string]*remotetest.Fault{
			"answer lost": {Effect: remotetest.LoseAnswer}, "request lost": {Effect: remotetest.LoseRequest},
			"503 before": unavailable(remotetest.Refuse), "503 after": unavailable(remotetest.RefuseAfter),
		} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				f.Match, f.Nth = c.match, 1
				proxy := remotetest.NewProxy(t, url, f)
				s := inSmallParts(openAt(t, newLocation(t, proxy.URL, ""), Options{Retry: quick}))
				if err := c.do(s, t, "key", c.data); err != nil {
					t.Fatalf("%v", err)
				}
				wantObject(t, s, "key", c.data)
				if err := c.do(s, t, "key", c.data); !errors.Is(err, store.ErrExist) {
					t.Errorf("again: %v, want ErrExist", err)
				}
				if !strings.Contains(c.name, "chunk") {
					judge.Decided(t, judgeName)
				}
			})
		}
		if c.name == "chunk" {
			continue
		}
		t.Run(c.name+"/another writer's", func(t *testing.T) {
			f := &remotetest.Fault{Effect: remotetest.LoseRequest, Nth: 1}
			proxy := remotetest.NewProxy(t, url, f)
			location := newLocation(t, proxy.URL, "")
			s := inSmallParts(openAt(t, location, Options{Retry: quick}))
			other := inSmallParts(openAt(t, strings.Replace(location, proxy.URL, url, 1), Options{}))
			theirs := bytesOf(301<<10, 9)
			f.Match = func(r *http.Request) bool {
				if !c.match(r) {
					return false
				}
				// Another wins while our first request is on its way.
				if err := createData(other, t, "key", theirs); err != nil && !errors.Is(err, store.ErrExist) {
					t.Error(err)
				}
				return true
			}
			if err := c.do(s, t, "key", c.data); !errors.Is(err, store.ErrExist) {
				t.Errorf("%v, want ErrExist", err)
			}
			wantObject(t, s, "key", theirs)
		})
	}
}

func TestFaultsOfReading(t *testing.T) {
	url := server(t)
	data := bytesOf(7<<20, 2)
	for name, f := range map[string]*remotetest.Fault{
		"read cut":         {Effect: remotetest.Truncate, Match: remotetest.On(http.MethodGet, "/key", "alt=media"), Nth: 1},
		"read refused":     {Effect: remotetest.Refuse, Status: 500, Match: remotetest.On(http.MethodGet, "/key", "alt=media"), Nth: 2},
		"read lost":        {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodGet, "/key", "alt=media"), Nth: 2},
		"stat lost":        {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodGet, "/key", "alt=json"), Nth: 1},
		"listing lost":     {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodGet, "/o"), Nth: 1},
		"listing cut":      {Effect: remotetest.Truncate, Match: remotetest.On(http.MethodGet, "/o"), Nth: 1},
		"listing held off": {Effect: remotetest.Refuse, Status: 429, Match: remotetest.On(http.MethodGet, "/o"), Nth: 1},
		"delete lost":      {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodDelete, "/key"), Nth: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := openAt(t, newLocation(t, remotetest.NewProxy(t, url, f).URL, ""), Options{Retry: quick})
			if err := s.Put(t.Context(), "key", data); err != nil {
				t.Fatal(err)
			}
			if info, err := s.Stat(t.Context(), "key"); err != nil || info.Size != int64(len(data)) {
				t.Errorf("stat: %+v, %v", info, err)
			}
			p := make([]byte, len(data))
			for _, n := range []int{len(p), 1000} {
				if got, err := s.ReadRange(t.Context(), "key", 0, p[:n]); got != n || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], data[:n]) {
					t.Errorf("read of %d: %d, %v", n, got, err)
				}
			}
			var keys []string
			if err := s.List(t.Context(), "", func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil || !slices.Equal(keys, []string{"key"}) {
				t.Errorf("list: %q, %v", keys, err)
			}
			if err := s.Delete(t.Context(), "key"); err != nil {
				t.Errorf("delete: %v", err)
			}
		})
	}
	t.Run("for ever", func(t *testing.T) {
		f := &remotetest.Fault{Effect: remotetest.Refuse, Status: 503, Match: remotetest.On(http.MethodGet, "/key")}
		proxy := remotetest.NewProxy(t, url, f)
		s := openAt(t, newLocation(t, proxy.URL, ""), Options{Retry: quick})
		if err := s.Put(t.Context(), "key", data); err != nil {
			t.Fatal(err)
		}
		_, err := s.ReadRange(t.Context(), "key", 0, make([]byte, 10))
		if e, ok := errors.AsType[*ServiceError](err); !ok || e.Status != 503 || errors.Is(err, store.ErrNotExist) {
			t.Errorf("%v, want the service's 503", err)
		}
		if n := proxy.Strikes(f); n != quick.Attempts {
			t.Errorf("%d attempts, want %d", n, quick.Attempts)
		}
	})
}

// Requests are what is paid for: these numbers stand in docs/stores.md.
func TestRequests(t *testing.T) {
	s := openAt(t, newLocation(t, server(t), ""), Options{})
	count := func(name string, want remote.Counts, do func() error) {
		t.Helper()
		before := s.Counts()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := s.Counts().Sub(before)
		got.Up, got.Down = 0, 0
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	ctx := t.Context()
	count("put", remote.Counts{Put: 1}, func() error { return s.Put(ctx, "small", []byte("x")) })
	count("segment", remote.Counts{Put: 1}, func() error { return createData(s, t, "whole", make([]byte, wholeSize)) })
	count("larger object", remote.Counts{Put: 1, Part: 5}, func() error { return createData(s, t, "large", make([]byte, wholeSize+1)) })
	count("stat", remote.Counts{Head: 1}, func() error { _, err := s.Stat(ctx, "small"); return err })
	count("read", remote.Counts{Get: 1}, func() error { _, err := s.ReadRange(ctx, "large", 5, make([]byte, 1<<20)); return err })
	count("long read", remote.Counts{Get: 4}, func() error { _, err := s.ReadRange(ctx, "large", 0, make([]byte, 16<<20)); return err })
	count("list", remote.Counts{List: 1}, func() error { return s.List(ctx, "", func(store.Info) error { return nil }) })
	count("delete", remote.Counts{Delete: 1}, func() error { return s.Delete(ctx, "small") })
	count("abort", remote.Counts{}, func() error {
		w, err := s.Create(ctx, "aborted")
		if err != nil {
			return err
		}
		if _, err := w.Write([]byte("x")); err != nil {
			return err
		}
		return w.Abort()
	})
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestOpenAgainstServer(t *testing.T) {
	url := server(t)
	if _, err := Open(t.Context(), "gs://no-such-bucket?anonymous=true&endpoint="+url, Options{}); !errors.Is(err, ErrBucket) || hintOf(err) == "" {
		t.Errorf("absent bucket: %v, want ErrBucket with a hint", err)
	}
	for status, reason := range map[int]string{403: "forbidden", 401: "required"} {
		f := &remotetest.Fault{
			Effect: remotetest.Refuse, Status: status, Header: map[string]string{"Content-Type": "application/json"},
			Body: `{"error":{"code":` + strconv.Itoa(status) + `,"message":"no","errors":[{"reason":"` + reason + `"}]}}`,
		}
		_, err := Open(t.Context(), newLocation(t, remotetest.NewProxy(t, url, f).URL, ""), Options{})
		if !errors.Is(err, store.ErrDenied) || hintOf(err) == "" || !strings.Contains(err.Error(), reason) {
			t.Errorf("%d: %v, want ErrDenied with a hint", status, err)
		}
	}
}

func TestLocked(t *testing.T) {
	f := &remotetest.Fault{
		Effect: remotetest.Refuse, Status: 403, Match: remotetest.On(http.MethodDelete, "/key"), Header: map[string]string{"Content-Type": "application/json"},
		Body: `{"error":{"code":403,"message":"no","errors":[{"reason":"retentionPolicyNotMet"}]}}`,
	}
	s := openAt(t, newLocation(t, remotetest.NewProxy(t, server(t), f).URL, ""), Options{})
	if err := s.Delete(t.Context(), "key"); !errors.Is(err, store.ErrLocked) {
		t.Errorf("%v, want ErrLocked", err)
	}
}

func secretFile(t testing.TB, content string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(os.WriteFile(name, []byte(content), 0o600), os.Chmod(name, mode)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestOpenRefuses(t *testing.T) {
	const secret = "not-to-be-repeated"
	for name, c := range map[string]struct{ location, says string }{
		"another scheme":       {"s3://bucket", "gs://"},
		"credentials":          {"gs://key@bucket", "credentials"},
		"no bucket":            {"gs://", "bucket"},
		"an unknown parameter": {"gs://bucket?tier=x", "tier"},
		"an open wire":         {"gs://bucket?endpoint=http://10.0.0.1", "unencrypted"},
		"an absent file":       {"gs://bucket?credentials-file=/no/such/file", "read credentials"},
		"a folder":             {"gs://bucket?credentials-file=" + os.TempDir(), "not a file"},
		"a file for all":       {"gs://bucket?credentials-file=" + secretFile(t, "{}", 0o644), "others may read"},
		"a file as a disk":     {"gs://bucket?credentials-file=" + secretFile(t, strings.Repeat("x", maxCredentials+1), 0o600), "larger"},
		"no JSON":              {"gs://bucket?credentials-file=" + secretFile(t, secret, 0o600), "not a file of Google credentials"},
		"no type":              {"gs://bucket?credentials-file=" + secretFile(t, `{"private_key":"`+secret+`"}`, 0o600), "not a file of Google credentials"},
		"a bad key's type":     {"gs://bucket?credentials-file=" + secretFile(t, `{"type":"`+secret+`"}`, 0o600), "not a file of Google credentials"},
	} {
		_, err := Open(t.Context(), c.location, Options{})
		if err == nil || !strings.Contains(err.Error()+hintOf(err), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error repeats what is in the file: %v", name, err)
		}
	}
}
