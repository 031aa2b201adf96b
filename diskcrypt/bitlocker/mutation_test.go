package bitlocker_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Outcomes of a mutation.
const (
	isWarned      = "warned"      // Inspect warns; the plaintext is as before
	isDamaged     = "damaged"     // Inspect and Open: ErrDamaged
	isTorn        = "torn"        // Inspect is content, Open: ErrDamaged (the VMK's hash)
	isUnsupported = "unsupported" // Inspect says so, Open: ErrUnsupported
	isLocked      = "locked"      // Open: ErrWrongSecret
	isNone        = "none"        // ErrNotThisFormat
)

type mutation func(t *testing.T, m memory, v *bitlockerformat.Volume)

// in changes copies of the metadata and leaves checksum and seal as they were.
func in(change func(b []byte), copies ...int) mutation {
	return func(_ *testing.T, m memory, v *bitlockerformat.Volume) {
		for _, i := range copies {
			change(m[v.Blocks[i]:])
		}
	}
}

// sealed changes all copies and seals them anew, as who has the VMK could.
func sealed(change func(b []byte)) mutation {
	return func(t *testing.T, m memory, v *bitlockerformat.Volume) {
		for i := range v.Blocks {
			change(m[v.Blocks[i]:])
			if err := v.Reseal(m, i); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func put16(off int, n uint16) func([]byte) {
	return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], n) }
}

func put32(off int, n uint32) func([]byte) {
	return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], n) }
}

func put64(off int, n uint64) func([]byte) {
	return func(b []byte) { binary.LittleEndian.PutUint64(b[off:], n) }
}

func flip(off int) func([]byte) { return func(b []byte) { b[off] ^= 1 } }

func boot(change func([]byte)) mutation {
	return func(_ *testing.T, m memory, _ *bitlockerformat.Volume) { change(m[:512]) }
}

