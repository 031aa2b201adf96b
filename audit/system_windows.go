package audit

import (
	"os"

	"golang.org/x/sys/windows"
)

// flock waits for the lock; closing the file gives it back.
func flock(f *os.File, exclusive bool) error {
	flags := uint32(0)
	if exclusive {
		flags = windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	err := windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	return os.NewSyscallError("LockFileEx", err)
}

// syncFolder has nothing to do: NTFS journals the names, and a folder cannot
// be flushed by itself.
func syncFolder(string) error { return nil }
