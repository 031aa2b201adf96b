// Package azureblob keeps a store's objects as block blobs in a container of
// Azure Blob Storage.
//
// It is not for accounts with a hierarchical namespace: they list in another
// order, which is noticed and refused. Its invariant: a blob is created by one
// request with If-None-Match: *, and carries in its metadata which attempt made
// it; so a repeated request whose first answer was lost can tell its own blob
// from another writer's.
package azureblob

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

const (
	// wholeSize is the largest object sent in one request; larger ones are sent
	// in blocks. A writer holds wholeSize in memory at most.
	wholeSize      = 64 << 20
	blockSize      = 16 << 20
	parallelBlocks = 3
	// Reads of more than a piece and a half are cut in pieces.
	readPiece     = 4 << 20
	parallelReads = 4

	// attemptName is the metadata that says which attempt made a blob.
	attemptName = "lockstepattempt"
)

// Store is a container, or a prefix in one. Use Open.
type Store struct {
	location  remote.Location
	container *container.Client
	prefix    remote.Location // of names in the container
	tier      *blob.AccessTier
	retry     remote.Policy
	counter   remote.Counter
	sizes     remote.UploadOptions
	close     func()
}

var _ store.Store = (*Store)(nil)

// Close lets go of idle connections.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Counts is what was asked of the service since the store was opened.
func (s *Store) Counts() remote.Counts { return s.counter.Snapshot() }

// CleanTemp finds nothing to do: the service itself forgets the blocks of a
// killed writer after a week, and there is no request that does so earlier
// without a risk for a living one.
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

// read is one request. end: the blob ends with what was read.
func (s *Store) read(ctx context.Context, key string, off int64, p []byte) (n int, end bool, err error) {
	if off > math.MaxInt64-int64(len(p)) {
		return 0, true, nil
	}
	r, err := s.blob(key).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: int64(len(p))}})
	if bloberror.HasCode(err, bloberror.InvalidRange) {
		return 0, true, nil // off is at the end or behind it; the blob is there
	}
	if err != nil {
		return 0, false, err
	}
	defer r.Body.Close()
	var first, last, size int64
	if r.ContentRange == nil {
		return 0, false, errors.New("server answered a read of a range without Content-Range")
	}
	_, err = fmt.Sscanf(*r.ContentRange, "bytes %d-%d/%d", &first, &last, &size)
	if err == nil && first == off && last == off-1 && off >= size {
		return 0, true, nil // how Azurite says it
	}
	if err != nil || first != off || last < first || last >= size || last-first >= int64(len(p)) {
		return 0, false, fmt.Errorf("server answered another range: %.80q", *r.ContentRange)
	}
	want := int(last - first + 1)
	if want < len(p) && last != size-1 {
		return 0, false, fmt.Errorf("server answered a part of the range: %.80q", *r.ContentRange)
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
	p, err := s.properties(ctx, key)
	if err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	if p.ContentLength == nil || *p.ContentLength < 0 {
		return store.Info{}, fmt.Errorf("stat %s: server did not say how large it is", key)
	}
	return store.Info{Key: key, Size: *p.ContentLength}, nil
}

func (s *Store) properties(ctx context.Context, key string) (p blob.GetPropertiesResponse, err error) {
	err = s.do(ctx, func(ctx context.Context, _ int) (err error) {
		p, err = s.blob(key).GetProperties(ctx, nil)
		return err
	})
	return p, err
}

// List implements store.Store. Blobs whose names are no keys are not ours.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	under := s.prefix.Name(prefix)
	var marker *string
	previous := ""
	for {
		var page container.ListBlobsFlatResponse
		if err := s.do(ctx, func(ctx context.Context, _ int) (err error) {
			page, err = s.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &under, Marker: marker}).NextPage(ctx)
			return err
		}); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if page.Segment != nil {
			for _, item := range page.Segment.BlobItems {
				if item == nil || item.Name == nil || item.Properties == nil || item.Properties.ContentLength == nil {
					return fmt.Errorf("list %s: server's listing lacks names or sizes", prefix)
				}
				if *item.Name <= previous {
					return fmt.Errorf("list %s: %w", prefix, remote.WithHint(errOrder, "use an account without a hierarchical namespace"))
				}
				previous = *item.Name
				key, ok := s.prefix.Key(*item.Name)
				if !ok || store.CheckKey(key) != nil || !strings.HasPrefix(key, prefix) {
					continue
				}
				if err := ctx.Err(); err != nil {
					return fmt.Errorf("list %s: %w", prefix, err)
				}
				if err := fn(store.Info{Key: key, Size: *item.Properties.ContentLength}); err != nil {
					return err
				}
			}
		}
		if page.NextMarker == nil || *page.NextMarker == "" {
			return nil
		}
		if marker != nil && *marker == *page.NextMarker {
			return fmt.Errorf("list %s: server gives the same page again", prefix)
		}
		marker = page.NextMarker
	}
}

