//go:build unix

package hostos

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
)

// FreeSpace is what an ordinary user can still write where a local store lies.
func FreeSpace(location string) (int64, error) {
	path, _, err := disk.LocalPath(location)
	if err != nil {
		return 0, fmt.Errorf("free space: %w", err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	if free := float64(s.Bavail) * float64(s.Bsize); free < math.MaxInt64 {
		return int64(s.Bavail) * int64(s.Bsize), nil
	}
	return math.MaxInt64, nil
}
