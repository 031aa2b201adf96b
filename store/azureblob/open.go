package azureblob

import (
	"context"
	"encoding/base64"
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

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/lockstep-backup/lockstep/store/remote"
)

// Scheme is that of the URLs that Open takes.
const Scheme = "azblob"

// Options are what the URL does not say.
type Options struct {
	// Secret is an account key, a SAS (shared access signature) or a connection
	// string, as the environment has it; the URL's credentials-file goes before
	// it. With neither, the Azure identity of this machine or user is taken.
	Secret []byte
	// Create makes the container if it is absent.
	Create bool
	// Retry says how patiently requests are repeated; the zero value is right.
	Retry remote.Policy
	// Base carries the requests; nil: made for the URL's ca.
	Base http.RoundTripper
	Log  *slog.Logger // nil: nobody is told
}

// parameters are those of the URL.
var parameters = []string{"endpoint", "tier", "ca", "credentials-file"}

const hintCredentials = "put an account key, a SAS or a connection string into a file of mode 0600 and add credentials-file=/path, or set AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING"

// Open opens the container that a URL names,
//
//	azblob://ACCOUNT/CONTAINER[/PREFIX][?endpoint=URL&tier=hot|cool|cold&ca=FILE&credentials-file=FILE]
//
// and asks the service for it once, so that wrong names and credentials show
// here: an absent container matches ErrContainer, wrong credentials match
// store.ErrDenied, a bad URL matches remote.ErrLocation.
func Open(ctx context.Context, location string, o Options) (*Store, error) {
	s, err := open(location, o)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := s.find(ctx, o.Create); err != nil {
		s.close()
		return nil, fmt.Errorf("open store %s: %w", s.Location(), err)
	}
	return s, nil
}

func open(location string, o Options) (*Store, error) {
	at, err := remote.ParseLocation(location, Scheme, parameters, hintCredentials)
	if err != nil {
		return nil, err
	}
	name, prefix, _ := strings.Cut(at.Prefix, "/")
	if !isName(at.Bucket, 3, 24, "") || !isName(name, 3, 63, "-") {
		return nil, remote.WithHint(fmt.Errorf("%w: it names no account and container", remote.ErrLocation), "azblob://ACCOUNT/CONTAINER/PREFIX (docs/stores.md)")
	}
	tier, err := tierOf(at.Query.Get("tier"))
	if err != nil {
		return nil, err
	}
	secret := o.Secret
	if file := at.Query.Get("credentials-file"); file != "" {
		if secret, err = readSecret(file); err != nil {
			return nil, err
		}
	}
	access, err := parseAccess(at.Bucket, string(secret))
	if err != nil {
		return nil, err
	}
	endpoint := access.endpoint
	if e := at.Query.Get("endpoint"); e != "" {
		endpoint = e
	}
	if endpoint == "" {
		endpoint = "https://" + at.Bucket + ".blob.core.windows.net"
	}
	if err := checkEndpoint(endpoint, access); err != nil {
		return nil, err
	}
	s := &Store{location: at, prefix: remote.Location{Prefix: prefix}, tier: tier, retry: o.Retry}
	s.sizes = remote.UploadOptions{Whole: wholeSize, Part: blockSize, Parallel: parallelBlocks, Buffers: new(remote.Buffers)}
	carrier, err := remote.NewTransport(remote.TransportOptions{
		Classify: classify, Counter: &s.counter, CAFile: at.Query.Get("ca"), Base: o.Base,
	})
	if err != nil {
		return nil, err
	}
	s.close = closeIdle(carrier)
	s.container, err = access.client(strings.TrimSuffix(endpoint, "/")+"/"+name, &container.ClientOptions{ClientOptions: policy.ClientOptions{
		Transport: transporter{carrier},
		Retry:     policy.RetryOptions{MaxRetries: -1}, // ours must see each attempt
		Telemetry: policy.TelemetryOptions{ApplicationID: "lockstep"},
	}})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// find makes sure that the container is there.
func (s *Store) find(ctx context.Context, create bool) error {
	err := s.do(ctx, func(ctx context.Context, _ int) error {
		_, err := s.container.GetProperties(ctx, nil)
		return containerError(err)
	})
	if !create || !errors.Is(err, ErrContainer) {
		return err
	}
	return s.do(ctx, func(ctx context.Context, _ int) error {
		_, err := s.container.Create(ctx, nil)
		return existsAlready(err)
	})
}

func tierOf(name string) (*blob.AccessTier, error) {
	var tier blob.AccessTier
	switch name {
	case "":
		return nil, nil //nolint:nilnil // the account's own
	case "hot":
		tier = blob.AccessTierHot
	case "cool":
		tier = blob.AccessTierCool
	case "cold":
		tier = blob.AccessTierCold
	default:
		return nil, remote.WithHint(fmt.Errorf("%w: tier %.20q", remote.ErrLocation, name), "hot, cool or cold; archived objects cannot be read at once")
	}
	return &tier, nil
}

// checkEndpoint keeps what opens the account off wires that anybody can read.
func checkEndpoint(endpoint string, a access) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "https" && u.Scheme != "http" {
		return remote.WithHint(fmt.Errorf("%w: its endpoint cannot be used", remote.ErrLocation), "endpoint=https://HOST[:PORT][/ACCOUNT], without a query")
	}
	if ip := net.ParseIP(u.Hostname()); u.Scheme == "http" && a.key == nil && u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return remote.WithHint(fmt.Errorf("%w: its endpoint would send credentials unencrypted", remote.ErrLocation), "use https://")
	}
	return nil
}

