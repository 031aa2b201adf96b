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
	"github.com/lockstep-backup/lockstep/store/localdir"
)

// Disk is the content of one disk.
type Disk struct {
	ID      string
	Content []byte
}

// Point stores disks in a sealed repository in a folder of the test's, and
// opens the recovery point.
func Point(tb testing.TB, disks ...Disk) *export.Point {
	tb.Helper()
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	ctx := tb.Context()
	st, err := localdir.Create(tb.TempDir()+"/repository", localdir.Options{})
	must(err)
	var keys [3]envelope.SigningKey
	for i, role := range []string{envelope.RoleWriter, envelope.RoleProver, envelope.RoleCustodian} {
		keys[i], err = envelope.GenerateSigningKey(role)
		must(err)
	}
	identity, recipient, err := envelope.GenerateIdentity()
	must(err)
	_, _, err = repository.Create(ctx, st, repository.CreateOptions{
		Writer: keys[0].Public(), Prover: keys[1].Public(), Custodian: keys[2],
		Holders: []repository.NewHolder{{Name: "host", Recipient: recipient}},
	})
	must(err)
	r, err := repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: identity}, Writer: &keys[0]})
	must(err)
	m, err := r.CreateMachine(ctx, "", "web01")
	must(err)
	w, err := r.Begin(ctx, m.ID, repository.BeginOptions{})
	must(err)
	mf := &repository.Manifest{Time: time.Now().UTC().Truncate(time.Millisecond), Consistency: "crash-consistent"}
	for _, d := range disks {
		dd, err := w.WriteDisk(ctx, repository.DiskInput{ID: d.ID, Source: whole{bytes.NewReader(d.Content)}})
		must(err)
		mf.Disks = append(mf.Disks, dd)
	}
	point, err := w.Commit(ctx, mf)
	must(err)
	mf, err = r.Manifest(ctx, point)
	must(err)
	p, err := export.Open(ctx, r, mf)
	must(err)
	tb.Cleanup(func() {
		if err := p.Close(); err != nil {
			tb.Error(err)
		}
		_ = r.Close()
		_ = st.Close()
	})
	return p
}

// whole has data everywhere.
type whole struct{ *bytes.Reader }

func (w whole) NextData(off int64) (disk.Range, error) {
	if off >= w.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: w.Size() - off}, nil
}
