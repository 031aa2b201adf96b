// Package demodisk makes and changes the disk of the demonstration with our own
// code alone, so that it needs no tools and no rights.
package demodisk

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

// The disk of the demonstration: a plain boot partition and an encrypted one.
const (
	diskSize  = 64 << 20
	diskGUID  = "10C75739-0000-4000-8000-000000000000"
	typeEFI   = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
)

// Where the partitions lie.
var (
	Boot = disk.Range{Offset: 1 << 20, Length: 7 << 20}
	Root = disk.Range{Offset: 8 << 20, Length: 55 << 20}
)

// kdf is what one would keep, but for memory and time.
var kdf = luksformat.KDF{Type: "argon2id", Time: 4, MemoryKiB: 32 << 10, Lanes: 2}

// Disk is the image file and where the encrypted file system keeps its files.
type Disk struct {
	path  string
	files map[string]disk.Range // in the plaintext of the encrypted partition
}

// Partition is a range of the image as a device.
type Partition struct {
	File *os.File
	disk.Range
}

// ReadAt implements io.ReaderAt.
func (p Partition) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(p.File, p.Offset, p.Length).ReadAt(b, off)
}

// WriteAt implements io.WriterAt.
func (p Partition) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > p.Length-int64(len(b)) {
		return 0, errors.New("write outside of the partition")
	}
	return p.File.WriteAt(b, p.Offset+off)
}

// Make makes the image in a new file.
func Make(ctx context.Context, path string, passphrase envelope.Secret) (d *Disk, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(diskSize); err != nil {
		return nil, err
	}
	err = disk.WriteGPT(f, diskSize, 512, diskGUID, []disk.Partition{
		{Range: Boot, Type: typeEFI, GUID: "10C75739-0000-4000-8000-000000000001", Name: "boot"},
		{Range: Root, Type: typeLinux, GUID: "10C75739-0000-4000-8000-000000000002", Name: "root"},
	})
	if err != nil {
		return nil, err
	}
	kernel, err := randomBytes(1 << 20)
	if err != nil {
		return nil, err
	}
	if _, err := writeFAT(Partition{f, Boot}, Boot.Length, "BOOT", []fatFile{
		{"VMLINUZ", kernel}, {"LOADER.CFG", []byte("default vmlinuz\noptions root=/dev/vda2\n")},
	}); err != nil {
		return nil, err
	}
	v, err := luksformat.Format(Partition{f, Root}, Root.Length, luksformat.Options{Label: "web01-root", SectorSize: 4096})
	if err != nil {
		return nil, err
	}
	defer v.Close()
	if _, err := v.AddKey(ctx, passphrase, kdf); err != nil {
		return nil, err
	}
	payload, err := v.Payload(nil, 0)
	if err != nil {
		return nil, err
	}
	table, err := randomBytes(6 << 20)
	if err != nil {
		return nil, err
	}
	d = &Disk{path: path}
	d.files, err = writeFAT(payload, payload.Size(), "WEB01", []fatFile{
		{"LEDGER.TXT", ledger("January: 1 order, 12.40")}, {"ORDERS.DB", table},
	})
	return d, err
}

// ledger is a file of 4 KiB that begins with a line.
func ledger(line string) []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = '\n'
	}
	copy(b, line)
	return b
}

func randomBytes(n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := rand.Read(b)
	return b, err
}

// attach opens the encrypted partition for changing it, as the guest would.
func (d *Disk) attach(ctx context.Context, passphrase envelope.Secret, fn func(*luksformat.Volume, *luksformat.Payload) error) (err error) {
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	v, err := luksformat.Attach(ctx, Partition{f, Root}, Root.Length, passphrase)
	if err != nil {
		return err
	}
	defer v.Close()
	p, err := v.Payload(nil, 0)
	if err != nil {
		return err
	}
	return fn(v, p)
}

// Work changes some files, as a day's work does.
func (d *Disk) Work(ctx context.Context, passphrase envelope.Secret) error {
	return d.attach(ctx, passphrase, func(_ *luksformat.Volume, p *luksformat.Payload) error {
		if _, err := p.WriteAt(ledger("February: 2 orders, 31.90"), d.files["LEDGER.TXT"].Offset); err != nil {
			return err
		}
		for i := range int64(8) { // eight places of a database, 16 KiB each
			b, err := randomBytes(16 << 10)
			if err != nil {
				return err
			}
			if _, err := p.WriteAt(b, d.files["ORDERS.DB"].Offset+i*(700<<10)); err != nil {
				return err
			}
		}
		return nil
	})
}

// ChangePassphrase does what "cryptsetup luksChangeKey" does.
func (d *Disk) ChangePassphrase(ctx context.Context, old, new envelope.Secret) error {
	return d.attach(ctx, old, func(v *luksformat.Volume, _ *luksformat.Payload) error {
		_, err := v.ChangeKey(ctx, 0, new, kdf)
		return err
	})
}

// Opened is what somebody sees who opens a disk with a passphrase.
type Opened struct {
	Image  string // sha256 of the disk, as it lies there
	Plain  string // sha256 of the plaintext
	Ledger string // first line of LEDGER.TXT
}

