package hostos

import (
	"fmt"
	"math"

	"golang.org/x/sys/windows"

	"github.com/lockstep-backup/lockstep/disk"
)

// FreeSpace is what this user can still write where a local store lies.
func FreeSpace(location string) (int64, error) {
	path, _, err := disk.LocalPath(location)
	if err != nil {
		return 0, fmt.Errorf("free space: %w", err)
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", path, err)
	}
	return int64(min(free, math.MaxInt64)), nil
}
