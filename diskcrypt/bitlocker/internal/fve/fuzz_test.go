package fve_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
)

type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// seed is a volume in the middle of a used-space-only conversion.
func seed(f *testing.F) (memory, *bitlockerformat.Volume) {
	f.Helper()
	m := make(memory, 1<<20)
	v, err := bitlockerformat.Format(context.Background(), m, make([]byte, 1<<20), bitlockerformat.Options{
		Label: "seed", Chunks: []bool{true, false, true, true}, ChunkSize: 256 << 10,
		Protectors: []bitlockerformat.Protector{{Kind: bitlockerformat.StartupKey, Name: "ExternalKey"}, {Kind: bitlockerformat.TPM}, {Kind: bitlockerformat.ClearKey}},
	})
	if err != nil {
		f.Fatal(err)
	}
	return m, v
}

func FuzzParseBoot(f *testing.F) {
	m, _ := seed(f)
	f.Add([]byte(m[:fve.BootSize]))
	f.Fuzz(func(t *testing.T, b []byte) {
		boot, err := fve.ParseBoot(b)
		for _, off := range append(boot.Offsets, boot.EOW...) {
			if err != nil || off < 0 {
				t.Errorf("offset %d, %v", off, err)
			}
		}
	})
}

func FuzzParseBlock(f *testing.F) {
	m, v := seed(f)
	f.Add([]byte(m[v.Blocks[0]:][:4096]), v.Blocks[0])
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		const size = 1 << 20
		block, err := fve.ParseBlock(b, at, size)
		if err != nil {
			return
		}
		if block.VirtualSectors > 0 && block.VirtualOffset+block.VirtualSectors*512 > size || block.Extent() > block.Room()+512 && block.Version == 2 {
			t.Errorf("%+v", block)
		}
		for _, d := range block.Datums {
			d.Text()
			if p, ok := d.Protector(); ok {
				p.Box()
				_, _ = fve.Time(p.FileTime).MarshalJSON()
			}
		}
	})
}

func FuzzParseDatums(f *testing.F) {
	m, v := seed(f)
	f.Add([]byte(m[v.Blocks[0]+112:][:700]))
	f.Fuzz(func(t *testing.T, b []byte) {
		ds, err := fve.ParseDatums(b)
		if err != nil {
			return
		}
		for _, d := range ds {
			d.Key()
			d.Box()
			d.Stretch()
			if _, err := fve.Time(uint64(len(b))).MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzParseKeyFile(f *testing.F) {
	_, v := seed(f)
	f.Add(v.Protectors[0].Secret)
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := fve.ParseKeyFile(b); err == nil && len(k.Key) != 32 {
			t.Errorf("key of %d bytes", len(k.Key))
		}
	})
}

func FuzzReadEOW(f *testing.F) {
	m, v := seed(f)
	from := v.EOW[0]
	f.Add([]byte(m[from:from+8192]), from)
	f.Fuzz(func(t *testing.T, b []byte, at int64) {
		const size = 1 << 20
		image := make([]byte, size)
		if at < 0 || at >= size {
			at = 0
		}
		copy(image[at:], b)
		e, err := fve.ReadEOW(bytes.NewReader(image), size, []int64{at}, 512)
		if err != nil {
			return
		}
		if e.Done > e.Chunks {
			t.Errorf("%d of %d chunks", e.Done, e.Chunks)
		}
	})
}
