//go:build unix

package localdir

import (
	"errors"
	"os"
	"syscall"
)

// nonblockFlag keeps a FIFO that somebody put into the folder from hanging us.
const nonblockFlag = syscall.O_NONBLOCK

func syncFolderFile(d *os.File) error { return d.Sync() }

// isDeleted tells whether an open file has lost all its names.
func isDeleted(f *os.File) bool {
	st, err := f.Stat()
	if err != nil {
		return true
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && sys.Nlink == 0
}

// maxOpenFiles is how many files this process may have open.
func maxOpenFiles() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 256
	}
	return int(min(uint64(limit.Cur), 1<<20))
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isNotFolder recognises a path that leads through a file: nothing can be there.
func isNotFolder(err error) bool { return errors.Is(err, syscall.ENOTDIR) }
