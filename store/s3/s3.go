// Package s3 keeps a store's objects in a bucket of Amazon S3 or of a server
// that speaks its protocol.
//
// It makes no buckets and sets no policies. Its invariant: an object comes into
// being by a conditional request only (If-None-Match: *), so that of two
// writers one wins; and in a bucket with object lock the oldest locked version
// is the object, whatever was put or marked deleted above it.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// Store is a prefix of a bucket. Its methods are safe for concurrent use.
type Store struct {
	set     settings
	core    minio.Core
	http    *http.Client
	counter remote.Counter
	clock   remote.Clock
	retry   remote.Policy
	log     *slog.Logger

	lock lockConfig // of the bucket

	mu       sync.Mutex
	versions map[string]string // key → version to read, in a bucket with object lock
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Locker = (*Store)(nil)
)

// Open opens s3://BUCKET/PREFIX?parameters, see docs/stores.md. It asks the
// bucket whether it is there and whether it locks objects.
func Open(ctx context.Context, location string, o Options) (*Store, error) {
	s, err := open(ctx, location, o)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, location string, o Options) (*Store, error) {
	set, err := parse(location)
	if err != nil {
		return nil, err
	}
	if set.region == "" {
		set.region = o.Region
	}
	if set.region == "" && set.location.Query.Has("endpoint") {
		set.region = "us-east-1" // what servers of one's own expect
	}
	creds, err := chain(set.location)
	if err != nil {
		return nil, err
	}
	s := &Store{set: set, retry: o.Retry, log: o.Log, versions: map[string]string{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	transport, err := remote.NewTransport(remote.TransportOptions{
		Classify: classify, Counter: &s.counter, Clock: &s.clock, CAFile: set.location.Query.Get("ca"), Base: o.Base, Stall: o.Stall,
	})
	if err != nil {
		return nil, err
	}
	s.http = &http.Client{Transport: transport}
	if err := checkCredentials(creds, s.http); err != nil {
		return nil, err
	}
	lookup := minio.BucketLookupDNS
	if set.pathStyle {
		lookup = minio.BucketLookupPath
	}
	client, err := minio.New(set.host, &minio.Options{
		Creds: creds, Secure: set.secure, Transport: transport, Region: set.region, BucketLookup: lookup,
		MaxRetries: 1, // repeating a conditional request takes thought: see upload
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", remote.ErrLocation, err)
	}
	s.core = minio.Core{Client: client}
	err = s.do(ctx, func(ctx context.Context, _ int) error {
		there, err := client.BucketExists(ctx, set.location.Bucket)
		if err == nil && !there {
			err = minio.ErrorResponse{Code: "NoSuchBucket", StatusCode: http.StatusNotFound, Message: "bucket " + set.location.Bucket}
		}
		if isCode(err, minio.AccessDenied) {
			err = s.whyDenied(ctx, err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.lock, err = s.readLockConfig(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// whyDenied asks with a request whose answer says more: one to HEAD has no body,
// so that a wrong key looks like a missing right.
func (s *Store) whyDenied(ctx context.Context, denied error) error {
	for o := range s.core.ListObjectsIter(ctx, s.set.location.Bucket, minio.ListObjectsOptions{Prefix: s.name(""), MaxKeys: 1}) {
		if unaccepted(o.Err) {
			return o.Err
		}
		break
	}
	return denied
}

// Create opens the store for a new repository. That the server honours
// conditions on requests is tried first: without, two writers could overwrite
// each other, silently.
func Create(ctx context.Context, location string, o Options) (*Store, error) {
	s, err := Open(ctx, location, o)
	if err != nil {
		return nil, err
	}
	if err := s.checkConditions(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("create store: %w", err), s.Close())
	}
	return s, nil
}

// ErrNoConditions says that a server does not honour If-None-Match.
var ErrNoConditions = errors.New("server does not honour conditional requests (If-None-Match)")

// checkConditions puts an object twice.
func (s *Store) checkConditions(ctx context.Context) error {
	if s.lock.enabled && s.lock.period > 0 {
		return nil // it could not be deleted; and whoever locks objects knows conditions
	}
	key := "probe-" + newNonce()
	if err := s.Put(ctx, key, []byte("1")); err != nil {
		return err
	}
	err := s.Put(ctx, key, []byte("2"))
	if derr := s.Delete(context.WithoutCancel(ctx), key); derr != nil && err == nil {
		return derr
	}
	switch {
	case errors.Is(err, store.ErrExist):
		return nil
	case err == nil:
		return remote.WithHint(ErrNoConditions, "this server cannot hold a repository that several writers use safely: take a newer version of it, or another; 'lockstep repository check-store URL' says more")
	}
	return err
}

// Close lets go of idle connections.
func (s *Store) Close() error {
	s.http.CloseIdleConnections()
	return nil
}

// Location is the store's URL, without credentials: none are taken in it.
func (s *Store) Location() string { return s.set.location.String() }

// Counts are the requests made since Open, repeated ones included.
func (s *Store) Counts() remote.Counts { return s.counter.Snapshot() }

// classify tells requests apart as S3 bills them.
func classify(r *http.Request) remote.Kind {
	q := r.URL.Query()
	switch r.Method {
	case http.MethodPut:
		if q.Has("uploadId") {
			return remote.Part
		}
		return remote.Put
	case http.MethodPost:
		return remote.Put
	case http.MethodDelete:
		return remote.Delete
	case http.MethodHead:
		return remote.Head
	case http.MethodGet:
		switch {
		case q.Has("list-type"), q.Has("versions"), q.Has("uploads"):
			return remote.List
		case q.Has("object-lock"), q.Has("location"), q.Has("retention"):
			return remote.Other
		}
		return remote.Get
	}
	return remote.Other
}

// do retries one request, and gives its last error the type that callers act on.
func (s *Store) do(ctx context.Context, try func(ctx context.Context, attempt int) error) error {
	return describe(s.retry.Do(ctx, func(ctx context.Context, attempt int) error {
		err := try(ctx, attempt)
		if err != nil && attempt > 0 {
			s.log.Debug("request to the store failed again", "attempt", attempt+1, "error", err)
		}
		return err
	}, again))
}

func (s *Store) name(key string) string { return s.set.location.Name(key) }

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckKey(key)
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := check(ctx, key); err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	info, err := s.stat(ctx, key)
	if err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	return store.Info{Key: key, Size: info.Size}, nil
}

func (s *Store) stat(ctx context.Context, key string) (info minio.ObjectInfo, err error) {
	version, err := s.version(ctx, key)
	if err != nil {
		return info, err
	}
	return s.head(ctx, key, version)
}

func (s *Store) head(ctx context.Context, key, version string) (info minio.ObjectInfo, err error) {
	err = s.do(ctx, func(ctx context.Context, _ int) (err error) {
		info, err = s.core.StatObject(ctx, s.set.location.Bucket, s.name(key), minio.StatObjectOptions{VersionID: version})
		return err
	})
	return info, err
}

// Sizes from which a read is split.
const readPiece = 8 << 20

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := check(ctx, key); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", key, off)
	}
	version, err := s.version(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	if len(p) == 0 { // a range cannot be empty
		info, err := s.head(ctx, key, version)
		switch {
		case err != nil:
			return 0, fmt.Errorf("read %s: %w", key, err)
		case off >= info.Size:
			return 0, io.EOF
		}
		return 0, nil
	}
	n, err := remote.ReadParallel(ctx, off, p, readPiece, s.set.upload.Parallel, func(ctx context.Context, off int64, p []byte) (int, error) {
		return s.readRange(ctx, key, version, off, p)
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	return n, err
}

// readRange reads one range; what was received before a failure is not asked
// for again.
func (s *Store) readRange(ctx context.Context, key, version string, off int64, p []byte) (int, error) {
	got := 0
	end := false
	err := s.do(ctx, func(ctx context.Context, _ int) error {
		n, last, err := s.get(ctx, key, version, off+int64(got), p[got:])
		got += n
		end = last
		return err
	})
	switch {
	case err != nil && isCode(err, "InvalidRange") && got == 0:
		return 0, io.EOF // off is at or beyond the end
	case err != nil:
		return 0, err
	case end:
		return got, io.EOF
	}
	return got, nil
}

var errRange = errors.New("server sent another range than it was asked for")

// get asks once. last says that the object ends with the bytes read.
func (s *Store) get(ctx context.Context, key, version string, off int64, p []byte) (n int, last bool, err error) {
	o := minio.GetObjectOptions{VersionID: version}
	if err := o.SetRange(off, off+int64(len(p))-1); err != nil {
		return 0, false, err
	}
	body, _, header, err := s.core.GetObject(ctx, s.set.location.Bucket, s.name(key), o)
	if err != nil {
		return 0, false, err
	}
	defer body.Close()
	first, size, err := contentRange(header.Get("Content-Range"))
	if err != nil || first != off || size <= off {
		return 0, false, errRange
	}
	want := int(min(int64(len(p)), size-off))
	n, err = io.ReadFull(body, p[:want])
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return n, false, err
	}
	return n, off+int64(want) == size, nil
}

// contentRange reads "bytes FIRST-LAST/SIZE".
func contentRange(s string) (first, size int64, err error) {
	spec, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(spec, "/")
	from, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, errRange
	}
	first, err = strconv.ParseInt(from, 10, 64)
	if err == nil {
		size, err = strconv.ParseInt(total, 10, 64)
	}
	if err != nil || first < 0 || size < 0 {
		return 0, 0, errRange
	}
	return first, size, nil
}

var errOrder = errors.New("server lists objects out of order")

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	if s.lock.enabled {
		return s.listLocked(ctx, prefix, func(key string, vs []version, chosen int) error {
			if chosen < 0 {
				return nil
			}
			return fn(store.Info{Key: key, Size: vs[chosen].size})
		})
	}
	return s.walk(ctx, prefix, func(key string, o minio.ObjectInfo) error {
		return fn(store.Info{Key: key, Size: o.Size})
	})
}

// walk calls fn for what the server lists below prefix; names that are no keys
// are passed over. A failure between two pages goes on behind the last name.
func (s *Store) walk(ctx context.Context, prefix string, fn func(key string, o minio.ObjectInfo) error) error {
	under := s.set.location.Name(prefix)
	after := ""
	var stop error // from fn: ends the listing, and is not repeated
	err := s.do(ctx, func(ctx context.Context, _ int) error {
		resume := after
		for o := range s.core.ListObjectsIter(ctx, s.set.location.Bucket, minio.ListObjectsOptions{
			Prefix: under, Recursive: true, StartAfter: resume,
		}) {
			if o.Err != nil {
				return o.Err
			}
			if o.Key <= after && after != "" {
				stop = fmt.Errorf("%w: %q after %q", errOrder, o.Key, after)
				return nil
			}
			after = o.Key
			key, ok := s.set.location.Key(o.Key)
			if !ok || store.CheckKey(key) != nil {
				continue
			}
			if stop = fn(key, o); stop != nil {
				return nil
			}
		}
		return ctx.Err()
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	if err := s.remove(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

func (s *Store) remove(ctx context.Context, key string) error {
	if s.lock.enabled {
		return s.removeVersions(ctx, key)
	}
	// A deletion of nothing succeeds on S3; the contract wants to know.
	if _, err := s.head(ctx, key, ""); err != nil {
		return err
	}
	return s.removeVersion(ctx, key, "")
}

func (s *Store) removeVersion(ctx context.Context, key, version string) error {
	return s.do(ctx, func(ctx context.Context, attempt int) error {
		err := s.core.RemoveObject(ctx, s.set.location.Bucket, s.name(key), minio.RemoveObjectOptions{VersionID: version})
		if attempt > 0 && isCode(err, "NoSuchKey", "NoSuchVersion") {
			return nil // the lost answer was a success
		}
		return err
	})
}

// CleanTemp drops uploads that were begun longer than age ago and neither
// completed nor aborted: their parts are stored, and billed, unseen.
func (s *Store) CleanTemp(ctx context.Context, age time.Duration) (removed int, err error) {
	type upload struct{ name, id string }
	var old []upload
	err = s.do(ctx, func(ctx context.Context, _ int) error {
		old = nil
		for u := range s.core.ListIncompleteUploads(ctx, s.set.location.Bucket, s.set.location.Name(""), true) {
			if u.Err != nil {
				return u.Err
			}
			key, ok := s.set.location.Key(u.Key)
			if ok && store.CheckKey(key) == nil && s.clock.Now().Sub(u.Initiated) >= age {
				old = append(old, upload{u.Key, u.UploadID})
			}
		}
		return ctx.Err()
	})
	for _, u := range old {
		if err != nil {
			break
		}
		err = s.do(ctx, func(ctx context.Context, _ int) error {
			err := s.core.AbortMultipartUpload(ctx, s.set.location.Bucket, u.name, u.id)
			if isCode(err, "NoSuchUpload") {
				return nil
			}
			return err
		})
		if err == nil {
			removed++
		}
	}
	if err != nil {
		return removed, fmt.Errorf("drop incomplete uploads: %w", err)
	}
	return removed, nil
}