// TestMutations: one defect each, and its class.
func TestMutations(t *testing.T) {
	const datums = 112 // the first of them is the TPM's
	cases := []struct {
		name    string
		defect  mutation
		outcome string
		says    string
	}{
		{"first copy", in(flip(70), 0), isWarned, "checksum"},
		{"two copies", in(flip(200), 0, 2), isWarned, "checksum"},
		{"all copies", in(flip(200), 0, 1, 2), isDamaged, "checksum"},
		{"first copy wiped", in(func(b []byte) { clear(b[:65536]) }, 0), isWarned, "not good"},
		{"all copies wiped", in(func(b []byte) { clear(b[:65536]) }, 0, 1, 2), isDamaged, "no copy"},
		{"version 3", sealed(put16(10, 3)), isDamaged, "version 3"},
		{"size 0", in(put16(8, 0), 0, 1, 2), isDamaged, "metadata of 0 bytes"},
		{"size huge", in(put16(8, 0xffff), 0, 1, 2), isDamaged, "metadata of"},
		{"offsets in another order", sealed(func(b []byte) {
			first := bytes.Clone(b[32:40])
			copy(b[32:], b[40:48])
			copy(b[40:], first)
		}), isWarned, "do not agree"},
		{"offset absurd", sealed(put64(40, 1<<63)), isDamaged, "copy 2"},
		{"watermark absurd", sealed(put64(16, 1<<63)), isDamaged, "encrypted bytes"},
		{"moved area outside", sealed(put64(56, 1<<40)), isDamaged, "moved boot area"},
		{"moved area huge", sealed(put32(28, 1<<31)), isDamaged, "moved boot area"},
		{"dataset end behind the block", sealed(put32(64+12, 1<<20)), isDamaged, "entries from"},
		{"dataset start behind its end", sealed(put32(64+8, 1<<15)), isDamaged, "entries from"},
		{"dataset version", sealed(put32(64+4, 2)), isDamaged, "dataset version 2"},
		{"datum of 4 bytes", sealed(put16(datums, 4)), isDamaged, "datum of 4 bytes"},
		{"datum behind the end", sealed(put16(datums, 0xfff0)), isDamaged, "datum of 65520 bytes"},
		{"no datums", sealed(put16(datums, 0)), isLocked, ""},
		{"method unknown", sealed(put16(64+36, 0x8009)), isUnsupported, "0x8009"},
		{"other method than the key's", sealed(put16(64+36, 0x8005)), isTorn, ""},
		{"validation of another text", func(t *testing.T, m memory, v *bitlockerformat.Volume) {
			var seal []byte
			in(func(b []byte) {
				n := int(binary.LittleEndian.Uint16(b[8:])) * 16
				seal = bytes.Clone(b[n+8 : n+88])
			}, 0)(t, m, v)
			sealed(flip(64+40))(t, m, v)
			in(func(b []byte) { copy(b[int(binary.LittleEndian.Uint16(b[8:]))*16+8:], seal) }, 0, 1, 2)(t, m, v)
		}, isTorn, ""},
		{"older first copy", func(t *testing.T, m memory, v *bitlockerformat.Volume) {
			put32(64+32, 1)(m[v.Blocks[0]:])
			if err := v.Reseal(m, 0); err != nil {
				t.Fatal(err)
			}
		}, isWarned, "the newest counts"},
		{"boot sector wiped", boot(func(b []byte) { clear(b) }), isWarned, "boot sector is lost"},
		{"boot sector and metadata wiped", func(t *testing.T, m memory, v *bitlockerformat.Volume) {
			clear(m[:512])
			in(func(b []byte) { clear(b[:65536]) }, 0, 1, 2)(t, m, v)
		}, isNone, ""},
		{"reformatted", boot(func(b []byte) { copy(b, bitlockerformat.BootSector(size, 512)) }), isNone, ""},
		{"boot sector names other places", boot(put64(176, 4096)), isWarned, "do not agree"},
		{"no guid in the boot sector", boot(func(b []byte) { clear(b[160:200]) }), isWarned, "do not agree"},
		{"sector size 768", boot(put16(11, 768)), isWarned, "sector size"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m, v := format(t, bitlockerformat.Options{Protectors: protectors()[:2]})
			c.defect(t, m, v)
			secret := v.Protectors[1].Secret
			d, err := bitlocker.Format{}.Inspect(ctx, m.place())
			o, openErr := bitlocker.Format{}.Open(ctx, m.place(), diskcrypt.KindStartupKey, envelope.CopySecret(secret), diskcrypt.Limits{})
			if openErr == nil {
				defer o.Close()
			}
			text := ""
			switch {
			case err != nil:
				text = err.Error()
			case c.outcome == isUnsupported:
				text = d.Unsupported
			default:
				text = strings.Join(d.Warnings, "\n")
			}
			if !strings.Contains(text, c.says) {
				t.Errorf("%q does not say %q", text, c.says)
			}
			ok := false
			switch c.outcome {
			case isWarned:
				if ok = err == nil && openErr == nil && len(d.Warnings) > 0; ok {
					opens(t, m, diskcrypt.KindStartupKey, secret, v.Plain)
				}
			case isDamaged:
				ok = errors.Is(err, diskcrypt.ErrDamaged) && d != nil && d.Unsupported != "" && errors.Is(openErr, diskcrypt.ErrDamaged)
			case isTorn:
				ok = err == nil && errors.Is(openErr, diskcrypt.ErrDamaged)
			case isUnsupported:
				ok = err == nil && errors.Is(openErr, diskcrypt.ErrUnsupported)
			case isLocked:
				ok = err == nil && errors.Is(openErr, diskcrypt.ErrWrongSecret)
			case isNone:
				ok = errors.Is(err, diskcrypt.ErrNotThisFormat) && errors.Is(openErr, diskcrypt.ErrNotThisFormat)
			}
			if !ok {
				t.Errorf("not %s: inspect: %v, open: %v", c.outcome, err, openErr)
			}
		})
	}
}
