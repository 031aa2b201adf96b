package s3

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// Scheme begins this adapter's URLs.
const Scheme = "s3"

// credentialsHint says where credentials belong.
const credentialsHint = "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from ~/.aws/credentials, from the file that credentials-file=FILE names, or from the machine's role"

var parameters = []string{
	"endpoint", "region", "path-style", "ca", "credentials-file", "profile", "storage-class", "sse", "object-lock",
	"part-size", "put-size", "parallel",
}

const (
	defaultPart     = 16 << 20
	defaultWhole    = 64 << 20
	defaultParallel = 3

	lowestPart   = 5 << 20 // S3's own bound
	highestPart  = 512 << 20
	highestWhole = 1 << 30
)

// settings are what a URL says.
type settings struct {
	location  remote.Location
	host      string // of the endpoint, with the port
	secure    bool
	pathStyle bool
	lock      string // "", "0" or "1"
	region    string
	sse       encrypt.ServerSide
	class     string
	upload    remote.UploadOptions
}

// parse reads s3://BUCKET/PREFIX?parameters.
func parse(raw string) (settings, error) {
	l, err := remote.ParseLocation(raw, Scheme, parameters, credentialsHint)
	if err != nil {
		return settings{}, err
	}
	s := settings{location: l, host: "s3.amazonaws.com", secure: true, region: l.Query.Get("region"), class: l.Query.Get("storage-class")}
	if e := l.Query.Get("endpoint"); e != "" {
		if s.host, s.secure, err = endpoint(e); err != nil {
			return settings{}, err
		}
	}
	// Servers of one's own rarely have a name for each bucket.
	if s.pathStyle, err = l.Switch("path-style", l.Query.Has("endpoint")); err != nil {
		return settings{}, err
	}
	if s.sse, err = serverSide(l.Query.Get("sse")); err != nil {
		return settings{}, err
	}
	if _, err := l.Switch("object-lock", false); err != nil {
		return settings{}, err
	}
	s.lock = l.Query.Get("object-lock")
	part, err := l.Size("part-size", defaultPart, lowestPart, highestPart)
	if err != nil {
		return settings{}, err
	}
	whole, err := l.Size("put-size", max(defaultWhole, part), part, highestWhole)
	if err != nil {
		return settings{}, err
	}
	parallel, err := l.Size("parallel", defaultParallel, 1, 64)
	if err != nil {
		return settings{}, err
	}
	s.upload = remote.UploadOptions{Whole: int(whole), Part: int(part), Parallel: int(parallel), Buffers: &remote.Buffers{}}
	return s, nil
}

// endpoint reads https://HOST[:PORT]; http:// only where it is said.
func endpoint(raw string) (host string, secure bool, err error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Host == "", u.Scheme != "https" && u.Scheme != "http", strings.Trim(u.Path, "/") != "", u.RawQuery != "", u.Fragment != "":
		return "", false, remote.WithHint(fmt.Errorf("%w: endpoint is not https://HOST:PORT", remote.ErrLocation), "for example endpoint=https://s3.example.org:9000")
	case u.User != nil:
		return "", false, remote.WithHint(fmt.Errorf("%w: endpoint holds credentials", remote.ErrLocation), credentialsHint)
	}
	return u.Host, u.Scheme == "https", nil
}

func serverSide(s string) (encrypt.ServerSide, error) {
	id, isKMS := strings.CutPrefix(s, "kms:")
	switch {
	case s == "":
		return nil, nil
	case s == "aes256":
		return encrypt.NewSSE(), nil
	case isKMS && id != "":
		return encrypt.NewSSEKMS(id, nil)
	}
	return nil, remote.WithHint(fmt.Errorf("%w: sse is neither aes256 nor kms:KEY", remote.ErrLocation), "sse=aes256, or sse=kms: and the key's ARN")
}

// Options are what the environment supplies.
type Options struct {
	Log *slog.Logger
	// Region is used where the URL names none; may be empty.
	Region string
	// Base carries the requests, for tests; nil = the network.
	Base http.RoundTripper
	// Stall ends requests that make no progress; 0 = remote.DefaultStall.
	Stall time.Duration
	// Retry is the policy of repetition; zero = remote.DefaultPolicy.
	Retry remote.Policy
}

// metadataTimeout bounds the question to a cloud's metadata service, which on
// other machines nobody answers.
const metadataTimeout = 3 * time.Second

// chain is where credentials are looked for, in this order.
func chain(l remote.Location) (*credentials.Credentials, error) {
	file, profile := l.Query.Get("credentials-file"), l.Query.Get("profile")
	if file != "" {
		if !filepath.IsAbs(file) {
			return nil, remote.WithHint(fmt.Errorf("%w: credentials-file is not an absolute path", remote.ErrLocation), "credentials-file=/etc/lockstep/s3-credentials, in the form of ~/.aws/credentials")
		}
		info, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("read credentials: %w", err)
		}
		if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			return nil, remote.WithHint(fmt.Errorf("read credentials: others can read %s", file), "chmod 600 "+file)
		}
		return credentials.NewFileAWSCredentials(file, profile), nil
	}
	providers := []credentials.Provider{&credentials.FileAWSCredentials{Profile: profile}}
	if profile == "" {
		client := &http.Client{Transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: metadataTimeout}).DialContext,
			ResponseHeaderTimeout: metadataTimeout,
		}, Timeout: 2 * metadataTimeout}
		providers = append([]credentials.Provider{&credentials.EnvAWS{}}, append(providers, &credentials.IAM{Client: client})...)
	}
	return credentials.NewChainCredentials(providers), nil
}

// checkCredentials fails where there are none, instead of asking anonymously.
func checkCredentials(c *credentials.Credentials, client *http.Client) error {
	v, err := c.GetWithContext(&credentials.CredContext{Client: client})
	if err == nil && (v.AccessKeyID == "" || v.SecretAccessKey == "") {
		err = errors.New("none found")
	}
	if err != nil {
		return remote.WithHint(fmt.Errorf("%w: credentials: %w", store.ErrDenied, err), credentialsHint)
	}
	return nil
}
