package bitlocker

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
)

// metadata is what was read of a volume.
type metadata struct {
	size       int64
	boot       fve.Boot
	bootSector []byte // as found, also where it is not BitLocker's any more
	sector     int64
	cluster    int64
	block      *fve.Block   // the newest good copy
	copies     []*fve.Block // all good ones, newest first
	eow        *fve.EOW
	eowFailed  error
	head       plainview.Kind // of the moved boot area, where eowFailed
	orphan     bool           // the boot sector is lost
	backupBoot int64          // Vista: where the copy of the boot sector lies unencrypted, 0: nowhere
	warnings   []string
}

func (m *metadata) warn(format string, args ...any) {
	m.warnings = append(m.warnings, fmt.Sprintf(format, args...))
}

// read finds the metadata of a place. With ErrDamaged what is known is non-nil.
func read(ctx context.Context, p diskcrypt.Place) (*metadata, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.Header != nil || p.Size < fve.BootSize {
		return nil, diskcrypt.ErrNotThisFormat
	}
	m := &metadata{size: p.Size, bootSector: make([]byte, fve.BootSize)}
	if _, err := io.ReadFull(io.NewSectionReader(p.Data, 0, fve.BootSize), m.bootSector); err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	var err error
	if m.boot, err = fve.ParseBoot(m.bootSector); err != nil {
		return orphan(ctx, m, p)
	}
	found := m.collect(p, m.boot.Offsets)
	if len(found.good) == 0 {
		// The boot sector may be what is wrong.
		if err := m.scan(ctx, p, &found); err != nil {
			return nil, err
		}
	}
	if len(found.good) == 0 {
		why := errors.New("the boot sector names no place of the metadata")
		if len(found.bad) > 0 {
			why = errors.Join(found.bad...)
		}
		if found.failed != nil {
			return nil, found.failed
		}
		return m, fmt.Errorf("%w: no copy of the BitLocker metadata is good: %s", diskcrypt.ErrDamaged, oneLine(why))
	}
	m.settle(found)
	return m, m.conversionState(p)
}

func oneLine(err error) string {
	return string(bytes.ReplaceAll([]byte(err.Error()), []byte("\n"), []byte("; ")))
}

// orphan looks for metadata where the boot sector is lost: overwritten by
// nothing that anything recognises.
func orphan(ctx context.Context, m *metadata, p diskcrypt.Place) (*metadata, error) {
	signatures, err := blockstack.Identify(p.Data, p.Size)
	if err != nil {
		return nil, err
	}
	if len(signatures) > 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	var found copies
	if err := m.scan(ctx, p, &found); err != nil {
		return nil, err
	}
	if len(found.good) == 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	m.orphan = true
	m.warn("the boot sector is lost; the BitLocker metadata were found by a search, at %d: Windows does not recognise the volume until it is repaired (repair-bde)", found.good[0].At)
	m.settle(found)
	return m, m.conversionState(p)
}

// copies are the copies of the metadata that were looked at.
type copies struct {
	good   []*fve.Block
	bad    []error
	seen   []int64
	failed error // of a device that cannot be read
}

// look reads the copy at an offset, once.
func (c *copies) look(p diskcrypt.Place, off int64) {
	if slices.Contains(c.seen, off) {
		return
	}
	c.seen = append(c.seen, off)
	b := []byte(nil)
	if off > 0 && off < p.Size {
		b = make([]byte, min(fve.BlockSize, p.Size-off))
		if _, err := io.ReadFull(io.NewSectionReader(p.Data, off, int64(len(b))), b); err != nil {
			c.failed = fmt.Errorf("read metadata at %d: %w", off, err)
			c.bad = append(c.bad, c.failed)
			return
		}
	}
	block, err := fve.ParseBlock(b, off, p.Size)
	if err != nil {
		c.bad = append(c.bad, fmt.Errorf("copy at %d: %w", off, err))
		return
	}
	c.good = append(c.good, block)
}

// collect reads the copies at the offsets, and those that a good one names.
func (m *metadata) collect(p diskcrypt.Place, offsets []int64) (found copies) {
	for _, off := range offsets {
		found.look(p, off)
	}
	if len(found.good) > 0 {
		for _, off := range found.good[0].Offsets {
			found.look(p, off)
		}
	}
	return found
}

// Limits of the search for metadata: Windows puts the first copy at some
// 33 MiB, or at the end of what is smaller.
const (
	scanBytes = 64 << 20
	scanStep  = 1 << 20
	scanGood  = 3
	scanTries = 64
)

