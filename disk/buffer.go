package disk

import "unsafe"

// AlignedBuffer returns n zero bytes whose address is a multiple of PageSize,
// as reading and writing around the page cache needs.
func AlignedBuffer(n int) []byte {
	if n <= 0 {
		return nil
	}
	buf := make([]byte, n+PageSize)
	// The garbage collector does not move heap objects, so the address holds.
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))) & (PageSize - 1)
	return buf[skip : skip+n : skip+n]
}

// IsAligned reports whether offset, length and address of p are multiples of PageSize.
func IsAligned(p []byte, off int64) bool {
	return (off|int64(len(p))|int64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))&(PageSize-1) == 0
}
