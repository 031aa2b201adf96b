package localdir

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

const nonblockFlag = 0

// syncFolderFile has nothing to do: NTFS journals the names, and a folder
// cannot be flushed by itself.
func syncFolderFile(*os.File) error { return nil }

func maxOpenFiles() int { return 1 << 20 }

func isDeleted(*os.File) bool { return false }

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

func isNotFolder(err error) bool { return errors.Is(err, windows.ERROR_DIRECTORY) }
