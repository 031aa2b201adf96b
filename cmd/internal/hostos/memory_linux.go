package hostos

import "golang.org/x/sys/unix"

// PhysicalMemory is the machine's memory in bytes, 0 = not known.
func PhysicalMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0
	}
	return int64(info.Totalram) * int64(info.Unit)
}
