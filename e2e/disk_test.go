package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

const (
	mib      = 1 << 20
	bootAt   = 1 * mib // partition 1, plain
	volumeAt = 2 * mib // partition 2, LUKS2
)

// section is a partition of a disk file, for the formatter.
type section struct {
	f    *os.File
	off  int64
	size int64
}

func (s section) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, s.off+off) }
func (s section) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, s.off+off) }

// withVolume opens the partition of a disk made by makeDisk.
func withVolume(path string, fn func(section) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return errors.Join(fn(section{f, volumeAt, st.Size() - volumeAt - mib}), f.Sync())
}

// makeDisk makes a disk image: GPT, a plain partition, and a LUKS2 volume that
// each of the passphrases opens, with what looks like ext4 inside.
func makeDisk(path string, size int64, passphrases ...string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	err = disk.WriteGPT(f, size, 512, disk.NewGUID(), []disk.Partition{
		{Number: 1, Type: disk.TypeLinux, GUID: disk.NewGUID(), Name: "boot", Range: disk.Range{Offset: bootAt, Length: volumeAt - bootAt}},
		{Number: 2, Type: disk.TypeLinux, GUID: disk.NewGUID(), Name: "root", Range: disk.Range{Offset: volumeAt, Length: size - volumeAt - mib}},
	})
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("boot loader and kernel\n"), 1000), bootAt+8192); err != nil {
		return err
	}
	return withVolume(path, func(s section) error {
		ctx := context.Background()
		v, err := luksformat.Format(s, s.size, luksformat.Options{KeyslotsSize: 4 * 258048})
		if err != nil {
			return err
		}
		defer v.Close()
		for _, p := range passphrases {
			if _, err := v.AddKey(ctx, envelope.NewSecret([]byte(p)), luksformat.KDF{}); err != nil {
				return err
			}
		}
		w, err := v.Payload(nil, 0)
		if err != nil {
			return err
		}
		// A superblock of ext4 (kernel documentation, "ext4: The Super Block").
		super := make([]byte, 1024)
		binary.LittleEndian.PutUint32(super[0x00:], 64)
		binary.LittleEndian.PutUint32(super[0x04:], uint32(w.Size()/4096))
		binary.LittleEndian.PutUint32(super[0x18:], 2)
		binary.LittleEndian.PutUint32(super[0x20:], 32768)
		binary.LittleEndian.PutUint32(super[0x28:], 64)
		binary.LittleEndian.PutUint16(super[0x38:], 0xEF53)
		binary.LittleEndian.PutUint32(super[0x4C:], 1)
		binary.LittleEndian.PutUint16(super[0x58:], 256)
		binary.LittleEndian.PutUint32(super[0x60:], 0x40)
		if _, err := w.WriteAt(super, 1024); err != nil {
			return err
		}
		_, err = w.WriteAt(noise(1, int(min(w.Size()/2, 4*mib))), 64<<10)
		return err
	})
}

// noise is n bytes that do not compress.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 7})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// scribble changes pages of 4 KiB spread over the encrypted payload.
func scribble(path string, seed uint64, pages int) error {
	return withVolume(path, func(s section) error {
		const from = 3 * mib // behind header and key slots
		span := (s.size - from) / 4096
		r := rand.New(rand.NewPCG(seed, 1))
		for i := range pages {
			if _, err := s.WriteAt(noise(seed*1000+uint64(i), 4096), from+r.Int64N(span)*4096); err != nil {
				return err
			}
		}
		return nil
	})
}

// changePassphrase is what the guest does: the key slot goes over to another passphrase.
func changePassphrase(path, from, to string) error {
	return withVolume(path, func(s section) error {
		ctx := context.Background()
		secret := envelope.NewSecret([]byte(from))
		v, err := luksformat.Attach(ctx, s, s.size, secret)
		if err != nil {
			return err
		}
		defer v.Close()
		_, err = v.ChangeKey(ctx, 0, envelope.NewSecret([]byte(to)), luksformat.KDF{})
		return err
	})
}

// addPassphrase adds a key slot.
func addPassphrase(path, known, added string) error {
	return withVolume(path, func(s section) error {
		ctx := context.Background()
		v, err := luksformat.Attach(ctx, s, s.size, envelope.NewSecret([]byte(known)))
		if err != nil {
			return err
		}
		defer v.Close()
		_, err = v.AddKey(ctx, envelope.NewSecret([]byte(added)), luksformat.KDF{})
		return err
	})
}

func sum(tb testing.TB, path string) string {
	tb.Helper()
	s, err := sumRange(path, 0, 1<<62)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func sumRange(path string, off, n int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, off, n)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// copyRange copies bytes of one file or device to the beginning of a new file.
func copyRange(from, to string, off, n int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	copied, err := io.Copy(out, io.NewSectionReader(in, off, n))
	if err == nil && copied == 0 {
		err = fmt.Errorf("%s has nothing at %d", from, off)
	}
	return errors.Join(err, out.Close())
}

// same says where two files differ, nil if they do not.
func same(a, b string) error {
	fa, err := os.Open(a)
	if err != nil {
		return err
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return err
	}
	defer fb.Close()
	pa, pb := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		na, ea := io.ReadFull(fa, pa)
		nb, eb := io.ReadFull(fb, pb)
		if na != nb || !bytes.Equal(pa[:na], pb[:nb]) {
			for i := range min(na, nb) {
				if pa[i] != pb[i] {
					return fmt.Errorf("%s and %s differ at byte %d", a, b, off+int64(i))
				}
			}
			return fmt.Errorf("%s and %s differ in size: one ends at byte %d", a, b, off+int64(min(na, nb)))
		}
		if ea != nil || eb != nil {
			return nil
		}
	}
}

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}
