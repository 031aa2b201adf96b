package header

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

// LUKS2 on disk, "LUKS2 On-Disk Format Specification" 1.1: the binary header
// is one page, the JSON area fills the rest of hdr_size.
const (
	binaryBytes = 4096
	minCopy     = 16 << 10
	maxCopy     = 4 << 20
	csumOffset  = 448
	csumBytes   = 64
)

// copyState is one of the two copies, as far as it could be read.
type copyState struct {
	found  bool // its magic is there
	raw    []byte
	seqid  uint64
	meta   *Header // parsed, nil unless err is nil
	uuid   string
	label  string
	size   int64
	errors error // why it is not valid
}

func read2(r io.ReaderAt, first []byte, size, dataSize int64) (*Header, error) {
	primary, err := readCopy(r, 0, first, magic, size, dataSize)
	if err != nil {
		return nil, err
	}
	secondary := copyState{errors: errors.New("not found")}
	if primary.errors == nil {
		if secondary, err = secondaryAt(r, primary.size, size, dataSize); err != nil {
			return nil, err
		}
	} else {
		// Where the secondary lies is known from the primary only, which may lie.
		for off := int64(minCopy); off <= maxCopy && off < size; off *= 2 {
			c, err := secondaryAt(r, off, size, dataSize)
			if err != nil {
				return nil, err
			}
			// A damaged one is remembered only where the primary said it would be.
			if c.errors == nil || !secondary.found && c.found && c.size == off {
				secondary = c
			}
			if c.errors == nil {
				break
			}
		}
	}

	switch {
	case primary.errors == nil && secondary.errors == nil:
		h := primary.meta
		other := secondary
		if secondary.seqid > primary.seqid {
			h, other = secondary.meta, primary
		}
		h.Copies = [2][]byte{primary.raw, secondary.raw}
		if primary.seqid != secondary.seqid {
			h.warn("the two copies of the header differ in age (seqid %d and %d); the newer one counts", primary.seqid, secondary.seqid)
		} else if !sameContent(primary.raw, secondary.raw) {
			h.warn("the two copies of the header have the same seqid %d and differ; the primary counts", primary.seqid)
		}
		if other.uuid != h.UUID {
			h.warn("the two copies of the header have different UUIDs")
		}
		return h, nil
	case primary.errors == nil:
		h := primary.meta
		h.Copies[0] = primary.raw
		h.warn("secondary header at %d is not valid: %s", h.HeaderSize, secondary.errors)
		return h, nil
	case secondary.errors == nil:
		h := secondary.meta
		h.Copies[1] = secondary.raw
		h.SecondaryOnly = !primary.found
		h.warn("primary header is not valid: %s; read from the secondary header at %d", primary.errors, h.HeaderSize)
		return h, nil
	case primary.found:
		h := &Header{Version: 2, UUID: primary.uuid, Label: primary.label, SequenceID: primary.seqid}
		return h, damaged("primary: %s; secondary: %s", primary.errors, secondary.errors)
	}
	return nil, ErrNone
}

func (h *Header) warn(format string, args ...any) {
	h.Warnings = append(h.Warnings, fmt.Sprintf(format, args...))
}

// sameContent compares what the copies must have in common: everything but
// magic, salt, offset and checksum.
func sameContent(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	return bytes.Equal(a[6:104], b[6:104]) && bytes.Equal(a[168:256], b[168:256]) && bytes.Equal(a[binaryBytes:], b[binaryBytes:])
}

func secondaryAt(r io.ReaderAt, off, size, dataSize int64) (copyState, error) {
	page := make([]byte, binaryBytes)
	n, err := readAtMost(r, page, off, size)
	if err != nil {
		// The primary may be good: a bad sector in the secondary must not hide it.
		return copyState{errors: fmt.Errorf("cannot be read: %w", err)}, nil
	}
	return readCopy(r, off, page[:n], magicSecondary, size, dataSize)
}

// readCopy reads and validates one copy. Its own defects are in the state; the
// error is the device's.
func readCopy(r io.ReaderAt, off int64, page, want []byte, size, dataSize int64) (copyState, error) {
	var c copyState
	if len(page) < len(want) || !bytes.Equal(page[:len(want)], want) {
		c.errors = errors.New("no magic")
		return c, nil
	}
	c.found = true
	if len(page) < binaryBytes {
		c.errors = errors.New("device ends inside it")
		return c, nil
	}
	hdrSize := binary.BigEndian.Uint64(page[8:])
	c.seqid = binary.BigEndian.Uint64(page[16:])
	c.label = printable(text(page[24:72]))
	c.uuid = printable(text(page[168:208]))
	switch {
	case binary.BigEndian.Uint16(page[6:]) != 2:
		c.errors = fmt.Errorf("version %d", binary.BigEndian.Uint16(page[6:]))
	case hdrSize < minCopy || hdrSize > maxCopy || hdrSize&(hdrSize-1) != 0:
		c.errors = fmt.Errorf("hdr_size %d is not a power of two between 16 KiB and 4 MiB", hdrSize)
	case binary.BigEndian.Uint64(page[256:]) != uint64(off):
		c.errors = fmt.Errorf("hdr_offset is %d and the header lies at %d", binary.BigEndian.Uint64(page[256:]), off)
	case off != 0 && uint64(off) != hdrSize:
		c.errors = fmt.Errorf("it lies at %d and says hdr_size %d", off, hdrSize)
	case off+int64(hdrSize) > size:
		c.errors = fmt.Errorf("device of %d bytes ends inside it", size)
	}
	if c.errors != nil {
		return c, nil
	}
	c.size = int64(hdrSize)
	raw := make([]byte, hdrSize)
	if _, err := readAtMost(r, raw, off, size); err != nil {
		if off == 0 {
			return c, fmt.Errorf("read LUKS2 header: %w", err)
		}
		c.errors = fmt.Errorf("cannot be read: %w", err)
		return c, nil
	}
	if c.errors = verifyChecksum(raw); c.errors != nil {
		return c, nil
	}
	meta, err := parseMetadata(raw[binaryBytes:], c.size, size, dataSize)
	if err != nil {
		c.errors = err
		return c, nil
	}
	c.raw = raw
	meta.Version = 2
	meta.UUID, meta.Label, meta.SequenceID = c.uuid, c.label, c.seqid
	meta.Subsystem = printable(text(raw[208:256]))
	c.meta = meta
	return c, nil
}

func verifyChecksum(raw []byte) error {
	name := text(raw[72:104])
	newHash, err := keyslot.NewHash(name)
	if err != nil {
		return fmt.Errorf("checksum algorithm: %w", err)
	}
	if bytes.IndexByte(raw[168:208], 0) < 0 {
		return errors.New("uuid has no end")
	}
	h := newHash()
	h.Write(raw[:csumOffset])
	h.Write(make([]byte, csumBytes))
	h.Write(raw[csumOffset+csumBytes:])
	sum := h.Sum(nil)
	if subtle.ConstantTimeCompare(sum, raw[csumOffset:csumOffset+len(sum)]) != 1 {
		return errors.New("checksum does not match")
	}
	return nil
}
