package qemunbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// image is one image of a chain, looked at.
type image struct {
	path    string // absolute, without symbolic links
	format  string
	size    int64 // of the file
	backing *image
	extents []extent // of a VMDK whose description is a file of its own
}

// extent is a file that holds a piece of a disk.
type extent struct {
	path       string
	size       int64 // of the file
	start, end int64 // on the disk
	sparse     bool
}

// file is one that QEMU will open.
type file struct {
	path string
	info fs.FileInfo
}

// chain looks at an image and at what it names.
type chain struct {
	backing []string // folders that are allowed beside the image's own
	allowed []string // the same and the image's own, without symbolic links
	files   []file
	extents []extent // of the VMDK that is looked at
}

// refused says that an image is not read, and why.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %s", source.ErrUnsupported, fmt.Sprintf(format, args...))
}

// look looks at the image that the user named, and everything below it.
func (c *chain) look(path, format string) (*image, error) {
	if !slices.Contains(Formats, format) {
		return nil, refused("format %q is not one of %s", format, strings.Join(Formats, ", "))
	}
	for _, dir := range append([]string{filepath.Dir(path)}, c.backing...) {
		real, err := realPath(dir)
		if err != nil {
			return nil, fmt.Errorf("folder %s: %w", dir, err)
		}
		c.allowed = append(c.allowed, real)
	}
	return c.image(path, format)
}

// realPath is the path from the root without symbolic links.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", source.ErrNotFound
	}
	return path, err
}

