// Package gcs keeps a store's objects in a bucket of Google Cloud Storage, over
// its JSON API.
//
// It does not make buckets: they belong to a project and a place, which the
// store's URL does not know. Its invariant: an object is created with
// ifGenerationMatch=0, and carries in its metadata which attempt made it; so a
// repeated request whose first answer was lost can tell its own object from
// another writer's.
package gcs

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"google.golang.org/api/googleapi"
	"google.golang.org/api/storage/v1"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

const (
	// wholeSize is the largest object sent in one request; larger ones are sent
	// in chunks, one after another. A writer holds both in memory at most.
	wholeSize = 64 << 20
	chunkSize = 16 << 20
	// chunkPatience is how long a chunk is tried.
	chunkPatience = 2 * time.Minute
	// Reads of more than a piece and a half are cut in pieces.
	readPiece     = 4 << 20
	parallelReads = 4

	contentType = "application/octet-stream"
	// attemptName is the metadata that says which attempt made an object.
	attemptName = "lockstep-attempt"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Store is a bucket, or a prefix in one. Use Open.
type Store struct {
	location remote.Location
	service  *storage.Service
	class    string
	retry    remote.Policy
	counter  remote.Counter
	sizes    remote.UploadOptions
	close    func()
}

var _ store.Store = (*Store)(nil)

// Close lets go of idle connections.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Counts is what was asked of the service since the store was opened.
func (s *Store) Counts() remote.Counts { return s.counter.Snapshot() }

// CleanTemp finds nothing to do: the service itself forgets the upload of a
// killed writer after a week, and nobody else can name it.
func (s *Store) CleanTemp(context.Context, time.Duration) (removed int, err error) { return 0, nil }

// Location implements store.Store.
func (s *Store) Location() string { return s.location.String() }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if err := s.newUpload(key).Whole(ctx, remote.Data{data}); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("create %s: %w", key, err)
	}
	return remote.NewWriter(ctx, key, s.newUpload(key), s.sizes), nil
}

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := check(ctx, key); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", key, off)
	}
	if len(p) == 0 {
		_, err := s.Stat(ctx, key)
		return 0, err
	}
	n, err := remote.ReadParallel(ctx, off, p, readPiece, parallelReads, func(ctx context.Context, off int64, p []byte) (int, error) {
		n, end := 0, false
		err := s.do(ctx, func(ctx context.Context, _ int) (err error) {
			n, end, err = s.read(ctx, key, off, p)
			return err
		})
		if err == nil && end {
			err = io.EOF
		}
		return n, err
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	return n, err
}

// read is one request. end: the object ends with what was read.
func (s *Store) read(ctx context.Context, key string, off int64, p []byte) (n int, end bool, err error) {
	if off > math.MaxInt64-int64(len(p)) {
		return 0, true, nil
	}
	call := s.service.Objects.Get(s.location.Bucket, s.location.Name(key)).Context(ctx)
	call.Header().Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
	r, err := call.Download()
	if e, ok := errors.AsType[*googleapi.Error](err); ok && e.Code == http.StatusRequestedRangeNotSatisfiable {
		return 0, true, nil // off is at the end or behind it; the object is there
	}
	if err != nil {
		return 0, false, err
	}
	defer r.Body.Close()
	answered := r.Header.Get("Content-Range")
	if r.StatusCode == http.StatusOK && r.ContentLength == 0 {
		return 0, true, nil // an empty object has no ranges
	}
	var first, last, size int64
	_, err = fmt.Sscanf(answered, "bytes %d-%d/%d", &first, &last, &size)
	if r.StatusCode != http.StatusPartialContent || err != nil ||
		first != off || last < first || last >= size || last-first >= int64(len(p)) {
		return 0, false, fmt.Errorf("server answered another range: status %d, %.80q", r.StatusCode, answered)
	}
	want := int(last - first + 1)
	if want < len(p) && last != size-1 {
		return 0, false, fmt.Errorf("server answered a part of the range: %.80q", answered)
	}
	if _, err := io.ReadFull(r.Body, p[:want]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, false, err
	}
	return want, last == size-1, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := check(ctx, key); err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	var o *storage.Object
	if err := s.do(ctx, func(ctx context.Context, _ int) (err error) {
		o, err = s.service.Objects.Get(s.location.Bucket, s.location.Name(key)).Fields("size").Context(ctx).Do()
		return err
	}); err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	if o.Size > math.MaxInt64 {
		return store.Info{}, fmt.Errorf("stat %s: server says that it is larger than anything", key)
	}
	return store.Info{Key: key, Size: int64(o.Size)}, nil
}

// List implements store.Store. Objects whose names are no keys are not ours.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	token, previous := "", ""
	for {
		var page *storage.Objects
		if err := s.do(ctx, func(ctx context.Context, _ int) (err error) {
			page, err = s.list(s.location.Name(prefix), token).Context(ctx).Do()
			return bucketError(err)
		}); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		for _, item := range page.Items {
			if item == nil || item.Name <= previous {
				return fmt.Errorf("list %s: server does not list in the order of names", prefix)
			}
			previous = item.Name
			key, ok := s.location.Key(item.Name)
			if !ok || store.CheckKey(key) != nil || !strings.HasPrefix(key, prefix) || item.Size > math.MaxInt64 {
				continue
			}
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("list %s: %w", prefix, err)
			}
			if err := fn(store.Info{Key: key, Size: int64(item.Size)}); err != nil {
				return err
			}
		}
		if page.NextPageToken == "" {
			return nil
		}
		if token == page.NextPageToken {
			return fmt.Errorf("list %s: server gives the same page again", prefix)
		}
		token = page.NextPageToken
	}
}

