package embedded

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Names in a backup besides those of the state directory.
const (
	backupHeader = "format"
	backupKEK    = "kek"
)

const maxBackupEntries = 1 << 20

// Backup writes the whole state, the KEK included, to w, sealed to recipients
// ("age1…", at least one): whoever has one of their identities can read every
// secret. It is the state of one moment; the lock is not held while w is slow.
func (m *Manager) Backup(ctx context.Context, w io.Writer, recipients []string) error {
	for _, r := range recipients {
		if err := envelope.CheckRecipient(r); err != nil {
			return fmt.Errorf("back up key manager: %w", err)
		}
	}
	files, err := m.collect(ctx)
	if err != nil {
		return fmt.Errorf("back up key manager: %w", err)
	}
	defer files.wipe()
	sealed, err := envelope.SealingWriter(w, recipients)
	if err != nil {
		return fmt.Errorf("back up key manager: %w", err)
	}
	if err := files.writeTo(sealed); err != nil {
		return fmt.Errorf("back up key manager: %w", err)
	}
	if err := sealed.Close(); err != nil {
		return fmt.Errorf("back up key manager: %w", err)
	}
	return nil
}

type backupFile struct {
	name string
	data []byte
}

type backupFiles []backupFile

func (f backupFiles) wipe() {
	for _, file := range f {
		if file.name == backupKEK {
			envelope.Wipe(file.data)
		}
	}
}

func (f backupFiles) writeTo(w io.Writer) error {
	archive := tar.NewWriter(w)
	for _, file := range f {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: file.name, Mode: 0o600, Size: int64(len(file.data)), Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := archive.Write(file.data); err != nil {
			return err
		}
	}
	return archive.Close()
}

// collect reads the state as of now. Records are encoded anew, so that a backup
// also has what an interrupted call left to be settled.
func (m *Manager) collect(ctx context.Context) (backupFiles, error) {
	t, end, err := m.begin(ctx, false)
	if err != nil {
		return nil, err
	}
	defer end()
	line, err := headerOf(t.dir)
	if err != nil {
		return nil, err
	}
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	x := newIndex()
	var secrets backupFiles
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		files, generation, err := t.collectSecret(name)
		if err != nil {
			return nil, err
		}
		if len(files) > 0 {
			x.Records[name] = generation
			secrets = append(secrets, files...)
		}
	}
	indexed, err := encodeIndex(t.k, x)
	if err != nil {
		return nil, err
	}
	files := backupFiles{
		{backupHeader, line},
		{backupKEK, bytes.Clone(t.k.kek.Expose())},
		{indexFile, indexed},
	}
	return append(files, secrets...), nil
}

func (t *transaction) collectSecret(name string) (files backupFiles, generation uint64, err error) {
	l, err := t.load(name)
	if err != nil || l.record == nil {
		return nil, 0, err
	}
	if l.record.Generation == 0 {
		l.record.Generation = 1
	}
	sealed, err := encodeRecord(t.k, name, l.record)
	if err != nil {
		return nil, 0, err
	}
	prefix := secretsFolder + "/" + name + "/"
	files = backupFiles{{prefix + recordFile, sealed}}
	for _, v := range l.record.Versions {
		if v.State == keymanager.Destroyed {
			continue
		}
		// A backup that says nothing of damage would be trusted too long.
		_, secret, err := t.bytesOf(name, v)
		if err != nil {
			return nil, 0, err
		}
		secret.Wipe()
		data, err := readBounded(t.versionPath(name, v.Number), maxVersion+envelope.SealedFrameOverhead+256)
		if err != nil {
			return nil, 0, err
		}
		files = append(files, backupFile{prefix + versionFile(v.Number), data})
	}
	return files, l.record.Generation, nil
}

// Restore brings a backup back into dir, which must hold no key manager:
// the same KEK under the same id, now sealed by sealer. identities is a text of
// age identities, one a line. The directory is initialised last, after
// everything in it has been opened once; until then Open refuses it.
func Restore(dir string, backup io.Reader, identities envelope.Secret, sealer Sealer) error {
	if err := restore(dir, backup, identities, sealer); err != nil {
		return fmt.Errorf("restore key manager into %s: %w", dir, err)
	}
	return nil
}

func restore(dir string, backup io.Reader, identities envelope.Secret, sealer Sealer) error {
	plain, err := envelope.OpeningReader(backup, identities)
	if errors.Is(err, envelope.ErrSealed) {
		return damaged("backup: %w", err)
	}
	if err != nil {
		return err
	}
	r := &backupReader{archive: tar.NewReader(plain)}
	h, k, err := r.prologue()
	if err != nil {
		return err
	}
	m := newManager(dir, h.KEK, k, Options{})
	defer m.Close()
	unlock, err := prepareEmpty(dir)
	if err != nil {
		return err
	}
	err = r.writeFiles(dir)
	if err == nil {
		// age authenticates its last chunk when its end is read.
		_, err = io.Copy(io.Discard, plain)
	}
	unlock()
	if err != nil {
		return err
	}
	if err := m.Check(context.Background()); err != nil {
		return err
	}
	return writeKEK(dir, h, k.kek, sealer, envelope.WriteNewFileDurable)
}