// scan searches the start of the volume for metadata and for the information of
// a conversion.
func (m *metadata) scan(ctx context.Context, p diskcrypt.Place, found *copies) error {
	b := make([]byte, scanStep)
	var eow []int64
	for off := int64(0); off < min(scanBytes, p.Size); off += scanStep {
		if err := ctx.Err(); err != nil {
			return err
		}
		b = b[:min(scanStep, p.Size-off)]
		if _, err := io.ReadFull(io.NewSectionReader(p.Data, off, int64(len(b))), b); err != nil {
			return fmt.Errorf("search for metadata at %d: %w", off, err)
		}
		for i := 0; i+fve.BootSize <= len(b); i += fve.BootSize {
			switch at := off + int64(i); {
			case bytes.HasPrefix(b[i:], fve.Magic) && len(found.seen) < scanTries && len(found.good) < scanGood:
				found.look(p, at)
			case bytes.HasPrefix(b[i:], fve.MagicEOW) && len(eow) < scanTries:
				eow = append(eow, at)
			}
		}
	}
	if len(found.good) == 0 {
		return nil
	}
	for _, off := range found.good[0].Offsets {
		found.look(p, off)
	}
	if len(m.boot.EOW) == 0 {
		m.boot.EOW = eow
	}
	return nil
}

// settle chooses the newest of the good copies and says what is wrong with the others.
func (m *metadata) settle(found copies) {
	slices.SortStableFunc(found.good, func(a, b *fve.Block) int { return cmp.Compare(b.NextNonce, a.NextNonce) })
	m.copies, m.block = found.good, found.good[0]
	for _, err := range found.bad {
		m.warn("one of the copies of the metadata is not good: %v", err)
	}
	for _, c := range m.copies[1:] {
		if c.GUID != m.block.GUID {
			m.warn("the copy of the metadata at %d is of another volume, %s", c.At, c.GUID)
		} else if !bytes.Equal(c.Raw, m.block.Raw) {
			m.warn("the copies of the metadata differ (change counters %d and %d); the newest counts", m.block.NextNonce, c.NextNonce)
		}
	}
	if !m.orphan && m.boot.Flavour != fve.Vista && !slices.Equal(m.boot.Offsets, m.block.Offsets[:]) {
		m.warn("the boot sector and the metadata do not agree where the copies are")
	}
	m.sector = int64(m.boot.SectorSize)
	if m.sector == 0 || m.orphan {
		m.sector = guessSector(m.block)
		m.warn("the boot sector does not say the sector size; %d is assumed", m.sector)
	}
	m.cluster = max(1, int64(m.bootSector[13])) * m.sector
}

// guessSector tells the sector size by the area that Windows moves: 8 KiB,
// except on To Go.
func guessSector(b *fve.Block) int64 {
	if b.VirtualSectors == 8192/4096 {
		return 4096
	}
	return 512
}

// conversionState reads the bitmaps of a conversion. What is wrong with them is
// in eowFailed; the error is the device's.
func (m *metadata) conversionState(p diskcrypt.Place) (err error) {
	if m.block.Version == 1 {
		return m.vistaBackup(p)
	}
	if len(m.boot.EOW) == 0 {
		return nil
	}
	if m.eow, err = fve.ReadEOW(p.Data, p.Size, m.boot.EOW, m.sector); err != nil {
		m.eow = nil
		if errors.Is(err, fve.ErrDamaged) {
			m.eowFailed = err
			m.warn("%v: nobody can tell which parts of the volume are encrypted; only the boot area is given out", err)
			return nil
		}
		return fmt.Errorf("read the conversion's state: %w", err)
	}
	m.warnings = append(m.warnings, m.eow.Warnings...)
	if m.eow.Mixed() && m.block.State != fve.StateDecrypted {
		m.warn("a conversion is in progress: the chunks at its edge may hold both ciphertext and plaintext")
	}
	return nil
}

// vistaBackup looks for the copy of the boot sector behind the file system's last
// sector: like the first one it is not encrypted, if it is there at all.
func (m *metadata) vistaBackup(p diskcrypt.Place) error {
	const totalSectors = 40
	sectors := int64(binary.LittleEndian.Uint64(m.bootSector[totalSectors:]) & math.MaxInt64)
	if sectors <= vistaPlain/m.sector || sectors >= m.logicalSize()/m.sector {
		return nil
	}
	b := make([]byte, fve.BootSize)
	if _, err := io.ReadFull(io.NewSectionReader(p.Data, sectors*m.sector, fve.BootSize), b); err != nil {
		return fmt.Errorf("read the copy of the boot sector: %w", err)
	}
	if boot, err := fve.ParseBoot(b); err == nil && boot.Flavour == fve.Vista {
		m.backupBoot = sectors * m.sector
	}
	return nil
}
