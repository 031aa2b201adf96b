package image

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	devicesSupported = true
	removeWhileOpen  = true
)

// exclusive claims a device for as long as it is open: the kernel refuses while
// it is mounted or held, and refuses others meanwhile.
func exclusive(st fs.FileInfo) int {
	if st.Mode()&fs.ModeDevice != 0 {
		return unix.O_EXCL
	}
	return 0
}

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) }

func isRefused(err error) bool { return errors.Is(err, unix.EINVAL) }

func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
