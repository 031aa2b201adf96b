package bitlockerformat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/keys"
)

var le = binary.LittleEndian

// datum is a datum of its parts.
func datum(role, typ uint16, parts ...[]byte) []byte {
	body := bytes.Join(parts, nil)
	b := le.AppendUint16(nil, uint16(len(body)+8))
	b = le.AppendUint16(b, role)
	b = le.AppendUint16(b, typ)
	b = le.AppendUint16(b, 1)
	return append(b, body...)
}

func keyBody(alg uint16, key []byte) []byte {
	return append(le.AppendUint32(nil, uint32(alg)), key...)
}

func text(s string) []byte {
	var b []byte
	for _, c := range utf16.Encode([]rune(s + "\x00")) {
		b = le.AppendUint16(b, c)
	}
	return b
}

// metadata makes the block with all its datums, without its checksum.
func (v *Volume) metadata(ctx context.Context) error {
	guid := fve.GUID(random(16))
	v.GUID = guid.String()
	var datums []byte
	if v.Label != "" {
		datums = append(datums, datum(fve.RoleDescription, fve.TypeUnicode, text(v.Label))...)
	}
	// The caller's list stays as it was.
	v.Protectors = append([]Protector(nil), v.Protectors...)
	for i := range v.Protectors {
		d, err := v.protector(ctx, &v.Protectors[i])
		if err != nil {
			return err
		}
		datums = append(datums, d...)
	}
	spec := methodSpecs[v.Method]
	if v.State != 1 {
		box, err := v.box(v.VMK, fve.RoleFVEK, spec.code, v.FVEK)
		if err != nil {
			return err
		}
		datums = append(datums, box...)
	}
	if v.Options.Moved > 0 {
		place := le.AppendUint64(nil, uint64(v.Moved))
		place = le.AppendUint64(place, uint64(v.Options.Moved*v.SectorSize))
		datums = append(datums, datum(fve.RoleVirtualization, fve.TypeVirtualization, place)...)
	}

	const header, dataset = 64, 48
	n := header + dataset + len(datums)
	b := make([]byte, (n+15)/16*16)
	copy(b, "-FVE-FS-")
	le.PutUint16(b[10:], 2)
	le.PutUint16(b[8:], uint16(len(b)/16))
	if v.Flavour == Vista {
		le.PutUint16(b[10:], 1)
		le.PutUint16(b[8:], uint16(len(b)))
		copy(b[56:64], v.Plain[56:64])
	}
	watermark := v.Watermark
	if watermark == 0 {
		watermark = v.size
	}
	le.PutUint64(b[16:], uint64(watermark)) // Vista wrote 0; dislocker takes the volume's size from here
	if v.Flavour != Vista {
		le.PutUint32(b[24:], uint32(v.Window))
		le.PutUint32(b[28:], uint32(v.Options.Moved))
		le.PutUint64(b[56:], uint64(v.Moved))
	}
	le.PutUint16(b[12:], v.State)
	le.PutUint16(b[14:], v.Next)
	for i, off := range v.Blocks {
		le.PutUint64(b[32+8*i:], uint64(off))
	}
	d := b[header:]
	le.PutUint32(d, uint32(dataset+len(datums)))
	le.PutUint32(d[4:], 1)
	le.PutUint32(d[8:], dataset)
	le.PutUint32(d[12:], uint32(dataset+len(datums)))
	copy(d[16:], guid[:])
	le.PutUint16(d[36:], spec.code)
	if spec.mode == 'x' {
		le.PutUint16(d[38:], spec.code)
	}
	le.PutUint64(d[40:], fileTime)
	copy(d[dataset:], datums)
	v.nonce++ // the validation's
	le.PutUint32(d[32:], v.nonce)
	v.raw = b
	return nil
}

// Seal writes copy i of the metadata into the image, with its checksum and its
// validation box.
func (v *Volume) Seal(image []byte, i int) error {
	at := v.Blocks[i]
	copy(image[at:], v.raw)
	return v.Reseal(image, i)
}

// Reseal makes the checksum and the validation box of copy i fit what the image
// holds there, whatever was done to it.
func (v *Volume) Reseal(image []byte, i int) error {
	b := image[v.Blocks[i]:]
	n := int(le.Uint16(b[8:]))
	room := 0x4000
	if v.Flavour != Vista {
		n *= 16
		room = 0x10000
	}
	if n > 48*kib || n < 112 {
		return nil // nothing can be sealed there
	}
	tail := b[n:]
	clear(tail[:512])
	le.PutUint16(tail, uint16(room-n))
	le.PutUint16(tail[2:], 2)
	le.PutUint32(tail[4:], crc32.ChecksumIEEE(b[:n]))
	sum := sha256.Sum256(b[:n])
	v.nonce--
	box, err := v.box(v.VMK, fve.RoleProperty, fve.AlgSHA256, sum[:])
	copy(tail[8:], box)
	return err
}

