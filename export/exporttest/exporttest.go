// Package exporttest makes recovery points for tests of what reads them.
package exporttest

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

// Disk is the content of one disk.
type Disk struct {
	ID      string
	Content []byte
	Header  bool // its first sector is stored as a header copy as well
}

// Repository makes a sealed repository in a store. The custodian's key is for
// what it takes over from others.
func Repository(tb testing.TB, st store.Store) (r *repository.Repository, custodian envelope.SigningKey) {
	tb.Helper()
	var keys [3]envelope.SigningKey
	var err error
	for i, role := range []string{envelope.RoleWriter, envelope.RoleProver, envelope.RoleCustodian} {
		keys[i], err = envelope.GenerateSigningKey(role)
		must(tb, err)
	}
	identity, recipient, err := envelope.GenerateIdentity()
	must(tb, err)
	_, _, err = repository.Create(tb.Context(), st, repository.CreateOptions{
		Writer: keys[0].Public(), Prover: keys[1].Public(), Custodian: keys[2],
		Holders: []repository.NewHolder{{Name: "host", Recipient: recipient}},
	})
	must(tb, err)
	r, err = repository.Open(tb.Context(), st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: identity}, Writer: &keys[0]})
	must(tb, err)
	tb.Cleanup(func() { _ = r.Close() })
	return r, keys[2]
}

// Store stores disks as a recovery point of a new machine.
func Store(tb testing.TB, r *repository.Repository, disks ...Disk) *repository.Manifest {
	tb.Helper()
	ctx := tb.Context()
	m, err := r.CreateMachine(ctx, "", "web01")
	must(tb, err)
	w, err := r.Begin(ctx, m.ID, repository.BeginOptions{})
	must(tb, err)
	mf := &repository.Manifest{Time: time.Now().UTC().Truncate(time.Millisecond), Consistency: "crash-consistent"}
	for _, d := range disks {
		dd, err := w.WriteDisk(ctx, repository.DiskInput{ID: d.ID, Source: whole{bytes.NewReader(d.Content)}})
		must(tb, err)
		if d.Header {
			id, err := w.PutHeader(ctx, []disk.Range{{Length: 512}}, int64(len(d.Content)), bytes.NewReader(d.Content))
			must(tb, err)
			dd.Headers = []repository.HeaderRef{{Volume: "disk", ID: id}}
		}
		mf.Disks = append(mf.Disks, dd)
	}
	point, err := w.Commit(ctx, mf)
	must(tb, err)
	mf, err = r.Manifest(ctx, point)
	must(tb, err)
	return mf
}

// Point stores disks in a sealed repository in a folder of the test's, and
// opens the recovery point.
func Point(tb testing.TB, disks ...Disk) *export.Point {
	tb.Helper()
	st, err := localdir.Create(tb.TempDir()+"/repository", localdir.Options{})
	must(tb, err)
	tb.Cleanup(func() { _ = st.Close() })
	r, _ := Repository(tb, st)
	return Open(tb, r, Store(tb, r, disks...), export.Options{})
}

// Open opens a recovery point for as long as the test takes.
func Open(tb testing.TB, r *repository.Repository, m *repository.Manifest, o export.Options) *export.Point {
	tb.Helper()
	p, err := export.Open(tb.Context(), r, m, o)
	must(tb, err)
	tb.Cleanup(func() { must(tb, p.Close()) })
	return p
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// whole has data everywhere.
type whole struct{ *bytes.Reader }

func (w whole) NextData(off int64) (disk.Range, error) {
	if off >= w.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: w.Size() - off}, nil
}
