// Package provetest is an installation in a test's temporary folder: key
// manager, catalog, repository, prover, and machines with real LUKS disks.
// Only tests import it.
package provetest

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/custody/prover"
	"github.com/lockstep-backup/lockstep/custody/prover/provertest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/keymanager/embedded"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// Env is the installation.
type Env struct {
	T         testing.TB
	Dir       string
	Store     *memstore.Store
	Repo      *repository.Repository
	Catalog   *catalog.Catalog
	Manager   *Manager
	Deps      prove.Deps
	ProverKey envelope.SigningKey
	Custodian envelope.SigningKey
	Identity  envelope.Secret // of the recovery recipient
	Recipient string
	Clock     time.Time
	Log       *Buffer // everything that was logged
	Audit     []audit.Event

	writer     envelope.SigningKey
	passphrase envelope.Secret
	trustRoot  string
	disks      map[string]*Device // by source
}

// Buffer is a log's text.
type Buffer struct {
	mu sync.Mutex
	b  []byte
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p...)
	return len(p), nil
}

// Bytes is what was written.
func (b *Buffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]byte(nil), b.b...)
}

// Manager is a key manager that can be away.
type Manager struct {
	keymanager.Manager
	Away bool
}

// List fails while the manager is away, as Get and Hold do.
func (m *Manager) List(ctx context.Context) ([]keymanager.Info, error) {
	if m.Away {
		return nil, keymanager.ErrUnavailable
	}
	return m.Manager.List(ctx)
}

// Get implements keymanager.Manager.
func (m *Manager) Get(ctx context.Context, ref keymanager.Ref) (envelope.Secret, error) {
	if m.Away {
		return envelope.Secret{}, keymanager.ErrUnavailable
	}
	return m.Manager.Get(ctx, ref)
}

// Hold implements keymanager.Manager.
func (m *Manager) Hold(ctx context.Context, ref keymanager.Ref, h keymanager.Hold) error {
	if m.Away {
		return keymanager.ErrUnavailable
	}
	return m.Manager.Hold(ctx, ref, h)
}

// Must ends the test on an error.
func (e *Env) Must(err error) {
	e.T.Helper()
	if err != nil {
		e.T.Fatal(err)
	}
}

