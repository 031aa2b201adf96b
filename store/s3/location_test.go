package s3

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

func TestURLs(t *testing.T) {
	for raw, want := range map[string]settings{
		"s3://b":                       {host: "s3.amazonaws.com", secure: true},
		"s3://b/p?region=eu-central-1": {host: "s3.amazonaws.com", secure: true, region: "eu-central-1"},
		"s3://b?endpoint=https://s3.example:9000":    {host: "s3.example:9000", secure: true, pathStyle: true},
		"s3://b?endpoint=http://[::1]:9/":            {host: "[::1]:9", pathStyle: true},
		"s3://b?endpoint=https://x&path-style=0":     {host: "x", secure: true},
		"s3://b?path-style=1&storage-class=GLACIER":  {host: "s3.amazonaws.com", secure: true, pathStyle: true, class: "GLACIER"},
		"s3://b?object-lock=1":                       {host: "s3.amazonaws.com", secure: true, lock: "1"},
		"s3://b?sse=aes256&part-size=8M&put-size=9M": {host: "s3.amazonaws.com", secure: true},
	} {
		got, err := parse(raw)
		if err != nil || got.host != want.host || got.secure != want.secure || got.pathStyle != want.pathStyle || got.region != want.region ||
			got.class != want.class || got.lock != want.lock || (got.sse != nil) != strings.Contains(raw, "sse=") {
			t.Errorf("%s: %+v, %v", raw, got, err)
		}
	}
	for _, raw := range []string{
		"s3://key:secret@b", "s3://b?secret-key=s", "s3://b?endpoint=s3.example:9000", "s3://b?endpoint=ftp://x", "s3://b?endpoint=https://k:secret@x",
		"s3://b?endpoint=https://x/path", "s3://b?sse=rot13", "s3://b?sse=kms:", "s3://b?path-style=yes", "s3://b?object-lock=2",
		"s3://b?part-size=1M", "s3://b?part-size=16M&put-size=8M", "s3://b?parallel=0", "s3://b?tls=0",
	} {
		if _, err := parse(raw); !errors.Is(err, remote.ErrLocation) || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: %v, want ErrLocation", raw, err)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-9/10", "bytes */10", "bytes 0-9/*", "bytes -1-2/3", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, size, err := contentRange(s)
		if err == nil && (first < 0 || size < 0) {
			t.Errorf("%q: %d, %d", s, first, size)
		}
	})
}

// What a URL says goes over the wire with each object; credentials do not.
func TestHeaders(t *testing.T) {
	var mu sync.Mutex
	var puts []*http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Query().Has("object-lock") {
			w.WriteHeader(http.StatusNotImplemented)
			return
		}
		if r.Method == http.MethodPut {
			mu.Lock()
			puts = append(puts, r)
			mu.Unlock()
			w.Header().Set("ETag", `"0123456789abcdef0123456789abcdef"`)
		}
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = hush-hush-hush\n\n[other]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = hush-hush-too\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	url := "s3://bucket/site?endpoint=" + server.URL + "&credentials-file=" + file + "&profile=other&storage-class=STANDARD_IA&sse=kms:the-key&region=eu-west-3"
	if _, err := Open(t.Context(), url, Options{}); err == nil || !strings.Contains(err.Error(), "others can read") {
		t.Errorf("credentials that others can read: %v", err)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), url, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Put(t.Context(), "a/b", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if len(puts) != 1 || puts[0].URL.Path != "/bucket/site/a/b" {
		t.Fatalf("requests: %+v", puts)
	}
	for name, want := range map[string]string{
		"If-None-Match": "*", "X-Amz-Storage-Class": "STANDARD_IA", "X-Amz-Server-Side-Encryption": "aws:kms",
		"X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id": "the-key",
		"X-Amz-Checksum-Crc32c":                       "mnG7TA==", // CRC-32C of "hello": 9a71bb4c
	} {
		if got := puts[0].Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a := puts[0].Header.Get("Authorization"); !strings.Contains(a, "AKIDOTHER/") || !strings.Contains(a, "/eu-west-3/s3/") || !strings.Contains(a, "if-none-match") {
		t.Errorf("authorization: %q", a)
	}
	if l := s.Location(); strings.Contains(l, "hush") || strings.Contains(l, "AKID") {
		t.Errorf("location holds credentials: %q", l)
	}
	if _, err := Open(t.Context(), strings.Replace(url, "profile=other", "profile=absent", 1), Options{}); !errors.Is(err, store.ErrDenied) || strings.Contains(err.Error(), "hush") {
		t.Errorf("absent profile: %v, want ErrDenied", err)
	}
}