type backupReader struct {
	archive *tar.Reader
	entries int
}

// next returns io.EOF at the end.
func (r *backupReader) next() (backupFile, error) {
	h, err := r.archive.Next()
	if errors.Is(err, io.EOF) {
		return backupFile{}, io.EOF
	}
	if err != nil {
		return backupFile{}, damaged("backup: %w", err)
	}
	if r.entries++; r.entries > maxBackupEntries {
		return backupFile{}, damaged("backup: more than %d files", maxBackupEntries)
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > 2*maxMetadata {
		return backupFile{}, damaged("backup: %q is not a file of a key manager", h.Name)
	}
	var data bytes.Buffer // grows with what is there, not with what Size promises
	if _, err := io.Copy(&data, io.LimitReader(r.archive, 2*maxMetadata)); err != nil {
		return backupFile{}, damaged("backup: %w", err)
	}
	return backupFile{name: h.Name, data: data.Bytes()}, nil
}

func (r *backupReader) want(name string) ([]byte, error) {
	file, err := r.next()
	if errors.Is(err, io.EOF) || err == nil && file.name != name {
		return nil, damaged("backup: %s is missing", name)
	}
	return file.data, err
}

func (r *backupReader) prologue() (header, *keys, error) {
	line, err := r.want(backupHeader)
	if err != nil {
		return header{}, nil, err
	}
	h, err := parseHeader(line)
	if err != nil {
		return header{}, nil, err
	}
	kek, err := r.want(backupKEK)
	if err != nil {
		return header{}, nil, err
	}
	if len(kek) != envelope.KeySize {
		return header{}, nil, damaged("backup: the KEK is not %d bytes", envelope.KeySize)
	}
	return h, newKeys(envelope.NewSecret(kek)), nil
}

var backupName = regexp.MustCompile(`^` + secretsFolder + `/([0-9a-f]{32})/(record|[1-9][0-9]{0,8})\.sealed$`)

func (r *backupReader) writeFiles(dir string) error {
	indexed, err := r.want(indexFile)
	if err != nil {
		return err
	}
	if err := envelope.WriteFileDurable(filepath.Join(dir, indexFile), indexed, 0o600); err != nil {
		return err
	}
	for {
		file, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !backupName.MatchString(file.name) {
			return damaged("backup: %q is not a file of a key manager", file.name)
		}
		path := filepath.Join(dir, filepath.FromSlash(file.name))
		if err := makeFolder(filepath.Dir(path)); err != nil {
			return err
		}
		if err := envelope.WriteNewFileDurable(path, file.data, 0o600); err != nil {
			return err
		}
	}
}

// Check opens every record and every version that is not destroyed, and tells
// all damage it finds (keymanager.ErrDamaged).
func (m *Manager) Check(ctx context.Context) error {
	if err := m.check(ctx); err != nil {
		return fmt.Errorf("check key manager: %w", err)
	}
	return nil
}

func (m *Manager) check(ctx context.Context) error {
	t, end, err := m.begin(ctx, false)
	if err != nil {
		return err
	}
	defer end()
	names, err := t.names()
	if err != nil {
		return err
	}
	var broken []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, _, err := t.collectSecret(name); err != nil {
			broken = append(broken, err)
		}
	}
	return errors.Join(broken...)
}

// RebuildIndex makes index.sealed anew from the records, where it is lost or
// damaged, and says how many secrets it found. It believes what it finds: what
// was removed or taken back before is not noticed any more.
func RebuildIndex(dir string, sealer Sealer) (secrets int, err error) {
	secrets, err = rebuildIndex(dir, sealer)
	if err != nil {
		return 0, fmt.Errorf("rebuild index of key manager in %s: %w", dir, err)
	}
	return secrets, nil
}

func rebuildIndex(dir string, sealer Sealer) (int, error) {
	h, kek, err := readKEK(dir, sealer)
	if err != nil {
		return 0, err
	}
	m := newManager(dir, h.KEK, newKeys(kek), Options{})
	defer m.Close()
	unlock, err := lockFolder(context.Background(), dir, true)
	if err != nil {
		return 0, err
	}
	defer unlock()
	t := &transaction{Manager: m, k: m.keys, index: newIndex()}
	names, err := t.names()
	if err != nil {
		return 0, err
	}
	found := newIndex()
	for _, name := range names {
		l, err := t.load(name)
		if err != nil {
			return 0, err
		}
		if l.record == nil {
			continue
		}
		found.Records[name] = l.record.Generation
		for _, v := range l.record.Versions {
			if v.State == keymanager.Destroyed {
				found.Wiping = append(found.Wiping, wiping{Name: name, Version: v.Number})
			}
		}
	}
	t.index = found
	if err := t.writeIndex(); err != nil {
		return 0, err
	}
	return len(found.Records), t.finishWipes()
}

// String names the directory, so that a Manager printed by accident shows no more.
func (m *Manager) String() string { return "embedded key manager " + strconv.Quote(m.dir) }
