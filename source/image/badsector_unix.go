//go:build !linux && !windows

package image

import (
	"errors"
	"syscall"
)

func isBadSector(err error) bool { return errors.Is(err, syscall.EIO) }
