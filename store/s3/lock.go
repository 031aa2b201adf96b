package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// lockConfig is what a bucket says about object lock.
type lockConfig struct {
	enabled bool
	mode    store.LockMode
	period  time.Duration // of new objects
}

func (s *Store) readLockConfig(ctx context.Context) (lockConfig, error) {
	if s.set.lock == "0" {
		return lockConfig{}, nil
	}
	var c lockConfig
	err := s.do(ctx, func(ctx context.Context, _ int) error {
		state, mode, validity, unit, err := s.core.GetObjectLockConfig(ctx, s.set.location.Bucket)
		if err != nil {
			return err
		}
		c = lockConfig{enabled: state == "Enabled"}
		if mode != nil && validity != nil && unit != nil {
			days := min(*validity, 36500)
			if *unit == minio.Years {
				days = min(*validity, 100) * 365
			}
			c.period = time.Duration(days) * 24 * time.Hour
			c.mode = lockMode(*mode)
		}
		return nil
	})
	switch {
	case isCode(err, "ObjectLockConfigurationNotFoundError", "NoSuchObjectLockConfiguration", "NotImplemented", "InvalidBucketState"),
		isStatus(err, http.StatusNotImplemented), errors.Is(err, store.ErrNotExist):
		err = nil
	case errors.Is(err, store.ErrDenied):
		// Taken for a bucket without locks, deletions by others would pass for the truth.
		err = remote.WithHint(fmt.Errorf("ask whether the bucket locks objects: %w", err),
			"allow s3:GetBucketObjectLockConfiguration, or say object-lock=0 in the URL where the bucket surely has none")
	}
	if err == nil && !c.enabled && s.set.lock == "1" {
		err = remote.WithHint(fmt.Errorf("bucket %s: %w", s.set.location.Bucket, store.ErrNoLock), "the URL says object-lock=1: enable object lock when the bucket is made")
	}
	return c, err
}

func lockMode(m minio.RetentionMode) store.LockMode {
	if m == minio.Compliance {
		return store.Compliance
	}
	return store.Governance
}

// version is one version, or delete marker, of an object.
type version struct {
	id     string
	size   int64
	marker bool
}

// maxVersions bounds how many versions of one name are looked at: more is an
// attack, or a bucket that something else writes to.
const maxVersions = 10_000

var errVersions = errors.New("name has too many versions")

// page is how many versions a server lists at once.
const page = 1000

// ordered lists versions by name, the newest of a name first. Some servers put
// the delete markers of a page behind its versions.
func (s *Store) ordered(ctx context.Context, prefix, after string) iter.Seq[minio.ObjectInfo] {
	compare := func(a, b minio.ObjectInfo) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 || a.IsLatest == b.IsLatest {
			return c
		}
		if a.IsLatest {
			return -1
		}
		return 1
	}
	return func(yield func(minio.ObjectInfo) bool) {
		var held []minio.ObjectInfo
		for o := range s.core.ListObjectsIter(ctx, s.set.location.Bucket, minio.ListObjectsOptions{
			Prefix: prefix, Recursive: true, WithVersions: true, StartAfter: after,
		}) {
			if o.Err != nil {
				yield(o)
				return
			}
			at := len(held)
			for at > 0 && compare(held[at-1], o) > 0 {
				at--
			}
			if held = slices.Insert(held, at, o); len(held) > page {
				if !yield(held[0]) {
					return
				}
				held = held[1:]
			}
		}
		for _, o := range held {
			if !yield(o) {
				return
			}
		}
	}
}

