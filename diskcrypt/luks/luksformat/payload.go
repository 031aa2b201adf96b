package luksformat

import (
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Payload writes plaintext to the encrypted part of the volume. It is an
// io.WriterAt; writes need not be aligned. Not for concurrent use.
type Payload struct {
	dev    Device
	offset int64
	size   int64
	tweak  uint64
	cipher *dmcrypt.Cipher
}

// Payload opens the data for writing: behind the header, or on a data device
// of its own where the header is detached (nil otherwise).
func (v *Volume) Payload(data Device, dataSize int64) (*Payload, error) {
	h, err := v.read()
	if err != nil {
		return nil, fmt.Errorf("open luks payload: %w", err)
	}
	if data == nil {
		data, dataSize = v.dev, v.size
	}
	s := h.Live()[0]
	c, err := dmcrypt.New(s.Encryption, v.key.Expose(), s.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("open luks payload: %w", err)
	}
	size := s.Size
	if size < 0 {
		size = max(0, dataSize-s.Offset) / int64(s.SectorSize) * int64(s.SectorSize)
	}
	return &Payload{dev: data, offset: s.Offset, size: size, tweak: s.IVTweak, cipher: c}, nil
}

// Size is the number of plaintext bytes.
func (w *Payload) Size() int64 { return w.size }

// Offset is where the ciphertext of plaintext byte 0 lies on the device.
func (w *Payload) Offset() int64 { return w.offset }

// WriteAt encrypts p to plaintext offset off. Sectors that p covers in part
// are read and decrypted first.
func (w *Payload) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > w.size-off {
		return 0, fmt.Errorf("write luks payload: [%d, %d) of %d bytes: %w", off, off+int64(len(p)), w.size, io.ErrShortWrite)
	}
	sector := int64(w.cipher.SectorSize())
	buf := make([]byte, 1<<20+sector)
	defer envelope.Wipe(buf)
	n := 0
	for n < len(p) {
		at := off + int64(n)
		skip := at % sector
		chunk := min(int64(len(p)-n), 1<<20-skip)
		b := buf[:roundUp(skip+chunk, sector)]
		start := at - skip
		unit := w.tweak + uint64(start)/512
		if skip != 0 || chunk%sector != 0 {
			if _, err := io.ReadFull(io.NewSectionReader(w.dev, w.offset+start, int64(len(b))), b); err != nil {
				return n, fmt.Errorf("write luks payload: %w", err)
			}
			w.cipher.Decrypt(b, unit)
		}
		copy(b[skip:], p[n:n+int(chunk)])
		w.cipher.Encrypt(b, unit)
		if _, err := w.dev.WriteAt(b, w.offset+start); err != nil {
			return n, fmt.Errorf("write luks payload: %w", err)
		}
		n += int(chunk)
	}
	return n, nil
}
