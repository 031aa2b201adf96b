package azureblob

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/store/remote/remotetest"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

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
	s.sizes.Whole, s.sizes.Part = 256<<10, 64<<10
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

// A request that makes a blob is repeated when its answer was lost, and must
// find out whose blob it meets.
func TestLostAnswers(t *testing.T) {
	url := server(t)
	unavailable := func(e remotetest.Effect) *remotetest.Fault {
		return &remotetest.Fault{Effect: e, Status: http.StatusServiceUnavailable, Header: map[string]string{"X-Ms-Error-Code": "ServerBusy"}}
	}
	small, big := []byte("content"), bytesOf(300<<10, 1)
	for _, c := range []struct {
		name  string
		match func(*http.Request) bool
		do    func(*Store, *testing.T, string, []byte) error
		data  []byte
	}{
		{"put", remotetest.On(http.MethodPut, "/key"), putData, small},
		{"commit of a small object", remotetest.On(http.MethodPut, "/key"), createData, small},
		{"block", remotetest.On(http.MethodPut, "/key", "comp=block"), createData, big},
		{"commit of blocks", remotetest.On(http.MethodPut, "/key", "comp=blocklist"), createData, big},
	} {
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
				judge.Decided(t, judgeName)
			})
		}
		if c.name == "block" {
			continue
		}
		t.Run(c.name+"/another writer's", func(t *testing.T) {
			f := &remotetest.Fault{Effect: remotetest.LoseRequest, Nth: 1}
			proxy := remotetest.NewProxy(t, url, f)
			location := newLocation(t, proxy.URL, "")
			s := inSmallParts(openAt(t, location, Options{Retry: quick}))
			other := inSmallParts(openAt(t, strings.Replace(location, proxy.URL, url, 1), Options{}))
			theirs := bytesOf(301<<10, 9) // in blocks: Azurite takes blocks that nobody committed for a blob when one is put whole
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
		"read cut":         {Effect: remotetest.Truncate, Match: remotetest.On(http.MethodGet, "/key"), Nth: 1},
		"read refused":     {Effect: remotetest.Refuse, Status: 500, Match: remotetest.On(http.MethodGet, "/key"), Nth: 2},
		"read lost":        {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodGet, "/key"), Nth: 2},
		"stat lost":        {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodHead, "/key"), Nth: 1},
		"listing lost":     {Effect: remotetest.LoseAnswer, Match: remotetest.On(http.MethodGet, "", "comp=list"), Nth: 1},
		"listing cut":      {Effect: remotetest.Truncate, Match: remotetest.On(http.MethodGet, "", "comp=list"), Nth: 1},
		"listing held off": {Effect: remotetest.Refuse, Status: 429, Match: remotetest.On(http.MethodGet, "", "comp=list"), Nth: 1},
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