// New makes an installation whose prover runs in the test's process.
func New(tb testing.TB) *Env {
	tb.Helper()
	ctx := context.Background()
	e := &Env{T: tb, Dir: tb.TempDir(), Clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Log: &Buffer{}, disks: map[string]*Device{}}
	key := func(role string) envelope.SigningKey {
		k, err := envelope.GenerateSigningKey(role)
		e.Must(err)
		return k
	}
	e.writer, e.ProverKey, e.Custodian = key(envelope.RoleWriter), key(envelope.RoleProver), key(envelope.RoleCustodian)
	var err error
	e.Identity, e.Recipient, err = envelope.GenerateIdentity()
	e.Must(err)
	keys := filepath.Join(e.Dir, "keys")
	e.Must(embedded.Init(keys, embedded.GenerateKeyFile(filepath.Join(e.Dir, "kek"))))
	m, err := embedded.Open(keys, embedded.KeyFile(filepath.Join(e.Dir, "kek")), embedded.Options{})
	e.Must(err)
	e.Manager = &Manager{Manager: m}
	e.Catalog = e.OpenCatalog("catalog.db")
	e.passphrase = envelope.NewSecret([]byte("repository passphrase"))
	e.Store = memstore.New()
	id, root, err := repository.Create(ctx, e.Store, repository.CreateOptions{
		Holders: []repository.NewHolder{{Name: "passphrase", Passphrase: e.passphrase, WorkFactor: 1}},
		Writer:  e.writer.Public(), Prover: e.ProverKey.Public(), Custodian: e.Custodian,
	})
	e.Must(err)
	e.trustRoot = root
	e.Repo = e.OpenRepo()
	e.Must(e.Catalog.Repositories.Put(ctx, catalog.Repository{ID: id, URL: "mem:", TrustRoot: root, LastReadAt: e.Clock}))
	logger := slog.New(slog.NewTextHandler(e.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e.Deps = prove.Deps{
		Repo: e.Repo, Catalog: e.Catalog, Manager: e.Manager, Custodian: e.Custodian,
		Prover:     provertest.Start(tb, e.ProverDeps()),
		Recipients: []string{e.Recipient}, Installation: "inst",
		Formats: []diskcrypt.Format{luks.Format{}}, Live: e.live,
		Now: e.Now, Log: logger, Actor: "uid:0",
		Audit: func(_ context.Context, ev audit.Event) error { e.Audit = append(e.Audit, ev); return nil },
	}
	return e
}

// Now is a clock that goes on by a second with each look.
func (e *Env) Now() time.Time {
	e.Clock = e.Clock.Add(time.Second)
	return e.Clock
}

// ProverDeps is what the installation's prover works with.
func (e *Env) ProverDeps() prover.Deps {
	return prover.Deps{
		Manager:    func(context.Context) (keymanager.Manager, error) { return e.Manager, nil },
		Formats:    []diskcrypt.Format{luks.Format{}},
		Key:        e.ProverKey,
		MACKey:     envelope.NewSecret(make([]byte, 32)),
		Recipients: func(context.Context) ([]string, error) { return e.Deps.Recipients, nil },
		Software:   "lockstep test", Now: func() time.Time { return e.Clock },
	}
}

// OpenCatalog opens another catalog, empty.
func (e *Env) OpenCatalog(name string) *catalog.Catalog {
	e.T.Helper()
	c, err := sqlite.Open(context.Background(), filepath.Join(e.Dir, name), sqlite.Options{Create: true})
	e.Must(err)
	e.T.Cleanup(func() { _ = c.Maintenance.Close() })
	return c
}

// OpenRepo opens the repository anew.
func (e *Env) OpenRepo() *repository.Repository {
	e.T.Helper()
	r, err := repository.Open(context.Background(), e.Store, repository.OpenOptions{
		Unlock: repository.Unlocker{Passphrase: e.passphrase}, Writer: &e.writer, TrustRoot: e.trustRoot,
		Now: func() time.Time { return e.Clock },
	})
	e.Must(err)
	return r
}

// Machine enrols a machine with the given disks.
func (e *Env) Machine(name string, disks map[string]*Device) catalog.Machine {
	e.T.Helper()
	m := catalog.Machine{ID: machineID(name), Name: name, Created: e.Now()}
	for _, id := range sorted(disks) {
		src := name + "/" + id
		e.disks[src] = disks[id]
		d := catalog.MachineDisk{ID: id, Source: src}
		if h := disks[id].Header; h != nil {
			d.Header = src + ".header"
			e.disks[d.Header] = &Device{Bytes: h}
		}
		m.Disks = append(m.Disks, d)
	}
	e.Must(e.Catalog.Machines.Put(context.Background(), m))
	return m
}

func machineID(name string) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 32)
	for i := range out {
		out[i] = digits[(int(name[i%len(name)])*(i+1))%16]
	}
	return string(out)
}

func sorted(m map[string]*Device) []string {
	var out []string
	for _, id := range []string{"vda", "vdb", "vdc"} {
		if m[id] != nil {
			out = append(out, id)
		}
	}
	return out
}

// Backup makes a recovery point of the machine and proves it.
func (e *Env) Backup(m catalog.Machine) (string, prove.Result) {
	e.T.Helper()
	id := e.Store1(m)
	res, err := prove.Points(context.Background(), e.Deps, []string{id}, nil)
	e.Must(err)
	return id, res[0]
}

// BackupDeps is what a backup of the installation's machines works with.
func (e *Env) BackupDeps() backup.Deps {
	return backup.Deps{
		Repository: e.Repo, Catalog: e.Catalog, Formats: e.Deps.Formats, Now: e.Now, Software: "lockstep test",
		Open: func(_ context.Context, spec string, _ source.Options) (source.Disk, error) {
			if d := e.disks[spec]; d != nil {
				return d, nil
			}
			return nil, source.ErrNotFound
		},
	}
}

// Store1 makes a recovery point without proving it.
func (e *Env) Store1(m catalog.Machine) string {
	e.T.Helper()
	res, err := backup.Run(context.Background(), e.BackupDeps(), backup.Request{Machine: m})
	e.Must(err)
	return res.Point.ID
}