var errOrder = errors.New("server does not list in the order of names")

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	err := s.do(ctx, func(ctx context.Context, attempt int) error {
		_, err := s.blob(key).Delete(ctx, nil)
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

func (s *Store) blob(key string) *blockblob.Client {
	return s.container.NewBlockBlobClient(s.prefix.Name(key))
}

// do makes requests until one is answered, and translates what is wrong.
func (s *Store) do(ctx context.Context, try func(ctx context.Context, attempt int) error) error {
	return s.retry.Do(ctx, func(ctx context.Context, attempt int) error {
		return translate(try(ctx, attempt))
	}, passes)
}

// upload is one attempt of one writer at creating a blob.
type upload struct {
	s       *Store
	key     string
	client  *blockblob.Client
	attempt string
}

func (s *Store) newUpload(key string) *upload {
	return &upload{s: s, key: key, client: s.blob(key), attempt: strings.ToLower(rand.Text())}
}

func (u *upload) metadata() map[string]*string { return map[string]*string{attemptName: &u.attempt} }

func ifAbsent() *blob.AccessConditions {
	absent := azcore.ETagAny
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &absent}}
}

func octets() *blob.HTTPHeaders {
	t := "application/octet-stream"
	return &blob.HTTPHeaders{BlobContentType: &t}
}

// checksum lets the service refuse what arrives altered. It is MD5, not the
// faster CRC-64, as Azurite knows no other.
func checksum(data remote.Data) blob.TransferValidationType {
	h := md5.New()
	for _, p := range data {
		h.Write(p)
	}
	return blob.TransferValidationTypeMD5(h.Sum(nil))
}

// create does what makes the blob, and finds out whose it is where the answer
// to an earlier request was lost.
func (u *upload) create(ctx context.Context, request func(ctx context.Context) error) error {
	return u.s.do(ctx, func(ctx context.Context, attempt int) error {
		err := creating(request(ctx))
		if attempt == 0 || !errors.Is(err, store.ErrExist) {
			return err
		}
		p, perr := u.client.GetProperties(ctx, nil)
		if perr != nil {
			return perr
		}
		for name, value := range p.Metadata { // names come back in other cases
			if strings.EqualFold(name, attemptName) && value != nil && *value == u.attempt {
				return nil
			}
		}
		return err
	})
}

// Whole implements remote.Upload.
func (u *upload) Whole(ctx context.Context, data remote.Data) error {
	sum := checksum(data)
	return u.create(ctx, func(ctx context.Context) error {
		_, err := u.client.Upload(ctx, streaming.NopCloser(data.Reader()), &blockblob.UploadOptions{
			Metadata: u.metadata(), Tier: u.s.tier, HTTPHeaders: octets(),
			AccessConditions: ifAbsent(), TransactionalValidation: sum,
		})
		return err
	})
}

// Begin implements remote.Upload: blocks need no beginning.
func (u *upload) Begin(context.Context) error { return nil }

// Part implements remote.Upload.
func (u *upload) Part(ctx context.Context, n int, data []byte) error {
	sum := checksum(remote.Data{data})
	return u.s.do(ctx, func(ctx context.Context, _ int) error {
		_, err := u.client.StageBlock(ctx, u.block(n), streaming.NopCloser(bytes.NewReader(data)), &blockblob.StageBlockOptions{TransactionalValidation: sum})
		return creating(err)
	})
}

// Complete implements remote.Upload.
func (u *upload) Complete(ctx context.Context, n int, _ int64) error {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = u.block(i + 1)
	}
	return u.create(ctx, func(ctx context.Context) error {
		_, err := u.client.CommitBlockList(ctx, ids, &blockblob.CommitBlockListOptions{
			Metadata: u.metadata(), Tier: u.s.tier, HTTPHeaders: octets(), AccessConditions: ifAbsent(),
		})
		if bloberror.HasCode(err, bloberror.InvalidBlockList) {
			// Another writer's commit throws away blocks that are not in its list.
			if _, perr := u.client.GetProperties(ctx, nil); perr == nil {
				return store.ErrExist
			}
		}
		return err
	})
}

// Drop implements remote.Upload. There is no request that removes blocks
// without a blob: the service forgets them after a week.
func (u *upload) Drop(context.Context) error { return nil }

// block is a block's id. All ids of a blob must be of one length.
func (u *upload) block(n int) string { return blockID(u.attempt, n) }

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckKey(key)
}
