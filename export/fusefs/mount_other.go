//go:build !linux

package fusefs

import (
	"fmt"
	"runtime"

	"github.com/lockstep-backup/lockstep/export"
)

// Mount is a recovery point that is mounted; never one here.
type Mount struct{}

// New refuses.
func New(_ *export.Point, dir string, _ Options) (*Mount, error) {
	return nil, fmt.Errorf("mount on %s: there is no such way on %s: %w", dir, runtime.GOOS, ErrUnavailable)
}

// Ended is never closed.
func (*Mount) Ended() <-chan struct{} { return nil }

// Unmount has nothing to do.
func (*Mount) Unmount() (lazy bool, err error) { return false, nil }
