//go:build !linux

package hostos

// PhysicalMemory is the machine's memory in bytes, 0 = not known.
func PhysicalMemory() int64 { return 0 }
