package localdir

import "unsafe"

// alignment suits every device with sectors of at most 4096 bytes.
const alignment = 4096

// isAligned tells whether address, length and offset allow direct I/O.
func isAligned(p []byte, off int64) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(p)))%alignment == 0 &&
		len(p)%alignment == 0 && off%alignment == 0
}
