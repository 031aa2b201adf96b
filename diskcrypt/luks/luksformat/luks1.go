package luksformat

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
	"github.com/lockstep-backup/lockstep/envelope"
)

const (
	luks1Bytes    = 592
	luks1Slots    = 8
	luks1SlotBase = 208
	luks1SlotSize = 48
	luks1Active   = 0x00AC71F3
	luks1Inactive = 0x0000DEAD
)

// luks1Areas is the end of the eighth key area.
func luks1Areas(keyBytes int) int64 {
	return align + luks1Slots*roundUp(keyslot.MaterialSize(keyBytes), align)
}

func (v *Volume) format1(o Options) error {
	areas := luks1Areas(o.KeyBits / 8)
	if v.size < max(areas, o.DataOffset) || o.DataOffset != 0 && o.DataOffset < areas {
		return fmt.Errorf("device of %d bytes or data at %d leave no room for a header of %d bytes", v.size, o.DataOffset, areas)
	}
	d, err := v.digest(o.Hash, 20)
	if err != nil {
		return err
	}
	b := make([]byte, align)
	copy(b, "LUKS\xba\xbe")
	binary.BigEndian.PutUint16(b[6:], 1)
	cipher, mode := cipherAndMode(o.Cipher)
	copy(b[8:39], cipher)
	copy(b[40:71], mode)
	copy(b[72:103], o.Hash)
	binary.BigEndian.PutUint32(b[104:], uint32(o.DataOffset/512))
	binary.BigEndian.PutUint32(b[108:], uint32(v.key.Len()))
	copy(b[112:132], d.Sum)
	copy(b[132:164], d.Salt)
	binary.BigEndian.PutUint32(b[164:], uint32(d.Iterations))
	copy(b[168:207], o.UUID)
	for i := range luks1Slots {
		s := b[luks1SlotBase+i*luks1SlotSize:]
		binary.BigEndian.PutUint32(s, luks1Inactive)
		area := align + int64(i)*roundUp(keyslot.MaterialSize(v.key.Len()), align)
		binary.BigEndian.PutUint32(s[40:], uint32(area/512))
		binary.BigEndian.PutUint32(s[44:], keyslot.Stripes)
	}
	_, err = v.dev.WriteAt(b, 0)
	return err
}

func cipherAndMode(spec string) (string, string) {
	for i := range spec {
		if spec[i] == '-' {
			return spec[:i], spec[i+1:]
		}
	}
	return spec, ""
}

func (v *Volume) setSlot1(ctx context.Context, h *header.Header, number int, secret envelope.Secret, kdf KDF) error {
	if number >= luks1Slots {
		return ErrFull
	}
	if kdf.Type != "" && kdf.Type != keyslot.PBKDF2 {
		return fmt.Errorf("LUKS1 has no %s", kdf.Type)
	}
	raw := append([]byte(nil), h.Copies[0]...)
	kdf.Hash = h.Digests[0].Check.Hash
	box, err := v.box(kdf, kdf.Hash, h.Segments[0].Encryption)
	if err != nil {
		return err
	}
	area, err := box.Seal(ctx, secret.Expose(), v.key.Expose())
	if err != nil {
		return err
	}
	s := raw[luks1SlotBase+number*luks1SlotSize:]
	if _, err := v.dev.WriteAt(area, int64(binary.BigEndian.Uint32(s[40:]))*512); err != nil {
		return err
	}
	binary.BigEndian.PutUint32(s, luks1Active)
	binary.BigEndian.PutUint32(s[4:], uint32(box.KDF.Iterations))
	copy(s[8:40], box.KDF.Salt)
	_, err = v.dev.WriteAt(raw, 0)
	return err
}

func (v *Volume) clearSlot1(h *header.Header, number int) error {
	raw := append([]byte(nil), h.Copies[0]...)
	s := raw[luks1SlotBase+number*luks1SlotSize:]
	binary.BigEndian.PutUint32(s, luks1Inactive)
	clear(s[4:40])
	_, err := v.dev.WriteAt(raw, 0)
	return err
}