// listLocked calls fn for every name below prefix, with its versions, newest
// first, and which of them is the object (-1: none). A failure goes on behind
// the last name that was whole.
func (s *Store) listLocked(ctx context.Context, prefix string, fn func(key string, vs []version, chosen int) error) error {
	done := ""     // the last name handed on
	var stop error // ends the listing, and is not repeated
	err := s.do(ctx, func(ctx context.Context, _ int) error {
		var name string
		var vs []version
		hand := func() bool {
			key, ok := s.set.location.Key(name)
			if len(vs) == 0 || !ok || store.CheckKey(key) != nil {
				return true
			}
			var chosen int
			if chosen, stop = s.choose(ctx, key, vs); stop == nil {
				stop = fn(key, vs, chosen)
			}
			done = name
			return stop == nil
		}
		for o := range s.ordered(ctx, s.set.location.Name(prefix), done) {
			if o.Err != nil {
				return o.Err
			}
			if o.Key != name {
				if o.Key < name || o.Key <= done {
					stop = fmt.Errorf("%w: %q after %q", errOrder, o.Key, max(name, done))
					return nil
				}
				if !hand() {
					return nil
				}
				name, vs = o.Key, nil
			}
			if len(vs) == maxVersions {
				stop = fmt.Errorf("list %s: %q: %w", prefix, o.Key, errVersions)
				return nil
			}
			vs = append(vs, version{o.VersionID, o.Size, o.IsDeleteMarker})
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		hand()
		return nil
	})
	if stop != nil {
		return stop
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	return nil
}

// versionsOf are the versions of one name, newest first, and which of them is
// the object.
func (s *Store) versionsOf(ctx context.Context, key string) (vs []version, chosen int, err error) {
	name := s.name(key)
	err = s.do(ctx, func(ctx context.Context, _ int) error {
		vs = nil
		for o := range s.ordered(ctx, name, "") {
			switch {
			case o.Err != nil:
				return o.Err
			case o.Key != name: // sorts behind
				return nil
			case len(vs) == maxVersions:
				return errVersions
			}
			vs = append(vs, version{o.VersionID, o.Size, o.IsDeleteMarker})
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, -1, err
	}
	chosen, err = s.choose(ctx, key, vs)
	return vs, chosen, err
}

// choose says which of the versions, newest first, is the object: the oldest
// that is locked; the newest where none is, unless that is a delete marker.
func (s *Store) choose(ctx context.Context, key string, vs []version) (int, error) {
	if len(vs) > 1 {
		for i := len(vs) - 1; i >= 0; i-- {
			if vs[i].marker {
				continue
			}
			locked, err := s.locked(ctx, key, vs[i].id)
			if err != nil {
				return -1, err
			}
			if locked {
				return i, nil
			}
		}
	}
	if len(vs) == 0 || vs[0].marker {
		return -1, nil
	}
	return 0, nil
}

// locked says whether a version cannot be deleted now.
func (s *Store) locked(ctx context.Context, key, version string) (bool, error) {
	info, err := s.head(ctx, key, version)
	if err == nil && info.Metadata.Get("X-Amz-Object-Lock-Legal-Hold") == "ON" {
		return true, nil
	}
	var until time.Time
	if err == nil {
		until, _, err = s.retention(ctx, key, version)
	}
	if errors.Is(err, store.ErrNotExist) {
		return false, nil // deleted meanwhile
	}
	return until.After(s.clock.Now()), err
}

// maxRetention bounds the answer to a question for a lock.
const maxRetention = 64 << 10

// retention asks for a version's lock; zero where it never had one. It does not
// rely on the headers of an object: they are silent where a right is missing.
func (s *Store) retention(ctx context.Context, key, version string) (until time.Time, mode store.LockMode, err error) {
	// The SDK insists on a name of the answer's element that servers disagree on.
	var answer struct {
		Mode            minio.RetentionMode
		RetainUntilDate time.Time
	}
	err = s.do(ctx, func(ctx context.Context, _ int) error {
		u, err := s.core.Presign(ctx, http.MethodGet, s.set.location.Bucket, s.name(key), time.Minute, url.Values{"retention": {""}, "versionId": {version}})
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return err
		}
		resp, err := s.http.Do(req)
		if err != nil {
			var failed *url.Error
			if errors.As(err, &failed) {
				err = failed.Err // it would repeat the signed URL
			}
			return err
		}
		defer resp.Body.Close()
		body := xml.NewDecoder(io.LimitReader(resp.Body, maxRetention))
		if resp.StatusCode != http.StatusOK {
			refused := minio.ErrorResponse{StatusCode: resp.StatusCode}
			if err := body.Decode(&refused); err != nil {
				refused.Message = resp.Status
			}
			refused.StatusCode = resp.StatusCode
			return refused
		}
		return body.Decode(&answer)
	})
	switch {
	case isCode(err, "NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"):
		return time.Time{}, "", nil
	case errors.Is(err, store.ErrDenied):
		err = remote.WithHint(err, "allow s3:GetObjectRetention: without, a hidden object could not be told from a deleted one")
	}
	if err != nil || answer.RetainUntilDate.IsZero() {
		return time.Time{}, "", err
	}
	return answer.RetainUntilDate, lockMode(answer.Mode), nil
}

// version is what a read asks for: "" in a bucket without object lock. Of an
// object that was found once the version stays.
func (s *Store) version(ctx context.Context, key string) (string, error) {
	if !s.lock.enabled {
		return "", nil
	}
	s.mu.Lock()
	id, known := s.versions[key]
	s.mu.Unlock()
	if known && !store.IsUncached(ctx) {
		return id, nil
	}
	vs, chosen, err := s.versionsOf(ctx, key)
	if err != nil {
		return "", err
	}
	if chosen < 0 {
		return "", store.ErrNotExist
	}
	if chosen > 0 {
		s.log.Warn("a locked object is hidden by something newer; the locked version is read", "key", key, "newer", chosen)
	}
	s.remember(key, vs[chosen].id)
	return vs[chosen].id, nil
}

// maxRemembered bounds the memory of versions.
const maxRemembered = 4096

func (s *Store) remember(key, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.versions) >= maxRemembered {
		clear(s.versions)
	}
	s.versions[key] = id
}

func (s *Store) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.versions, key)
}

