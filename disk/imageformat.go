package disk

import (
	"path/filepath"
	"strings"
)

// Formats of image files, as QEMU calls them.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
	FormatVMDK  = "vmdk"
	FormatVHD   = "vpc"
	FormatVHDX  = "vhdx"
)

// ImageFormat is the format that a file's name says it has, "" where it says
// nothing. The content is never asked: what a guest wrote into a raw disk must
// not choose how the disk is read.
func ImageFormat(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".raw", ".img", ".bin", ".dd":
		return FormatRaw
	case ".qcow2":
		return FormatQcow2
	case ".vmdk":
		return FormatVMDK
	case ".vhd", ".vpc":
		return FormatVHD
	case ".vhdx":
		return FormatVHDX
	default:
		return ""
	}
}