// open opens a file that QEMU is going to open, if it is where it may be.
// first: the user named it, so it may be a link to anywhere.
func (c *chain) open(path string, first bool) (*os.File, error) {
	real, err := realPath(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !first && !slices.Contains(c.allowed, filepath.Dir(real)) {
		return nil, refused("it names %s, which is in another folder; --allow-backing DIR allows one", real)
	}
	before, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	if what := disk.NotADisk(before.Mode(), false); what != "" {
		return nil, refused("%s is %s, not an image file", real, what)
	}
	if len(c.files) >= maxChain {
		return nil, refused("it is made of more than %d files, or its files name each other in a circle", maxChain)
	}
	f, err := os.Open(real)
	if err != nil {
		return nil, err
	}
	now, err := f.Stat()
	if err == nil && !os.SameFile(before, now) {
		err = fmt.Errorf("%s was replaced meanwhile: %w", real, source.ErrSizeChanged)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c.files = append(c.files, file{real, now})
	return f, nil
}

func (c *chain) image(path, format string) (*image, error) {
	f, err := c.open(path, len(c.files) == 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	i := &image{path: f.Name(), format: format}
	size := c.files[len(c.files)-1].info.Size()
	i.size = size
	switch format {
	case disk.FormatQcow2:
		var h qcow2
		if h, err = readQcow2(f, size); err == nil {
			err = h.tables(f, size)
		}
		if err == nil && h.backing != "" {
			i.backing, err = c.below(path, h)
		}
	case disk.FormatVMDK:
		c.extents = nil
		err = c.vmdk(f, size, filepath.Dir(i.path))
		i.extents = c.extents
	case disk.FormatVHD:
		err = checkVHD(f, size)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return i, nil
}

// below looks at the backing file that a header names.
func (c *chain) below(path string, h qcow2) (*image, error) {
	// "json:…", "nbd://…", "host_device:…": everything that is not a file.
	if before, _, found := strings.Cut(h.backing, ":"); found && !strings.Contains(before, "/") {
		return nil, refused("its backing file %.100q is not a plain file", h.backing)
	}
	name := h.backing
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(path), name)
	}
	format := h.format
	if format == "" {
		format = disk.ImageFormat(name)
	}
	if format != disk.FormatRaw && !slices.Contains(Formats, format) {
		return nil, refused("what format its backing file %s has is not known, and is not guessed; 'qemu-img rebase -u -F FORMAT' records it", name)
	}
	return c.image(name, format)
}

// qcow2 is what a header names. QEMU, docs/interop/qcow2.txt.
type qcow2 struct {
	backing, format string
	cluster         int64
	l1, l1Size      uint64 // offset and entries
	refs, refsSize  uint64 // offset and clusters
}

const (
	maxBackingName = 1023
	maxQcow2Header = 2 << 20 // a cluster is no larger
	dataFileBit    = 1 << 2  // incompatible feature

	extensionEnd    = 0
	extensionFormat = 0xe2792aca
	extensionData   = 0x44415441
)

func readQcow2(r io.ReaderAt, size int64) (h qcow2, err error) {
	be := binary.BigEndian
	var p [104]byte
	if err := readFull(r, p[:72], 0); err != nil {
		return h, refused("it is too short for qcow2")
	}
	version := be.Uint32(p[4:])
	if string(p[:4]) != "QFI\xfb" || version != 2 && version != 3 {
		return h, refused("it is not qcow2 of version 2 or 3")
	}
	length := int64(72)
	if version == 3 {
		if err := readFull(r, p[:], 0); err != nil {
			return h, refused("it is too short for qcow2")
		}
		length = int64(be.Uint32(p[100:]))
	}
	clusterBits := be.Uint32(p[20:])
	switch {
	case clusterBits < 9 || clusterBits > 21:
		return h, refused("its cluster size makes no sense")
	case be.Uint32(p[32:]) != 0:
		return h, refused("QEMU itself encrypts it; convert it to an image that is not, its guest's own encryption is not touched by that")
	case version == 3 && be.Uint64(p[72:])&dataFileBit != 0:
		return h, refused("its data is in another file (data_file)")
	case length < 72 || length > 1<<clusterBits:
		return h, refused("its header's length makes no sense")
	}
	at, end := length, int64(1)<<clusterBits
	h.cluster = int64(1) << clusterBits
	h.l1, h.l1Size = be.Uint64(p[40:]), uint64(be.Uint32(p[36:]))
	h.refs, h.refsSize = be.Uint64(p[48:]), uint64(be.Uint32(p[56:]))
	offset, n := be.Uint64(p[8:]), be.Uint32(p[16:])
	if offset != 0 {
		if n == 0 || n > maxBackingName || offset > maxQcow2Header || int64(offset)+int64(n) > size {
			return h, refused("its backing file's name is out of range")
		}
		name := make([]byte, n)
		if err := readFull(r, name, int64(offset)); err != nil {
			return h, err
		}
		h.backing = string(name)
		if strings.ContainsRune(h.backing, 0) {
			return h, refused("its backing file's name holds a NUL byte")
		}
		end = min(end, int64(offset))
	}
	for at+8 <= end {
		var e [8]byte
		if err := readFull(r, e[:], at); err != nil {
			return h, refused("its header ends early")
		}
		kind, n := be.Uint32(e[:]), int64(be.Uint32(e[4:]))
		at += 8
		if kind == extensionEnd {
			break
		}
		if n > end-at {
			return h, refused("an extension of its header is out of range")
		}
		switch kind {
		case extensionFormat:
			if n > 16 {
				return h, refused("its backing file's format is out of range")
			}
			name := make([]byte, n)
			if err := readFull(r, name, at); err != nil {
				return h, refused("its header ends early")
			}
			h.format = string(name)
		case extensionData:
			return h, refused("its data is in another file (data_file)")
		}
		at += (n + 7) &^ 7
	}
	return h, nil
}

const (
	maxL1      = 32 << 20           // bytes; QEMU's own limit
	offsetMask = 0x00fffffffffffe00 // of an entry: the rest are flags
)

// tables says whether the file is long enough for the tables that lead to its
// data. QEMU reads zeroes behind a file's end, and a table of zeroes is a disk
// of zeroes.
func (h qcow2) tables(r io.ReaderAt, size int64) error {
	for _, t := range [][2]uint64{{h.l1, h.l1Size * 8}, {h.refs, h.refsSize * uint64(h.cluster)}} {
		if t[1] > maxL1 || t[0] > 1<<62 {
			return refused("its tables make no sense")
		}
		if err := long(size, int64(t[0]+t[1])); err != nil {
			return err
		}
	}
	l1 := make([]byte, h.l1Size*8)
	if err := readFull(r, l1, int64(h.l1)); err != nil {
		return err
	}
	for ; len(l1) > 0; l1 = l1[8:] {
		if at := binary.BigEndian.Uint64(l1) & offsetMask; at != 0 {
			if err := long(size, int64(at)+h.cluster); err != nil {
				return err
			}
		}
	}
	return nil
}

// long refuses a file that ends before what it has to hold.
func long(size, need int64) error {
	if need <= size {
		return nil
	}
	return fmt.Errorf("%w: it is cut short: at least %d bytes are missing of %d", source.ErrDamaged, need-size, need)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// checkVHD refuses differencing disks, which QEMU would read as if they were
// whole. Microsoft, "Virtual Hard Disk Image Format Specification" 1.0.
func checkVHD(r io.ReaderAt, size int64) error {
	var p [512]byte
	for _, at := range []int64{size - 512, 0} {
		if at < 0 || readFull(r, p[:], at) != nil || string(p[:8]) != "conectix" {
			continue
		}
		switch binary.BigEndian.Uint32(p[60:]) {
		case 2, 3: // fixed, dynamic
			return nil
		case 4:
			return refused("it holds only what differs from a parent; merge it first")
		}
		return refused("it is a VHD of an unknown type")
	}
	return refused("it is not a VHD: it has no footer")
}

const (
	maxDescriptor = 1 << 20
	maxSectors    = 1 << 52
)

var (
	vmdkKey    = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.]*[ \t]*=`)
	vmdkExtent = regexp.MustCompile(`^RW ([0-9]{1,18}) (FLAT|SPARSE|VMFS|VMFSSPARSE|ZERO)(?: "([^"]{1,255})"(?: ([0-9]{1,18}))?)?$`)
)

// vmdk looks at an image and at the files that its description names. VMware,
// "Virtual Disk Format" 5.0.
func (c *chain) vmdk(r io.ReaderAt, size int64, dir string) error {
	var p [512]byte
	if readFull(r, p[:min(512, size)], 0) == nil && string(p[:4]) == "KDMV" {
		return vmdkSparse(r, size, p[:])
	}
	if size > maxDescriptor {
		return refused("it is neither a sparse VMDK nor the description of one")
	}
	text := make([]byte, size)
	if err := readFull(r, text, 0); err != nil {
		return err
	}
	body, _, _ := strings.Cut(string(text), "\x00")
	if err := vmdkParent(body); err != nil {
		return err
	}
	extents, start := 0, int64(0)
	for line := range strings.Lines(body) {
		line = strings.TrimRight(line, "\r\n \t")
		if line == "" || line[0] == '#' || vmdkKey.MatchString(line) {
			continue
		}
		m := vmdkExtent.FindStringSubmatch(line)
		if m == nil || (m[2] == "ZERO") != (m[3] == "") {
			return refused("a line of its description is not understood: %.80q", line)
		}
		extents++
		sectors, _ := strconv.ParseInt(m[1], 10, 64) // digits, and few enough
		from, _ := strconv.ParseInt("0"+m[4], 10, 64)
		if sectors > maxSectors || from > maxSectors || start > maxSectors*disk.SectorSize {
			return refused("the sizes in its description make no sense")
		}
		x := extent{start: start, end: start + sectors*disk.SectorSize}
		start = x.end
		if m[3] == "" {
			continue
		}
		if strings.ContainsAny(m[3], `/\:`) || m[3] == "." || m[3] == ".." {
			return refused("its description names %.100q, which is not a file beside it", m[3])
		}
		if err := c.extent(filepath.Join(dir, m[3]), m[2], from*disk.SectorSize, x); err != nil {
			return err
		}
	}
	if extents == 0 {
		return refused("its description names no files")
	}
	return nil
}

// extent looks at a file that a description names, and in which a piece of the
// disk begins at offset from, where it is there byte for byte.
func (c *chain) extent(path, kind string, from int64, x extent) error {
	f, err := c.open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	x.path, x.size, x.sparse = f.Name(), c.files[len(c.files)-1].info.Size(), strings.HasSuffix(kind, "SPARSE")
	c.extents = append(c.extents, x)
	if !x.sparse { // its bytes are the disk's
		if err := long(x.size, from+x.end-x.start); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		return nil
	}
	if kind == "VMFSSPARSE" {
		return nil
	}
	var p [512]byte
	if readFull(f, p[:], 0) != nil || string(p[:4]) != "KDMV" {
		return refused("%s is not a sparse VMDK", filepath.Base(path))
	}
	return vmdkSparse(f, c.files[len(c.files)-1].info.Size(), p[:])
}

// vmdkSparse looks at a file that holds its own description.
func vmdkSparse(r io.ReaderAt, size int64, header []byte) error {
	le := binary.LittleEndian
	if le.Uint64(header[12:]) == 0 {
		return refused("its header says that the disk is elsewhere")
	}
	// QEMU looks for a parent behind the header, others where that points.
	for _, at := range [][2]uint64{{1, 20}, {le.Uint64(header[28:]), le.Uint64(header[36:])}} {
		if at[0] == 0 || at[0] >= uint64(size)/512 {
			continue
		}
		text := make([]byte, min(at[1]*512, maxDescriptor, uint64(size)-at[0]*512))
		if err := readFull(r, text, int64(at[0])*512); err != nil {
			return err
		}
		if err := vmdkParent(string(text)); err != nil {
			return err
		}
	}
	return nil
}

// vmdkParent refuses snapshots, which hold only what differs from a parent.
func vmdkParent(text string) error {
	if strings.Contains(text, "parentFileNameHint") {
		return refused("it holds only what differs from a parent; consolidate its snapshots first, or 'qemu-img convert' it where all of them are")
	}
	return nil
}