// protector makes the datum of a protector and sets its GUID and its secret.
func (v *Volume) protector(ctx context.Context, p *Protector) ([]byte, error) {
	guid := fve.GUID(random(16))
	p.GUID = guid.String()
	var nested []byte
	if p.Name != "" {
		nested = datum(fve.RoleProperty, fve.TypeUnicode, text(p.Name))
	}
	more, key, err := v.how(ctx, p, guid)
	if err != nil {
		return nil, err
	}
	nested = append(nested, more...)
	box, err := v.box(key, fve.RoleProperty, fve.AlgVMK, v.VMK)
	if err != nil {
		return nil, err
	}
	nested = append(nested, box...)
	fixed := le.AppendUint64(append([]byte(nil), guid[:]...), fileTime)
	fixed = le.AppendUint16(fixed, 0)
	fixed = le.AppendUint16(fixed, uint16(protections[p.Kind]))
	return datum(fve.RoleVMK, fve.TypeVMK, fixed, nested), nil
}

// how makes the datums that say how a protector's key is made, and the key.
func (v *Volume) how(ctx context.Context, p *Protector, guid fve.GUID) (nested, key []byte, err error) {
	switch p.Kind {
	case Password:
		hash, ok := keys.PasswordHash(p.Secret)
		if !ok {
			return nil, nil, fmt.Errorf("password of %d bytes", len(p.Secret))
		}
		salt := random(keys.SaltSize)
		if key, err = keys.Stretch(ctx, hash, salt); err != nil {
			return nil, nil, err
		}
		box, err := v.box(v.VMK, fve.RoleProperty, fve.AlgPasswordKey, key)
		return datum(0, fve.TypeStretch, le.AppendUint32(nil, fve.AlgStretchPassword), salt, box), key, err
	case Recovery:
		recovery := [keys.RecoverySize]byte(random(keys.RecoverySize))
		p.Secret = keys.FormatRecovery(recovery)
		salt := random(keys.SaltSize)
		if key, err = keys.Stretch(ctx, keys.RecoveryHash(recovery), salt); err != nil {
			return nil, nil, err
		}
		one, err := v.box(v.VMK, fve.RoleRecoveryCopy, fve.AlgStretchRecovery, recovery[:])
		if err != nil {
			return nil, nil, err
		}
		other, err := v.box(v.VMK, fve.RoleStretchedCopy, fve.AlgRecoveryKey, key)
		return datum(0, fve.TypeStretch, le.AppendUint32(nil, fve.AlgStretchRecovery), salt, one, other), key, err
	case StartupKey:
		key = random(32)
		p.Secret = fve.FormatKeyFile(fve.KeyFile{GUID: guid, FileTime: fileTime, Key: key})
		box, err := v.box(v.VMK, fve.RoleProperty, fve.AlgExternalKey, key)
		return datum(0, fve.TypeUse, le.AppendUint32(nil, fve.AlgExternalKey), box), key, err
	case ClearKey:
		key = random(32)
		return datum(0, fve.TypeKey, keyBody(fve.AlgClearKey, key)), key, nil
	}
	return datum(0, fve.TypeTPM, le.AppendUint32(nil, 0x815), random(128)), random(32), nil
}

// conversion writes the information of a used-space-only conversion, twice, and its bitmap.
func (v *Volume) conversion(image []byte) {
	if v.Chunks == nil {
		return
	}
	info := make([]byte, infoSize)
	copy(info, "FVE-EOW\x00")
	le.PutUint16(info[8:], 56)
	le.PutUint16(info[10:], uint16(len(info)))
	le.PutUint32(info[12:], uint32(v.SectorSize))
	le.PutUint32(info[20:], uint32(v.ChunkSize))
	le.PutUint32(info[24:], logSize)
	le.PutUint32(info[32:], 1)
	for i, off := range v.EOW {
		le.PutUint64(info[40+8*i:], uint64(off))
	}
	le.PutUint64(info[56:], uint64(v.bitmapAt()))
	le.PutUint32(info[36:], crc32.ChecksumIEEE(info))
	for _, off := range v.EOW {
		copy(image[off:], info)
	}

	const head, record = bitmapHeader, recordSize
	b := image[v.bitmapAt():][:bitmapSize]
	copy(b, "FVE-EOWBM\x00")
	le.PutUint16(b[10:], head)
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint64(b[28:], uint64(v.size))
	le.PutUint64(b[36:], uint64(v.logAt()))
	le.PutUint32(b[44:], head)
	le.PutUint32(b[48:], head+record)
	le.PutUint32(b[52:], record)
	le.PutUint32(b[56:], crc32.ChecksumIEEE(b[:head]))
	for i := range 2 {
		r := b[head+i*record:][:record]
		copy(r, "FVE-EOWBR\x00")
		le.PutUint16(r[10:], 36)
		le.PutUint32(r[12:], record)
		le.PutUint32(r[16:], uint32(len(v.Chunks)))
		le.PutUint64(r[20:], uint64(7+i))
		for k, set := range v.Chunks {
			if set && (i == 1 || k == 0) { // the older record knows of less
				r[36+k/8] |= 1 << (k % 8)
			}
		}
		le.PutUint32(r[32:], crc32.ChecksumIEEE(r))
	}
}
