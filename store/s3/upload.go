package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/minio/minio-go/v7"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
)

// maxParts is how many parts an object may have.
const maxParts = 10_000

// nonceHeader marks an object with who wrote it: a writer whose answer was lost
// asks the object it meets.
const nonceHeader = "X-Amz-Meta-Lockstep-Write"

const checksumHeader = "X-Amz-Checksum-Crc32c"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	var err error
	if len(data) <= s.set.upload.Whole {
		err = s.newUpload(key).Whole(ctx, remote.Data{data})
	} else {
		w := remote.NewWriter(ctx, key, s.newUpload(key), s.set.upload)
		if _, err = w.Write(data); err == nil {
			err = w.Commit()
		} else {
			_ = w.Abort()
		}
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("create %s: %w", key, err)
	}
	return remote.NewWriter(ctx, key, s.newUpload(key), s.set.upload), nil
}

func (s *Store) newUpload(key string) *upload {
	return &upload{s: s, key: key, nonce: newNonce(), parts: map[int]minio.CompletePart{}}
}

func newNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// upload is one object being written.
type upload struct {
	s     *Store
	key   string
	nonce string
	id    string

	mu    sync.Mutex
	parts map[int]minio.CompletePart
}

var _ remote.Upload = (*upload)(nil)

// options of the request that creates the object.
func (u *upload) options(metadata map[string]string) minio.PutObjectOptions {
	o := minio.PutObjectOptions{
		UserMetadata: map[string]string{nonceHeader: u.nonce}, StorageClass: u.s.set.class, ServerSideEncryption: u.s.set.sse,
		// The signature covers the checksum's header, and that the content; a
		// second pass over the bytes would say nothing more about accidents.
		DisableContentSha256: true,
	}
	maps.Copy(o.UserMetadata, metadata)
	return o
}

// Whole implements remote.Upload.
func (u *upload) Whole(ctx context.Context, data remote.Data) error {
	if err := u.s.hidden(ctx, u.key); err != nil {
		return err
	}
	o := u.options(map[string]string{checksumHeader: checksum(data...)})
	o.SetMatchETagExcept("*")
	return u.s.do(ctx, func(ctx context.Context, attempt int) error {
		_, err := u.s.core.PutObject(ctx, u.s.set.location.Bucket, u.s.name(u.key), data.Reader(), data.Size(), "", "", o)
		if attempt > 0 && exists(err) {
			return u.own(ctx, err, data)
		}
		return err
	})
}

func exists(err error) bool { return errors.Is(describe(err), store.ErrExist) }

// own tells whether the object that a repeated request met is the one that the
// first made, whose answer was lost. met stands where it is not.
func (u *upload) own(ctx context.Context, met error, data remote.Data) error {
	info, err := u.s.core.StatObject(ctx, u.s.set.location.Bucket, u.s.name(u.key), minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	if nonce := info.Metadata.Get(nonceHeader); nonce != "" {
		if nonce != u.nonce {
			return met
		}
		return nil
	}
	// A server that keeps no metadata: the bytes decide.
	if data == nil || info.Size != data.Size() {
		return met
	}
	same, err := u.sameBytes(ctx, data)
	if err == nil && !same {
		err = met
	}
	return err
}

func (u *upload) sameBytes(ctx context.Context, data remote.Data) (bool, error) {
	r, piece := data.Reader(), make([]byte, min(data.Size(), 1<<20))
	got := make([]byte, len(piece))
	for off := int64(0); off < data.Size(); {
		n, err := r.ReadAt(piece, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if _, _, err := u.s.get(ctx, u.key, "", off, got[:n]); err != nil {
			return false, err
		}
		if !bytes.Equal(piece[:n], got[:n]) {
			return false, nil
		}
		off += int64(n)
	}
	return true, nil
}

// Begin implements remote.Upload.
func (u *upload) Begin(ctx context.Context) error {
	return u.s.do(ctx, func(ctx context.Context, _ int) (err error) {
		u.id, err = u.s.core.NewMultipartUpload(ctx, u.s.set.location.Bucket, u.s.name(u.key), u.options(map[string]string{
			"X-Amz-Checksum-Algorithm": "CRC32C",
		}))
		return err
	})
}

// Part implements remote.Upload.
func (u *upload) Part(ctx context.Context, n int, data []byte) error {
	if n > maxParts {
		return remote.WithHint(fmt.Errorf("object has more than %d parts", maxParts), "part-size=… in the repository's URL makes them larger")
	}
	sum := checksum(data)
	var part minio.ObjectPart
	err := u.s.do(ctx, func(ctx context.Context, _ int) (err error) {
		part, err = u.s.core.PutObjectPart(ctx, u.s.set.location.Bucket, u.s.name(u.key), u.id, n, bytes.NewReader(data), int64(len(data)),
			minio.PutObjectPartOptions{CustomHeader: http.Header{checksumHeader: []string{sum}}, DisableContentSha256: true})
		return err
	})
	if err != nil {
		return fmt.Errorf("part %d: %w", n, err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts[n] = minio.CompletePart{PartNumber: n, ETag: part.ETag, ChecksumCRC32C: sum}
	return nil
}

// Complete implements remote.Upload. Some servers ignore the condition here; on
// those an object that was there is seen beforehand, and two that are completed
// at the same instant are not told apart (check-store finds such servers).
// Objects this large carry random names, so that nothing depends on it.
func (u *upload) Complete(ctx context.Context, n int, size int64) error {
	if err := u.s.hidden(ctx, u.key); err != nil {
		return err
	}
	if !u.s.lock.enabled {
		if _, err := u.s.head(ctx, u.key, ""); err == nil {
			return store.ErrExist
		} else if !errors.Is(err, store.ErrNotExist) {
			return err
		}
	}
	parts := make([]minio.CompletePart, 0, n)
	for _, i := range slices.Sorted(maps.Keys(u.parts)) {
		parts = append(parts, u.parts[i])
	}
	if len(parts) != n {
		return fmt.Errorf("%d parts of %d were sent", len(parts), n)
	}
	var o minio.PutObjectOptions
	o.SetMatchETagExcept("*")
	err := u.s.do(ctx, func(ctx context.Context, attempt int) error {
		_, err := u.s.core.CompleteMultipartUpload(ctx, u.s.set.location.Bucket, u.s.name(u.key), u.id, parts, o)
		if attempt > 0 && (isCode(err, "NoSuchUpload") || exists(err)) {
			return u.own(ctx, err, nil)
		}
		return err
	})
	if err != nil {
		return err
	}
	info, err := u.s.head(ctx, u.key, "")
	if err != nil {
		return fmt.Errorf("look at the completed object: %w", err)
	}
	if info.Size != size {
		return fmt.Errorf("completed object has %d bytes, %d were sent", info.Size, size)
	}
	return nil
}

// Drop implements remote.Upload.
func (u *upload) Drop(ctx context.Context) error {
	return u.s.do(ctx, func(ctx context.Context, _ int) error {
		err := u.s.core.AbortMultipartUpload(ctx, u.s.set.location.Bucket, u.s.name(u.key), u.id)
		if isCode(err, "NoSuchUpload") {
			return nil
		}
		return err
	})
}

// checksum is the CRC-32C of the pieces, as a header carries it; the server
// refuses what arrives otherwise.
func checksum(pieces ...[]byte) string {
	sum := uint32(0)
	for _, p := range pieces {
		sum = crc32.Update(sum, castagnoli, p)
	}
	return base64.StdEncoding.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}