func (s *Store) list(under, token string) *storage.ObjectsListCall {
	call := s.service.Objects.List(s.location.Bucket).Prefix(under).Fields("nextPageToken", "items(name,size)")
	if token != "" {
		call.PageToken(token)
	}
	return call
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	err := s.do(ctx, func(ctx context.Context, attempt int) error {
		err := s.service.Objects.Delete(s.location.Bucket, s.location.Name(key)).Context(ctx).Do()
		if attempt > 0 && errors.Is(translate(err), store.ErrNotExist) {
			return nil // the answer was lost
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// do makes requests until one is answered, and translates what is wrong.
func (s *Store) do(ctx context.Context, try func(ctx context.Context, attempt int) error) error {
	return s.retry.Do(ctx, func(ctx context.Context, attempt int) error {
		return translate(try(ctx, attempt))
	}, passes)
}

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckKey(key)
}

// upload is one attempt of one writer at creating an object.
type upload struct {
	s       *Store
	key     string
	attempt string
	chunks  *chunks
}

func (s *Store) newUpload(key string) *upload {
	return &upload{s: s, key: key, attempt: strings.ToLower(rand.Text())}
}

// insert creates the object if it is absent.
func (u *upload) insert(ctx context.Context, o *storage.Object, media io.Reader, options ...googleapi.MediaOption) *storage.ObjectsInsertCall {
	o.Name, o.ContentType, o.StorageClass = u.s.location.Name(u.key), contentType, u.s.class
	o.Metadata = map[string]string{attemptName: u.attempt}
	return u.s.service.Objects.Insert(u.s.location.Bucket, o).IfGenerationMatch(0).Fields("generation").
		Media(media, append(options, googleapi.ContentType(contentType))...).Context(ctx)
}

// inserted gives an insertion's answer its meaning.
func inserted(_ *storage.Object, err error) error {
	if e, ok := errors.AsType[*googleapi.Error](err); ok && e.Code == http.StatusPreconditionFailed {
		return store.ErrExist
	}
	return bucketError(err)
}

// own tells whether the object that exists is what an earlier request of this
// attempt made, whose answer was lost.
func (u *upload) own(ctx context.Context) (bool, error) {
	o, err := u.s.service.Objects.Get(u.s.location.Bucket, u.s.location.Name(u.key)).Fields("metadata").Context(ctx).Do()
	if err != nil {
		return false, err
	}
	return o.Metadata[attemptName] == u.attempt, nil
}

// Whole implements remote.Upload.
func (u *upload) Whole(ctx context.Context, data remote.Data) error {
	sum := uint32(0)
	for _, p := range data {
		sum = crc32.Update(sum, castagnoli, p)
	}
	crc := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
	return u.s.do(ctx, func(ctx context.Context, attempt int) error {
		err := inserted(u.insert(ctx, &storage.Object{Crc32c: crc}, data.Reader(), googleapi.ChunkSize(0)).Do())
		if attempt == 0 || !errors.Is(err, store.ErrExist) {
			return err
		}
		own, oerr := u.own(ctx)
		if oerr != nil || own {
			return oerr
		}
		return err
	})
}

// chunks carry an object of unknown size to the service: the SDK reads them
// from a pipe, sends and repeats them.
type chunks struct {
	pipe   *io.PipeWriter
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid when done is closed
}

// Begin implements remote.Upload.
func (u *upload) Begin(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	u.chunks = &chunks{pipe: w, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(u.chunks.done)
		call := u.insert(ctx, &storage.Object{}, r, googleapi.ChunkSize(u.s.sizes.Part),
			googleapi.ChunkRetryDeadline(chunkPatience), googleapi.EnableAutoChecksum())
		u.chunks.err = translate(inserted(call.WithRetry(nil, func(err error) bool {
			again, _ := passes(translate(err))
			return again
		}).Do()))
		// Whoever writes now learns why nobody reads.
		_ = r.CloseWithError(orEnded(u.chunks.err))
	}()
	return nil
}

var errEnded = errors.New("server ended the upload early")

func orEnded(err error) error {
	if err == nil {
		return errEnded
	}
	return err
}

// Part implements remote.Upload. Parts come one at a time and in order
// (UploadOptions.Parallel is 1).
func (u *upload) Part(_ context.Context, _ int, data []byte) error {
	_, err := u.chunks.pipe.Write(data)
	return err
}

// Complete implements remote.Upload.
func (u *upload) Complete(ctx context.Context, _ int, _ int64) error {
	_ = u.chunks.pipe.Close() // never fails
	<-u.chunks.done
	defer u.chunks.cancel()
	if u.chunks.err == nil {
		return nil
	}
	// The SDK may have repeated the last chunk behind our back.
	err := u.s.do(ctx, func(ctx context.Context, _ int) error {
		own, err := u.own(ctx)
		if err == nil && !own {
			return store.ErrExist
		}
		return err
	})
	if errors.Is(err, store.ErrNotExist) {
		return u.chunks.err
	}
	return err
}

// Drop implements remote.Upload. The service forgets what was sent after a week.
func (u *upload) Drop(context.Context) error {
	u.chunks.cancel()
	_ = u.chunks.pipe.CloseWithError(context.Canceled)
	<-u.chunks.done
	return nil
}