// Add takes a passphrase into custody.
func (e *Env) Add(m catalog.Machine, passphrase string, edit ...func(*prove.AddRequest)) (prove.AddResult, error) {
	req := prove.AddRequest{Machine: m.ID, Kind: diskcrypt.KindPassphrase, Secret: envelope.NewSecret([]byte(passphrase))}
	for _, f := range edit {
		f(&req)
	}
	return prove.AddSecret(context.Background(), e.Deps, req)
}

// Mark sets a mark on a recovery point, or takes one back.
func (e *Env) Mark(point string, m custody.Mark) {
	e.T.Helper()
	p, err := e.Deps.Catalog.Points.Get(context.Background(), point)
	e.Must(err)
	e.Must(prove.SetMark(context.Background(), e.Deps, p, m))
}

// State is a recovery point's state as a fresh look at the catalog gives it.
func (e *Env) State(point string) custody.Verdict {
	e.T.Helper()
	p, err := e.Deps.Catalog.Points.Get(context.Background(), point)
	e.Must(err)
	v, err := prove.Load(context.Background(), e.Deps, p.Machine)
	e.Must(err)
	return v.Verdict(p)
}

func (e *Env) live(_ context.Context, m catalog.Machine) ([]prove.LiveDisk, error) {
	var out []prove.LiveDisk
	for _, d := range m.Disks {
		dev := e.disks[d.Source]
		if dev.Gone {
			return out, source.ErrNotFound
		}
		l := prove.LiveDisk{ID: d.ID, Size: dev.Size(), Disk: dev}
		if dev.Header != nil {
			l.Header, l.HeaderSize = &Device{Bytes: dev.Header}, int64(len(dev.Header))
		}
		out = append(out, l)
	}
	return out, nil
}

// Device is a disk in memory; it is a source.Disk.
type Device struct {
	Bytes  []byte
	Header []byte // detached
	Gone   bool   // not readable any more
}

// ReadAt implements io.ReaderAt.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(d.Bytes)) {
		return 0, io.EOF
	}
	n := copy(p, d.Bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(d.Bytes)) {
		return 0, io.ErrShortWrite
	}
	return copy(d.Bytes[off:], p), nil
}

// Size in bytes.
func (d *Device) Size() int64 { return int64(len(d.Bytes)) }

// Check implements source.Disk.
func (d *Device) Check() error { return nil }

// Close implements source.Disk.
func (d *Device) Close() error { return nil }

// Consistency implements source.Disk.
func (d *Device) Consistency() source.Consistency { return source.ConsistencyCrash }

// NextData implements source.Disk.
func (d *Device) NextData(off int64) (disk.Range, error) {
	if off >= d.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: d.Size() - off}, nil
}

// Changed implements source.Disk.
func (d *Device) Changed(context.Context, string) ([]disk.Range, bool, string, error) {
	return nil, false, "no tracking", nil
}

// Plaintext stands at the beginning of every encrypted disk.
const Plaintext = "PLAINTEXT-MARKER-OF-THE-VOLUME"

// Encrypted makes a LUKS2 disk that the passphrases open.
func (e *Env) Encrypted(passphrases ...string) *Device {
	e.T.Helper()
	d := &Device{Bytes: make([]byte, 2<<20)}
	v, err := luksformat.Format(d, d.Size(), luksformat.Options{KeyslotsSize: 4 * 258048})
	e.Must(err)
	defer v.Close()
	for _, p := range passphrases {
		_, err := v.AddKey(context.Background(), envelope.NewSecret([]byte(p)), luksformat.KDF{})
		e.Must(err)
	}
	w, err := v.Payload(d, d.Size())
	e.Must(err)
	sector := make([]byte, 4096)
	copy(sector, Plaintext)
	_, err = w.WriteAt(sector, 0)
	e.Must(err)
	return d
}

// Rotate changes the passphrase of the first key slot.
func (e *Env) Rotate(d *Device, old, new string) {
	e.T.Helper()
	v, err := luksformat.Attach(context.Background(), d, d.Size(), envelope.NewSecret([]byte(old)))
	e.Must(err)
	defer v.Close()
	_, err = v.ChangeKey(context.Background(), 0, envelope.NewSecret([]byte(new)), luksformat.KDF{})
	e.Must(err)
}
