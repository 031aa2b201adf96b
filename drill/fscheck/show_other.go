//go:build !linux

package fscheck

import (
	"fmt"

	"github.com/lockstep-backup/lockstep/drill"
)

func show(*drill.Scratch) (string, func() error, error) {
	return "", nil, fmt.Errorf("show it as a file: %w: FUSE, which is Linux's", drill.ErrNoTool)
}