// Look opens the encrypted partition of an image and reads all of it.
func (d *Disk) Look(ctx context.Context, path string, passphrase envelope.Secret) (o Opened, err error) {
	f, err := os.Open(path)
	if err != nil {
		return o, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return o, err
	}
	o.Image = fmt.Sprintf("%x", h.Sum(nil))
	vol, err := luks.Format{}.Open(ctx, diskcrypt.Place{Data: Partition{f, Root}, Size: Root.Length}, diskcrypt.KindPassphrase, passphrase, diskcrypt.Limits{})
	if err != nil {
		return o, err
	}
	defer func() { _ = vol.Close() }()
	h.Reset()
	if _, err := io.Copy(h, io.NewSectionReader(vol, 0, vol.Size())); err != nil {
		return o, err
	}
	o.Plain = fmt.Sprintf("%x", h.Sum(nil))
	line := make([]byte, 80)
	if _, err := vol.ReadAt(line, d.files["LEDGER.TXT"].Offset); err != nil {
		return o, err
	}
	for i, c := range line {
		if c == '\n' {
			line = line[:i]
			break
		}
	}
	o.Ledger = string(line)
	return o, nil
}

// fatFile is a file in the root folder; its name is "NAME.EXT".
type fatFile struct {
	name    string
	content []byte
}

// writeFAT writes a FAT16 file system with files in its root folder, each in one
// piece, and says where. (Microsoft FAT specification, version 1.03.)
func writeFAT(w io.WriterAt, size int64, label string, files []fatFile) (map[string]disk.Range, error) {
	const (
		sector      = 512
		rootEntries = 512
	)
	perCluster := int64(1)
	for size/(sector*perCluster) > 60000 { // FAT16 numbers fewer than 65525 clusters
		perCluster *= 2
	}
	sectors := size / sector
	clusters := sectors / perCluster
	tableSectors := ((clusters+2)*2 + sector - 1) / sector
	reserved := 8 - 2*tableSectors%8 // so that files begin on pages of 4 KiB
	rootAt := (reserved + 2*tableSectors) * sector
	dataAt := rootAt + rootEntries*32
	clusters = (size - dataAt) / (sector * perCluster)
	if clusters < 4085 || clusters >= 65525 {
		return nil, fmt.Errorf("write file system: %d clusters are not those of FAT16", clusters)
	}

	boot := make([]byte, sector)
	le := binary.LittleEndian
	copy(boot, "\xeb\x3c\x90LOCKSTEP")
	le.PutUint16(boot[11:], sector)
	boot[13] = byte(perCluster)
	le.PutUint16(boot[14:], uint16(reserved))
	boot[16] = 2 // tables
	le.PutUint16(boot[17:], rootEntries)
	if sectors < 1<<16 {
		le.PutUint16(boot[19:], uint16(sectors))
	} else {
		le.PutUint32(boot[32:], uint32(sectors))
	}
	boot[21] = 0xf8 // not removable
	le.PutUint16(boot[22:], uint16(tableSectors))
	le.PutUint16(boot[24:], 32) // sectors of a track, heads: of no meaning today
	le.PutUint16(boot[26:], 64)
	boot[36], boot[38] = 0x80, 0x29
	le.PutUint32(boot[39:], 0x10C75739)
	copy(boot[43:54], fatName(label, ""))
	copy(boot[54:62], "FAT16   ")
	boot[510], boot[511] = 0x55, 0xaa

	const date = 45<<9 | 1<<5 | 1 // 2025-01-01
	table := make([]byte, tableSectors*sector)
	le.PutUint16(table, 0xfff8)
	le.PutUint16(table[2:], 0xffff)
	root := make([]byte, rootEntries*32)
	copy(root, fatName(label, ""))
	root[11] = 0x08 // volume label
	le.PutUint16(root[24:], date)

	where := map[string]disk.Range{}
	next := int64(2)
	for i, f := range files {
		n := (int64(len(f.content)) + sector*perCluster - 1) / (sector * perCluster)
		if next+n > clusters+2 || n == 0 || i+1 >= rootEntries {
			return nil, fmt.Errorf("write file system: no room for %s", f.name)
		}
		for c := next; c < next+n; c++ {
			le.PutUint16(table[2*c:], uint16(c+1))
		}
		le.PutUint16(table[2*(next+n-1):], 0xffff)
		e := root[32*(i+1):]
		name, ext := f.name, ""
		for j := range f.name {
			if f.name[j] == '.' {
				name, ext = f.name[:j], f.name[j+1:]
			}
		}
		copy(e, fatName(name, ext))
		e[11] = 0x20 // archive
		le.PutUint16(e[24:], date)
		le.PutUint16(e[26:], uint16(next))
		le.PutUint32(e[28:], uint32(len(f.content)))
		at := dataAt + (next-2)*sector*perCluster
		if _, err := w.WriteAt(f.content, at); err != nil {
			return nil, err
		}
		where[f.name] = disk.Range{Offset: at, Length: int64(len(f.content))}
		next += n
	}
	for _, part := range []struct {
		off int64
		b   []byte
	}{{0, boot}, {reserved * sector, table}, {(reserved + tableSectors) * sector, table}, {rootAt, root}} {
		if _, err := w.WriteAt(part.b, part.off); err != nil {
			return nil, err
		}
	}
	return where, nil
}

// fatName pads a name to 8 and 3 characters.
func fatName(name, ext string) string {
	if ext == "" {
		return fmt.Sprintf("%-11s", name)
	}
	return fmt.Sprintf("%-8s%-3s", name, ext)
}
