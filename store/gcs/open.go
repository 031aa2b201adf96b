package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"

	"github.com/lockstep-backup/lockstep/store/remote"
)

// Scheme is that of the URLs that Open takes.
const Scheme = "gs"

// Options are what the URL does not say.
type Options struct {
	// Retry says how patiently requests are repeated; the zero value is right.
	Retry remote.Policy
	// Base carries the requests; nil: made for the URL's ca.
	Base http.RoundTripper
	Log  *slog.Logger // nil: nobody is told
}

// parameters are those of the URL.
var parameters = []string{"endpoint", "storage-class", "ca", "credentials-file", "anonymous"}

const hintCredentials = "put a service account's key into a file of mode 0600 and add credentials-file=/path, or sign in: gcloud auth application-default login"

// Open opens the bucket that a URL names,
//
//	gs://BUCKET[/PREFIX][?endpoint=URL&storage-class=NEARLINE&ca=FILE&credentials-file=FILE&anonymous=true]
//
// and asks the service for it once, so that wrong names and credentials show
// here: an absent bucket matches ErrBucket, wrong credentials match
// store.ErrDenied, a bad URL matches remote.ErrLocation. Without a file,
// Google's application default credentials are taken.
func Open(ctx context.Context, location string, o Options) (*Store, error) {
	s, err := open(ctx, location, o)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.do(ctx, func(ctx context.Context, _ int) error {
		_, err := s.list(s.location.Name(""), "").MaxResults(1).Context(ctx).Do()
		return bucketError(err)
	}); err != nil {
		s.close()
		return nil, fmt.Errorf("open store %s: %w", s.Location(), err)
	}
	return s, nil
}

func open(ctx context.Context, location string, o Options) (*Store, error) {
	at, err := remote.ParseLocation(location, Scheme, parameters, hintCredentials)
	if err != nil {
		return nil, err
	}
	endpoint := at.Query.Get("endpoint")
	if endpoint == "" {
		endpoint = "https://storage.googleapis.com"
	}
	if err := checkEndpoint(endpoint); err != nil {
		return nil, err
	}
	s := &Store{location: at, class: strings.ToUpper(at.Query.Get("storage-class")), retry: o.Retry}
	s.sizes = remote.UploadOptions{Whole: wholeSize, Part: chunkSize, Parallel: 1, Buffers: new(remote.Buffers)}
	carrier, err := remote.NewTransport(remote.TransportOptions{
		Classify: classify, Counter: &s.counter, CAFile: at.Query.Get("ca"), Base: o.Base,
	})
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: bounded{carrier}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	s.close = client.CloseIdleConnections
	if at.Query.Get("anonymous") != "true" {
		tokens, err := tokenSource(ctx, at.Query.Get("credentials-file"))
		if err != nil {
			s.close()
			return nil, err
		}
		client.Transport = &oauth2.Transport{Base: client.Transport, Source: tokens}
	}
	s.service, err = storage.NewService(ctx, option.WithHTTPClient(client),
		option.WithEndpoint(strings.TrimSuffix(endpoint, "/")+"/storage/v1/"), option.WithUserAgent("lockstep"))
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// checkEndpoint keeps tokens off wires that anybody can read.
func checkEndpoint(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return remote.WithHint(fmt.Errorf("%w: its endpoint cannot be used", remote.ErrLocation), "endpoint=https://HOST[:PORT], without a query")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return remote.WithHint(fmt.Errorf("%w: its endpoint would send credentials unencrypted", remote.ErrLocation), "use https://")
	}
	return nil
}

// maxCredentials bounds a file of credentials.
const maxCredentials = 64 << 10

// tokenSource signs in; its requests are not counted among the store's.
func tokenSource(ctx context.Context, file string) (oauth2.TokenSource, error) {
	ctx = context.WithoutCancel(ctx) // tokens are renewed while the store is open
	if file == "" {
		c, err := google.FindDefaultCredentials(ctx, storage.DevstorageReadWriteScope)
		if err != nil {
			return nil, remote.WithHint(errors.New("sign in: this machine and user have no Google credentials"), hintCredentials)
		}
		return c.TokenSource, nil
	}
	raw, err := readCredentials(file)
	if err != nil {
		return nil, err
	}
	var kind struct {
		Type google.CredentialsType `json:"type"`
	}
	// Errors of the parser could repeat what it read.
	bad := remote.WithHint(fmt.Errorf("read credentials: %s is not a file of Google credentials", file), hintCredentials)
	if err := json.Unmarshal(raw, &kind); err != nil || kind.Type == "" {
		return nil, bad
	}
	c, err := google.CredentialsFromJSONWithType(ctx, raw, kind.Type, storage.DevstorageReadWriteScope)
	if err != nil {
		return nil, bad
	}
	return c.TokenSource, nil
}

func readCredentials(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read credentials: %w", err)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("read credentials: %s is not a file", name)
	case runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0:
		return nil, remote.WithHint(fmt.Errorf("read credentials: others may read %s", name), "chmod 600 "+name)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read credentials: %w", err)
	case len(raw) > maxCredentials:
		return nil, fmt.Errorf("read credentials: %s is larger than any credentials", name)
	}
	return raw, nil
}

// maxAnswer bounds answers other than objects' bytes, which have their own bounds.
const maxAnswer = 64 << 20

type bounded struct{ carrier http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.carrier.RoundTrip(r)
	if err == nil && classify(r) != remote.Get {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// CloseIdleConnections lets http.Client close them.
func (b bounded) CloseIdleConnections() {
	(&http.Client{Transport: b.carrier}).CloseIdleConnections()
}

// classify says what a request is billed as.
func classify(r *http.Request) remote.Kind {
	q := r.URL.Query()
	upload := strings.Contains(r.URL.Path, "/upload/")
	switch {
	case upload && q.Has("upload_id"):
		return remote.Part
	case r.Method == http.MethodPost:
		return remote.Put
	case r.Method == http.MethodGet && q.Get("alt") == "media":
		return remote.Get
	case r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/o"):
		return remote.List
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		return remote.Head
	case r.Method == http.MethodDelete:
		return remote.Delete
	}
	return remote.Other
}
