package s3_test

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/s3"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

// service is a real server with two buckets: "plain", and "locked" with object lock.
type service struct {
	judge.S3Server
	client      *minio.Client
	credentials string
}

func newService(t *testing.T) service {
	t.Helper()
	return serviceOf(t, judge.Versitygw(t))
}

func serviceOf(t *testing.T, server judge.S3Server) service {
	t.Helper()
	sv := service{S3Server: server, credentials: filepath.Join(t.TempDir(), "credentials")}
	text := fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", sv.AccessKey, sv.Secret)
	if err := os.WriteFile(sv.credentials, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	sv.client, err = minio.New(strings.TrimPrefix(sv.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(sv.AccessKey, sv.Secret, ""), BucketLookup: minio.BucketLookupPath, Region: "us-east-1",
	})
	if err != nil {
		t.Fatal(err)
	}
	for bucket, locked := range map[string]bool{"plain": false, "locked": true} {
		if err := sv.client.MakeBucket(t.Context(), bucket, minio.MakeBucketOptions{ObjectLocking: locked}); err != nil {
			t.Fatal(err)
		}
	}
	return sv
}

func (sv service) url(bucket, prefix string, more ...string) string {
	q := url.Values{"endpoint": {sv.Endpoint}, "credentials-file": {sv.credentials}}
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return "s3://" + bucket + "/" + prefix + "?" + q.Encode()
}

func (sv service) open(t *testing.T, location string, o s3.Options) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), location, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// outside is a server that runs already: LOCKSTEP_S3 is its URL with access key
// and secret, http://KEY:SECRET@HOST:PORT. Buckets "plain" and "locked" are made there.
func outside(t *testing.T) judge.S3Server {
	t.Helper()
	u, err := url.Parse(os.Getenv("LOCKSTEP_S3"))
	if err != nil || u.Host == "" || u.User == nil {
		t.Fatal("LOCKSTEP_S3 is no http://KEY:SECRET@HOST:PORT")
	}
	secret, _ := u.User.Password()
	return judge.S3Server{Program: "server named by LOCKSTEP_S3", Endpoint: u.Scheme + "://" + u.Host, AccessKey: u.User.Username(), Secret: secret}
}

func TestConformance(t *testing.T) {
	servers := map[string]func(testing.TB) judge.S3Server{"versitygw": judge.Versitygw}
	if os.Getenv("LOCKSTEP_SOAK") != "" {
		servers["minio"] = judge.Minio
	}
	if os.Getenv("LOCKSTEP_S3") != "" {
		servers["outside"] = func(testing.TB) judge.S3Server { return outside(t) }
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) { conforms(t, serviceOf(t, start(t))) })
	}
}

func conforms(t *testing.T, sv service) {
	for _, bucket := range []string{"plain", "locked"} {
		t.Run(bucket, func(t *testing.T) {
			var n atomic.Int64
			storetest.Run(t, func(t *testing.T) store.Store {
				// Small parts, so that objects of a few MiB are of several.
				return sv.open(t, sv.url(bucket, fmt.Sprintf("suite/%d", n.Add(1)), "part-size", "5M", "put-size", "10M"), s3.Options{})
			})
			storetest.RunReopen(t, func(t *testing.T) store.Store { return sv.open(t, sv.url(bucket, "reopen"), s3.Options{}) })
			judge.Decided(t, sv.Program+" (S3 server)")
		})
	}
}
