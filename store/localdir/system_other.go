//go:build !linux

package localdir

import (
	"errors"
	"os"
)

// directFlag of 0: reading and writing go through the page cache.
const directFlag = 0

func clearDirect(*os.File) error { return nil }

func isRefusedDirect(error) bool { return false }

func renameNoReplace(*os.File, string, *os.File, string) error {
	return errors.New("file system has no hard links, and no rename that spares an existing file")
}
