package qemunbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/source"
)

// header is a qcow2 of version 3 with a backing file's name and format.
func header(name, format string) []byte {
	be := binary.BigEndian
	p := make([]byte, 512)
	copy(p, "QFI\xfb")
	be.PutUint32(p[4:], 3)
	be.PutUint64(p[8:], 256)
	be.PutUint32(p[16:], uint32(len(name)))
	be.PutUint32(p[20:], 16)
	be.PutUint32(p[100:], 104)
	be.PutUint32(p[104:], extensionFormat)
	be.PutUint32(p[108:], uint32(len(format)))
	copy(p[112:], format)
	copy(p[256:], name)
	return p
}

func TestReadQcow2(t *testing.T) {
	h, err := readQcow2(bytes.NewReader(header("base.raw", "raw")), 512)
	if err != nil || h.backing != "base.raw" || h.format != "raw" {
		t.Errorf("%+v, %v", h, err)
	}
	be := binary.BigEndian
	for name, change := range map[string]func(p []byte){
		"version 4":               func(p []byte) { be.PutUint32(p[4:], 4) },
		"no backing name":         func(p []byte) { be.PutUint32(p[16:], 0) },
		"long backing name":       func(p []byte) { be.PutUint32(p[16:], 1024) },
		"backing name behind all": func(p []byte) { be.PutUint64(p[8:], 510) },
		"backing name at 2^63":    func(p []byte) { be.PutUint64(p[8:], 1<<63) },
		"NUL in the name":         func(p []byte) { p[257] = 0 },
		"clusters of 256 bytes":   func(p []byte) { be.PutUint32(p[20:], 8) },
		"clusters of 4 GiB":       func(p []byte) { be.PutUint32(p[20:], 32) },
		"encrypted":               func(p []byte) { be.PutUint32(p[32:], 1) },
		"data file":               func(p []byte) { be.PutUint64(p[72:], dataFileBit) },
		"data file's name":        func(p []byte) { be.PutUint32(p[104:], extensionData) },
		"header of 4 GiB":         func(p []byte) { be.PutUint32(p[100:], 1<<32-1) },
		"header of 8":             func(p []byte) { be.PutUint32(p[100:], 8) },
		"extension of 4 GiB":      func(p []byte) { be.PutUint32(p[108:], 1<<32-1) },
		"format of 17 bytes":      func(p []byte) { be.PutUint32(p[108:], 17) },
	} {
		p := header("base.raw", "raw")
		change(p)
		if h, err := readQcow2(bytes.NewReader(p), int64(len(p))); !errors.Is(err, source.ErrUnsupported) {
			t.Errorf("%s: %+v, %v", name, h, err)
		}
	}
}

func FuzzQcow2(f *testing.F) {
	f.Add(header("base.raw", "raw"))
	f.Add(header("json:{}", ""))
	f.Add([]byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := readQcow2(bytes.NewReader(p), int64(len(p)))
		if err == nil && (len(h.backing) > maxBackingName || strings.ContainsRune(h.backing, 0) || len(h.format) > 16) {
			t.Errorf("%+v", h)
		}
		if err == nil {
			_ = h.tables(bytes.NewReader(p), int64(len(p)))
		}
	})
}

func FuzzVMDK(f *testing.F) {
	f.Add([]byte("# Disk DescriptorFile\nRW 2 FLAT \"a\" 0\n"))
	f.Add([]byte("RW 2 ZERO\n"))
	f.Add([]byte("KDMV" + strings.Repeat("\x01", 600)))
	f.Add([]byte("parentFileNameHint=\"x\""))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, p []byte) {
		c := chain{allowed: []string{dir}}
		if err := c.vmdk(bytes.NewReader(p), int64(len(p)), dir); err == nil && bytes.Contains(p[:min(len(p), 512)], []byte("FLAT")) && !bytes.HasPrefix(p, []byte("KDMV")) {
			t.Errorf("files that are not there are taken: %q", p)
		}
	})
}

func FuzzVHD(f *testing.F) {
	f.Add([]byte("conectix" + strings.Repeat("\x00", 504)))
	f.Fuzz(func(_ *testing.T, p []byte) { _ = checkVHD(bytes.NewReader(p), int64(len(p))) })
}
