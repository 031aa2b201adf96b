package s3_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store/s3"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

func TestObjectLock(t *testing.T) {
	sv := newService(t)
	var n atomic.Int64
	storetest.RunLocked(t, func(t *testing.T) storetest.Locked {
		prefix := fmt.Sprintf("locks/%d", n.Add(1))
		location := sv.url("locked", prefix)
		s := sv.open(t, location, s3.Options{})
		return storetest.Locked{
			Store:  s,
			Reopen: func(t *testing.T) storetest.LockingStore { return sv.open(t, location, s3.Options{}) },
			Hide: func(t *testing.T, key string) {
				if err := sv.client.RemoveObject(t.Context(), "locked", prefix+"/"+key, minio.RemoveObjectOptions{}); err != nil {
					t.Fatal(err)
				}
			},
			Cover: func(t *testing.T, key string, data []byte) {
				_, err := sv.client.PutObject(t.Context(), "locked", prefix+"/"+key, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{SendContentMd5: true})
				if err != nil {
					t.Fatal(err)
				}
			},
			Expire: func(t *testing.T, key string, at time.Time) {
				// The lock ends by the server's clock: it is asked until it has.
				tick := time.NewTicker(100 * time.Millisecond)
				defer tick.Stop()
				for {
					status, err := s.LockStatus(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					if status.Now.After(at.Add(time.Second)) {
						return
					}
					<-tick.C
				}
			},
			Until: func(t *testing.T, d time.Duration) time.Time {
				status, err := s.LockStatus(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return status.Now.Add(d)
			},
		}
	})
	judge.Decided(t, "versitygw (S3 server)")
}