func TestOpenAgainstServer(t *testing.T) {
	url := server(t)
	location := newLocation(t, url, "/p")
	if _, err := Open(t.Context(), location, Options{Secret: []byte(testKey)}); !errors.Is(err, ErrContainer) {
		t.Errorf("absent container: %v, want ErrContainer", err)
	}
	openAt(t, location, Options{})
	for name, secret := range map[string]string{
		"key":               testKey + "\n",
		"connection string": "DefaultEndpointsProtocol=http;AccountName=" + testAccount + ";AccountKey=" + testKey + ";BlobEndpoint=" + url + "/" + testAccount + ";",
	} {
		s, err := Open(t.Context(), location+"&credentials-file="+secretFile(t, secret, 0o600), Options{Secret: []byte("not used")})
		if err != nil {
			t.Errorf("%s in a file: %v", name, err)
			continue
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	wrong := "d3JvbmcgYWNjb3VudCBrZXkgd3JvbmcgYWNjb3VudCBrZXk="
	_, err := Open(t.Context(), location, Options{Secret: []byte(wrong)})
	if !errors.Is(err, store.ErrDenied) || hintOf(err) == "" {
		t.Errorf("wrong key: %v, want ErrDenied with a hint", err)
	}
	if err != nil && strings.Contains(err.Error(), wrong) {
		t.Error("the error repeats the key")
	}
	sas := "sv=2021-06-08&ss=b&srt=co&sp=r&se=2030-01-01T00:00:00Z&sig=c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"
	_, err = Open(t.Context(), location, Options{Secret: []byte("?" + sas), Retry: quick})
	if !errors.Is(err, store.ErrDenied) {
		t.Errorf("wrong SAS: %v, want ErrDenied", err)
	}
	nobody := strings.Replace(location, url, "http://127.0.0.1:1", 1)
	_, err = Open(t.Context(), nobody, Options{Secret: []byte(sas), Retry: quick})
	if err == nil || strings.Contains(err.Error(), "sig=") || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("no server: %v", err)
	}
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestOpenRefuses(t *testing.T) {
	key := Options{Secret: []byte(testKey)}
	for name, c := range map[string]struct {
		location string
		o        Options
		says     string
	}{
		"another scheme":        {"s3://acc/container", key, "azblob://"},
		"credentials":           {"azblob://acc:key@acc/container", key, "credentials"},
		"a SAS in the URL":      {"azblob://acc/container?sig=x", key, "credentials"},
		"no container":          {"azblob://acc", key, "container"},
		"a bad account":         {"azblob://Not_An_Account/container", key, "account"},
		"a bad container":       {"azblob://acc/Con", key, "container"},
		"an unknown parameter":  {"azblob://acc/container?region=x", key, "region"},
		"the archive tier":      {"azblob://acc/container?tier=archive", key, "tier"},
		"an endpoint's query":   {"azblob://acc/container?endpoint=" + "https%3A%2F%2Fh%2F%3Fa%3Db", key, "endpoint"},
		"an open wire":          {"azblob://acc/container?endpoint=http://10.0.0.1", Options{Secret: []byte("sv=1&sig=x")}, "unencrypted"},
		"no secret at all":      {"azblob://acc/container", Options{Secret: []byte("hello")}, "neither"},
		"another's string":      {"azblob://acc/container", Options{Secret: []byte("AccountName=other;AccountKey=" + testKey)}, "another account"},
		"an empty string's key": {"azblob://acc/container", Options{Secret: []byte("AccountName=acc;SharedAccessSignature=")}, "SAS"},
		"an absent file":        {"azblob://acc/container?credentials-file=/no/such/file", Options{}, "read credentials"},
		"an empty file":         {"azblob://acc/container?credentials-file=" + secretFile(t, " \n", 0o600), Options{}, "empty"},
		"a file for all":        {"azblob://acc/container?credentials-file=" + secretFile(t, testKey, 0o644), Options{}, "others may read"},
		"a file as a disk":      {"azblob://acc/container?credentials-file=" + secretFile(t, strings.Repeat("x", maxSecret+1), 0o600), Options{}, "larger"},
		"a folder":              {"azblob://acc/container?credentials-file=" + os.TempDir(), Options{}, "not a file"},
		"an absent CA":          {"azblob://acc/container?ca=/no/such/file", key, "CA"},
	} {
		_, err := Open(t.Context(), c.location, c.o)
		if err == nil || !strings.Contains(err.Error()+hintOf(err), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if err != nil && (strings.Contains(err.Error(), "sig=") || strings.Contains(err.Error(), testKey)) {
			t.Errorf("%s: the error repeats the secret: %v", name, err)
		}
	}
}

func FuzzAccess(f *testing.F) {
	for _, s := range []string{testKey, "AccountName=acc;AccountKey=" + testKey, "?sv=1&sig=x", "AccountKey=;;=", "SharedAccessSignature=sv=1&sig=a%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, secret string) {
		_, err := parseAccess("acc", secret)
		if secret = strings.TrimSpace(secret); err != nil && len(secret) > 20 && strings.Contains(err.Error(), secret) {
			t.Errorf("the error repeats the secret: %v", err)
		}
	})
}
