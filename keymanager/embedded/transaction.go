package embedded

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// transaction is what a call works with while it has the lock.
type transaction struct {
	*Manager
	k     *keys
	index *index
}

// begin takes the lock and reads the index.
func (m *Manager) begin(ctx context.Context, exclusive bool) (t *transaction, end func(), err error) {
	k, done, err := m.use(ctx)
	if err != nil {
		return nil, nil, err
	}
	// One waiting writer and a few readers for each process: each waits in a
	// thread of its own.
	queue := m.readers
	if exclusive {
		queue = m.writers
	}
	select {
	case queue <- struct{}{}:
	case <-ctx.Done():
		done()
		return nil, nil, ctx.Err()
	}
	unlock, err := lockFolder(ctx, m.dir, exclusive)
	if err != nil {
		<-queue
		done()
		return nil, nil, err
	}
	end = func() { unlock(); <-queue; done() }
	data, err := readBounded(filepath.Join(m.dir, indexFile), maxMetadata+envelope.SealedFrameOverhead)
	if errors.Is(err, fs.ErrNotExist) {
		err = damaged("%s is missing", indexFile)
	}
	var x *index
	if err == nil {
		x, err = decodeIndex(k, data)
	}
	if err != nil {
		end()
		return nil, nil, err
	}
	return &transaction{Manager: m, k: k, index: x}, end, nil
}

func (t *transaction) folder(name string) string { return filepath.Join(t.dir, secretsFolder, name) }

func (t *transaction) versionPath(name string, n int) string {
	return filepath.Join(t.folder(name), versionFile(n))
}

// loaded is a secret as it lies there.
type loaded struct {
	record *record // nil: there is no such secret
	// adopted: the record lists versions that only their files tell of.
	adopted bool
	// torn is the file of a version that a file system without hard links left
	// half written; "" if there is none.
	torn string
}

// load reads a secret's record, and the versions whose Put was interrupted
// before the record listed them.
func (t *transaction) load(name string) (loaded, error) {
	var l loaded
	data, err := readBounded(filepath.Join(t.folder(name), recordFile), maxMetadata+envelope.SealedFrameOverhead)
	switch {
	case err == nil:
		if l.record, err = decodeRecord(t.k, name, data); err != nil {
			return l, err
		}
		if want := t.index.Records[name]; l.record.Generation < want {
			return l, damaged("%s/%s: generation %d, the index knows %d: it was taken back", name, recordFile, l.record.Generation, want)
		}
	case errors.Is(err, fs.ErrNotExist):
		if t.index.Records[name] > 0 {
			return l, damaged("%s/%s is missing", name, recordFile)
		}
	default:
		return l, err
	}
	for {
		n := 1
		if l.record != nil {
			n += len(l.record.Versions)
		}
		b, secret, err := t.openVersion(name, n)
		if errors.Is(err, fs.ErrNotExist) {
			return l, nil
		}
		if errors.Is(err, keymanager.ErrDamaged) {
			l.torn = t.versionPath(name, n)
			return l, nil
		}
		if err != nil {
			return l, err
		}
		secret.Wipe()
		l.record, l.adopted = b.join(l.record), true
	}
}

func (t *transaction) openVersion(name string, n int) (birth, envelope.Secret, error) {
	data, err := readBounded(t.versionPath(name, n), maxVersion+envelope.SealedFrameOverhead+256)
	if err != nil {
		return birth{}, envelope.Secret{}, err
	}
	return decodeVersion(t.k, name, n, data)
}

// settle finishes what an interrupted call left over, so that the change to
// come, also one that finds its work done already, stands on what is durable.
// It returns nil for a secret that does not exist.
func (t *transaction) settle(name string) (*record, error) {
	if err := t.finishWipes(); err != nil {
		return nil, err
	}
	for _, folder := range []string{t.dir, t.folder(name)} {
		if err := t.sweep(folder); err != nil {
			return nil, err
		}
	}
	l, err := t.load(name)
	if err != nil {
		return nil, err
	}
	if l.torn != "" {
		if err := t.wipeFile(l.torn); err != nil {
			return nil, err
		}
	}
	if l.record == nil {
		return nil, nil
	}
	if l.adopted || l.record.Generation != t.index.Records[name] {
		if err := t.commit(name, l.record); err != nil {
			return nil, err
		}
	}
	return l.record, nil
}

// commit writes a changed record: it is the change. The index follows.
func (t *transaction) commit(name string, r *record) error {
	if err := t.writeRecord(name, r); err != nil {
		return err
	}
	t.index.Records[name] = r.Generation
	return t.writeIndex()
}

func (t *transaction) writeRecord(name string, r *record) error {
	r.Generation = max(r.Generation, t.index.Records[name]) + 1
	data, err := encodeRecord(t.k, name, r)
	if err != nil {
		return err
	}
	return t.durable("record", func() error {
		return envelope.WriteFileDurable(filepath.Join(t.folder(name), recordFile), data, 0o600)
	})
}

func (t *transaction) writeIndex() error {
	return t.durable("index", func() error { return writeIndex(t.dir, t.k, t.index) })
}

// finishWipes wipes what interrupted Destroys left. A secret whose record is
// damaged keeps its entry and does not stand in the way of the others.
func (t *transaction) finishWipes() error {
	if len(t.index.Wiping) == 0 {
		return nil
	}
	left := []wiping{}
	for _, w := range t.index.Wiping {
		l, err := t.load(w.Name)
		if errors.Is(err, keymanager.ErrDamaged) {
			left = append(left, w)
			continue
		}
		if err != nil {
			return err
		}
		if v := l.record.find(w.Version); v != nil && v.State == keymanager.Destroyed {
			if err := t.wipeFile(t.versionPath(w.Name, w.Version)); err != nil {
				return err
			}
		}
	}
	if len(left) == len(t.index.Wiping) {
		return nil
	}
	t.index.Wiping = left
	return t.writeIndex()
}

// finishWipes does it at Open, and only takes the exclusive lock if there is
// something to finish.
func (m *Manager) finishWipes() error {
	ctx := context.Background()
	t, end, err := m.begin(ctx, false)
	if err != nil {
		return err
	}
	pending := len(t.index.Wiping)
	end()
	if pending == 0 {
		return nil
	}
	t, end, err = m.begin(ctx, true)
	if err != nil {
		return err
	}
	defer end()
	return t.finishWipes()
}

// names lists the folders of secrets, and what the index knows though its folder is gone.
func (t *transaction) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.dir, secretsFolder))
	if errors.Is(err, fs.ErrNotExist) {
		err = damaged("%s is missing", secretsFolder)
	}
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var names []string
	for _, e := range entries {
		if validName(e.Name()) {
			seen[e.Name()] = true
			names = append(names, e.Name())
		}
	}
	for name := range t.index.Records {
		if !seen[name] {
			names = append(names, name)
		}
	}
	return names, nil
}

// bytesOf opens a listed version; a file that is gone is damage.
func (t *transaction) bytesOf(name string, v *version) (birth, envelope.Secret, error) {
	b, secret, err := t.openVersion(name, v.Number)
	if errors.Is(err, fs.ErrNotExist) {
		err = damaged("%s/%s is missing", name, versionFile(v.Number))
	}
	return b, secret, err
}
