package restore_test

import (
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/target/image"
)

// Somebody elsewhere deletes the recovery point that is being restored, and
// reclaims its bytes: that is no damage, and nothing is made up for it.
func TestDeletedMeanwhile(t *testing.T) {
	s := newStored(t)
	if err := s.writer.Delete(t.Context(), s.manifest.Machine, s.manifest.Point, "test"); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"seg/", "map/"} {
		var keys []string
		if err := s.mem.List(t.Context(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			if err := s.mem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		for _, keepGoing := range []bool{false, true} {
			req := s.request(image.Opener{}.Open, restore.Target{Disk: "vda", Target: filepath.Join(t.TempDir(), "a")})
			req.KeepGoing = keepGoing
			done, err := restore.Run(t.Context(), req)
			if !errors.Is(err, restore.ErrDeleted) || errors.Is(err, repository.ErrDamaged) || len(done) != 0 {
				t.Errorf("without %s, keep going %v: %+v, %v", prefix, keepGoing, done, err)
			}
			_, err = restore.Stream(t.Context(), restore.StreamRequest{Repository: s.repo, Manifest: s.manifest, Disk: "vda", To: io.Discard, KeepGoing: keepGoing})
			if !errors.Is(err, restore.ErrDeleted) {
				t.Errorf("stream without %s, keep going %v: %v", prefix, keepGoing, err)
			}
		}
	}
}
