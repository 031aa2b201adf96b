package repository_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// toVersion1 makes of every map object what early versions wrote: the same
// pages without a table.
func toVersion1(tb testing.TB, mem *memstore.Store) {
	tb.Helper()
	for _, key := range allKeys(tb, mem, "map/") {
		err := mem.Corrupt(key, func(p []byte) []byte {
			n, err := format.TrailerSize(p[len(p)-format.FooterSize:], int64(len(p)), false)
			if err != nil {
				tb.Fatal(err)
			}
			f, err := format.ParseTrailer(p[int64(len(p))-n:], int64(len(p)), false)
			if err != nil {
				tb.Fatal(err)
			}
			p = p[:f.DataEnd]
			binary.LittleEndian.PutUint16(p[8:], 1)
			binary.LittleEndian.PutUint32(p[60:], castagnoli(p[:60]))
			var crcs format.CRCs
			_, _ = crcs.Write(p)
			return append(p, format.MapTrailer1(f.DataEnd, crcs.Finish())...)
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// TestMapsOfVersion1 are read, checked, gone on from, and go when no recovery
// point can need them.
func TestMapsOfVersion1(t *testing.T) {
	mem := memstore.New()
	f, kept, d := mostlyDead(t, mem)
	toVersion1(t, mem)
	f.repo = f.open(t)
	for _, key := range allKeys(t, mem, "") {
		if err := repository.CheckStored(t.Context(), mem, key); err != nil {
			t.Error(err)
		}
		if err := f.repo.CheckObject(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(content(t, f.repo, kept), d) {
		t.Fatal("content differs")
	}
	now := bytes.Clone(d)
	copy(now, noise(3, 70000))
	p, _ := f.backup(t, &memDisk{p: now}, repository.BeginOptions{})
	maps := len(allKeys(t, mem, "map/"))
	if res := f.reclaim(t, repository.ReclaimOptions{}); res.Deleted.Objects == 0 || len(allKeys(t, mem, "map/")) != maps {
		t.Fatalf("%+v, maps %v", res, allKeys(t, mem, "map/"))
	}
	r := f.open(t)
	if !bytes.Equal(content(t, r, kept), d) || !bytes.Equal(content(t, r, p), now) {
		t.Fatal("content differs")
	}
	for _, point := range []string{kept.ID, p.ID} {
		if err := f.repo.Delete(t.Context(), f.machine.ID, point, "test"); err != nil {
			t.Fatal(err)
		}
	}
	f.reclaim(t, repository.ReclaimOptions{})
	if left := allKeys(t, mem, "map/"); len(left) != 0 {
		t.Fatalf("left: %v", left)
	}
}
