//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package embedded

import (
	"errors"
	"os"
)

// lockFile refuses: without a lock two processes would lose each other's changes.
func lockFile(*os.File, bool) error { return errors.ErrUnsupported }