// access is how the account is opened: by key, SAS or identity.
type access struct {
	key      *blob.SharedKeyCredential
	sas      string
	endpoint string // of a connection string
}

// maxSecret bounds a file with a secret.
const maxSecret = 16 << 10

func readSecret(name string) ([]byte, error) {
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
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read credentials: %w", err)
	case len(secret) > maxSecret:
		return nil, fmt.Errorf("read credentials: %s is larger than any secret", name)
	case len(strings.TrimSpace(string(secret))) == 0:
		return nil, fmt.Errorf("read credentials: %s is empty", name)
	}
	return secret, nil
}

// parseAccess tells a connection string, a SAS and a key apart. Its errors
// repeat nothing of the secret.
func parseAccess(account, secret string) (access, error) {
	secret = strings.TrimSpace(secret)
	switch {
	case secret == "":
		return access{}, nil
	case strings.Contains(secret, "AccountKey=") || strings.Contains(secret, "SharedAccessSignature="):
		return parseConnectionString(account, secret)
	case strings.Contains(secret, "sig="):
		return parseSAS(secret)
	}
	return parseKey(account, secret)
}

func parseConnectionString(account, s string) (access, error) {
	fields := map[string]string{}
	for field := range strings.SplitSeq(s, ";") {
		if name, value, ok := strings.Cut(strings.TrimSpace(field), "="); ok {
			fields[name] = value
		}
	}
	if name := fields["AccountName"]; name != "" && name != account {
		return access{}, remote.WithHint(errors.New("read credentials: the connection string is for another account than the URL names"), "azblob://ACCOUNT/CONTAINER")
	}
	var a access
	var err error
	if key := fields["AccountKey"]; key != "" {
		a, err = parseKey(account, key)
	} else {
		a, err = parseSAS(fields["SharedAccessSignature"])
	}
	a.endpoint = fields["BlobEndpoint"]
	if suffix := fields["EndpointSuffix"]; a.endpoint == "" && suffix != "" {
		a.endpoint = "https://" + account + ".blob." + suffix
	}
	return a, err
}

func parseKey(account, key string) (access, error) {
	if raw, err := base64.StdEncoding.DecodeString(key); err != nil || len(raw) < 16 {
		return access{}, remote.WithHint(errors.New("read credentials: this is neither an account key, nor a SAS, nor a connection string"), hintCredentials)
	}
	c, err := blob.NewSharedKeyCredential(account, key)
	if err != nil {
		return access{}, errors.New("read credentials: the account key cannot be used")
	}
	return access{key: c}, nil
}

func parseSAS(s string) (access, error) {
	s = strings.TrimPrefix(s, "?")
	q, err := url.ParseQuery(s)
	if err != nil || q.Get("sig") == "" || q.Get("sv") == "" {
		return access{}, remote.WithHint(errors.New("read credentials: the SAS cannot be used"), "sv=…&sig=…, the query of a SAS URL alone")
	}
	return access{sas: s}, nil
}

// client opens the container. Signing in is not counted among the store's requests.
func (a access) client(containerURL string, o *container.ClientOptions) (*container.Client, error) {
	switch {
	case a.key != nil:
		return container.NewClientWithSharedKeyCredential(containerURL, a.key, o)
	case a.sas != "":
		return container.NewClientWithNoCredential(containerURL+"?"+a.sas, o)
	}
	identity, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return nil, remote.WithHint(fmt.Errorf("sign in: %s", oneLine(err.Error())), hintCredentials)
	}
	return container.NewClient(containerURL, identity, o)
}

// maxAnswer bounds answers other than blobs' bytes, which have their own bounds.
const maxAnswer = 64 << 20

// transporter carries the SDK's requests. It is not an http.Client: that would
// follow redirects, and repeat the URL, SAS included, in its errors.
type transporter struct{ carrier http.RoundTripper }

func (t transporter) Do(r *http.Request) (*http.Response, error) {
	resp, err := t.carrier.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if classify(r) != remote.Get {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, nil
}

func closeIdle(carrier http.RoundTripper) func() {
	return func() { (&http.Client{Transport: carrier}).CloseIdleConnections() }
}

// classify says what a request is billed as.
func classify(r *http.Request) remote.Kind {
	q := r.URL.Query()
	switch comp := q.Get("comp"); {
	case r.Method == http.MethodPut && comp == "block":
		return remote.Part
	case r.Method == http.MethodPut && q.Get("restype") == "" && (comp == "" || comp == "blocklist"):
		return remote.Put
	case r.Method == http.MethodGet && comp == "list":
		return remote.List
	case r.Method == http.MethodGet && comp == "" && q.Get("restype") == "":
		return remote.Get
	case r.Method == http.MethodHead || r.Method == http.MethodGet:
		return remote.Head
	case r.Method == http.MethodDelete && comp == "":
		return remote.Delete
	}
	return remote.Other
}

func isName(s string, shortest, longest int, also string) bool {
	if len(s) < shortest || len(s) > longest {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(also, r) {
			return false
		}
	}
	return true
}
