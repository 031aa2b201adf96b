package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/lockstep-recover/command"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// bucket is a bucket of a real S3 server, behind a proxy that counts requests
// by what S3 bills them as.
type bucket struct {
	url string // of the repository

	mu     sync.Mutex
	counts map[string]int
}

func newBucket(t *testing.T, w *world) *bucket {
	t.Helper()
	server := judge.Versitygw(t)
	to, err := url.Parse(server.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	b := &bucket{counts: map[string]int{}}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host // it is signed
	}}
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		kind := r.Method
		switch {
		case q.Has("list-type"), q.Has("uploads"), q.Has("versions"):
			kind = "LIST"
		case r.Method == http.MethodPost:
			kind = "PUT"
		}
		b.mu.Lock()
		b.counts[kind]++
		b.mu.Unlock()
		forward.ServeHTTP(rw, r)
	}))
	t.Cleanup(proxy.Close)
	client, err := minio.New(to.Host, &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.Secret, ""), BucketLookup: minio.BucketLookupPath, Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), "backup", minio.MakeBucketOptions{}); err != nil {
		t.Fatal(err)
	}
	file := w.path("s3-credentials")
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKey, server.Secret)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b.url = "s3://backup/site/one?" + url.Values{"endpoint": {proxy.URL}, "credentials-file": {file}}.Encode()
	return b
}

// take gives the requests since it was last called.
func (b *bucket) take() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.counts
	b.counts = map[string]int{}
	return c
}

func (w *world) recover(args ...string) string {
	w.t.Helper()
	var out, errs bytes.Buffer
	code := command.Main(w.t.Context(), command.Env{Args: args, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Version: "test"})
	if code != 0 {
		w.t.Fatalf("lockstep-recover %s: exit %d\n%s%s", strings.Join(args, " "), code, out.String(), errs.String())
	}
	return out.String()
}

// A machine lives in a bucket: init, backup, proof, verify, restore, and
// recovery with nothing left but the bucket and the kit.
func TestRepositoryInABucket(t *testing.T) {
	w := newWorld(t)
	b := newBucket(t, w)
	w.ok("", "init", "--kit", w.path("kit.txt"), "--repository", b.url)
	image := w.encrypted("web01.img", oldPassphrase)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	w.backup(api.StateUnrecoverable)
	w.add(oldPassphrase)
	w.edit(image, func(f *os.File) { // the guest writes
		if _, err := f.WriteAt(bytes.Repeat([]byte("changed "), 512), diskSize-8192); err != nil {
			t.Fatal(err)
		}
	})
	p := w.backup(api.StateProven)
	if p.Transfer != "incremental" || p.ChangedBytes == 0 {
		t.Errorf("second recovery point: %s, %d bytes changed", p.Transfer, p.ChangedBytes)
	}
	w.ok("", "verify")
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	same := func(target string) {
		t.Helper()
		if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is another disk: %v", target, err)
		}
		if len(w.opens(target, oldPassphrase)) == 0 {
			t.Errorf("%s does not open", target)
		}
	}
	w.ok("", "restore", "web01@latest", "--disk", "vda="+w.path("restored.img"))
	same(w.path("restored.img"))
	w.ok("", "catalog", "rebuild")

	if err := os.RemoveAll(w.data); err != nil {
		t.Fatal(err)
	}
	// The kit knows where the repository is.
	w.recover("restore", "web01@latest", "--identity", w.path("kit.txt"), "--disk", "vda="+w.path("recovered.img"))
	same(w.path("recovered.img"))
	judge.Decided(t, "versitygw (S3 server)")
}

// The check that operators run passes against a real server, and leaves nothing.
func TestCheckStoreOfABucket(t *testing.T) {
	w := newWorld(t)
	b := newBucket(t, w)
	r := asked[cli.StoreCheckResult](w, 0, "", "repository", "check-store", b.url)
	if !r.Passed || len(r.Checks) < 20 || r.Requests == 0 {
		t.Errorf("%+v", r)
	}
	_, stderr := w.want(2, "", "repository", "check-store", "s3://key:secret@backup/site")
	if !strings.Contains(stderr, "credentials") || strings.Contains(stderr, "secret@") {
		t.Errorf("a URL with credentials: %s", stderr)
	}
	judge.Decided(t, "versitygw (S3 server)")
}

// What a remote repository costs: docs/stores.md has the figures that this logs.
func TestRequestsInABucket(t *testing.T) {
	w := newWorld(t)
	b := newBucket(t, w)
	w.ok("", "init", "--kit", w.path("kit.txt"), "--repository", b.url)
	first := func(name string, size int64) map[string]int {
		image := w.path(name + ".img")
		f, err := os.Create(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		p := make([]byte, 1<<20)
		for range size / int64(len(p)) {
			_, _ = rand.Read(p)
			if _, err := f.Write(p); err != nil {
				t.Fatal(err)
			}
		}
		w.ok("", "machine", "add", name, "--disk", "vda="+image)
		b.take()
		w.ok("", "backup", name)
		return b.take()
	}
	const small, large = 8 << 20, 136 << 20
	few, many := first("small", small), first("large", large)
	perTiB := (many["PUT"] - few["PUT"]) * ((1 << 40) / (large - small))
	t.Logf("PUT requests of a TiB: %d", perTiB)
	if perTiB > 33_500 {
		t.Errorf("%d PUT requests of a TiB, want at most 33,500", perTiB)
	}
	// Opening a repository lists what is kept twice, using a machine lists its
	// log; neither grows with the disk. Once a day, here in the first command,
	// uploads that were given up are listed.
	lists := func(what string, c map[string]int, want int) {
		t.Helper()
		t.Logf("%s: %v", what, c)
		if c["LIST"] != want {
			t.Errorf("%s: %d LIST requests, want %d", what, c["LIST"], want)
		}
	}
	lists("first backup, small", few, 3)
	lists("first backup, large", many, 2)
	w.edit(w.path("large.img"), func(f *os.File) {
		p := make([]byte, 4096)
		for i := range 13 { // one page in ten MiB
			_, _ = rand.Read(p)
			if _, err := f.WriteAt(p, int64(i)*10<<20); err != nil {
				t.Fatal(err)
			}
		}
	})
	w.ok("", "backup", "large")
	lists("incremental of 13 pages of 136 MiB", b.take(), 2)
	w.ok("", "backup", "large")
	lists("incremental of nothing", b.take(), 2)
	w.ok("", "restore", "large@latest", "--disk", "vda="+w.path("restored.img"))
	lists("restore of 136 MiB", b.take(), 2)
	w.ok("", "verify", "large@latest")
	lists("verify of 136 MiB", b.take(), 2)
	judge.Decided(t, "versitygw (S3 server)")
}