// hidden fails with ErrExist where a locked version lies below a delete marker:
// there the condition of a request would hold.
func (s *Store) hidden(ctx context.Context, key string) error {
	if !s.lock.enabled {
		return nil
	}
	_, chosen, err := s.versionsOf(ctx, key)
	if err != nil {
		return err
	}
	if chosen >= 0 {
		return store.ErrExist
	}
	s.forget(key)
	return nil
}

// removeVersions deletes an object with all that lies above and below it, or
// nothing while it is locked.
func (s *Store) removeVersions(ctx context.Context, key string) error {
	vs, chosen, err := s.versionsOf(ctx, key)
	if err != nil {
		return err
	}
	if chosen < 0 {
		return store.ErrNotExist
	}
	locked, err := s.locked(ctx, key, vs[chosen].id)
	if err != nil {
		return err
	}
	if locked {
		return store.ErrLocked
	}
	s.forget(key)
	// The newest goes last: until then the object is there.
	for i := len(vs) - 1; i >= 0; i-- {
		if err := s.removeVersion(ctx, key, vs[i].id); err != nil && !errors.Is(err, store.ErrNotExist) {
			return err
		}
	}
	return nil
}

// LockStatus implements store.Locker.
func (s *Store) LockStatus(ctx context.Context) (store.LockStatus, error) {
	c, err := s.readLockConfig(ctx) // the answer also tells the clock
	if err != nil {
		return store.LockStatus{}, fmt.Errorf("lock status: %w", err)
	}
	return store.LockStatus{Enabled: c.enabled, Default: c.period, DefaultMode: c.mode, Now: s.clock.Now()}, nil
}

// Retain implements store.Locker.
func (s *Store) Retain(ctx context.Context, key string, until time.Time, mode store.LockMode) error {
	if err := s.retain(ctx, key, until, mode); err != nil {
		return fmt.Errorf("retain %s: %w", key, err)
	}
	return nil
}

func (s *Store) retain(ctx context.Context, key string, until time.Time, mode store.LockMode) error {
	version, is, isMode, err := s.lockOf(ctx, key)
	if err != nil {
		return err
	}
	if rounded := until.Truncate(time.Second); rounded.Before(until) {
		until = rounded.Add(time.Second)
	}
	if isMode == store.Compliance && is.After(s.clock.Now()) {
		mode = store.Compliance
	}
	if !until.After(is) {
		if mode == isMode || isMode == store.Compliance {
			return nil
		}
		until = is
	}
	m := minio.Governance
	if mode == store.Compliance {
		m = minio.Compliance
	}
	until = until.UTC()
	return s.do(ctx, func(ctx context.Context, _ int) error {
		return s.core.PutObjectRetention(ctx, s.set.location.Bucket, s.name(key), minio.PutObjectRetentionOptions{
			Mode: &m, RetainUntilDate: &until, VersionID: version,
		})
	})
}

// lockOf is the version that is the object, and its lock.
func (s *Store) lockOf(ctx context.Context, key string) (version string, until time.Time, mode store.LockMode, err error) {
	if err = check(ctx, key); err == nil && !s.lock.enabled {
		err = store.ErrNoLock
	}
	if err == nil {
		version, err = s.version(ctx, key)
	}
	if err == nil {
		until, mode, err = s.retention(ctx, key, version)
	}
	return version, until, mode, err
}

// RetainedUntil implements store.Locker.
func (s *Store) RetainedUntil(ctx context.Context, key string) (time.Time, error) {
	_, until, _, err := s.lockOf(ctx, key)
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the lock of %s: %w", key, err)
	}
	return until, nil
}

// Shadowed implements store.Locker.
func (s *Store) Shadowed(ctx context.Context, prefix string, fn func(store.Shadow) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if !s.lock.enabled {
		return fmt.Errorf("list %s: %w", prefix, store.ErrNoLock)
	}
	return s.listLocked(ctx, prefix, func(key string, vs []version, chosen int) error {
		if chosen <= 0 {
			return nil
		}
		return fn(store.Shadow{Key: key, Deleted: vs[0].marker, Newer: chosen})
	})
}
