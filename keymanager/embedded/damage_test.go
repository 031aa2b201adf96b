package embedded

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// stateFiles lists the files of a state directory, without the empty lock.
func stateFiles(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != lockName {
			files = append(files, path)
		}
		return err
	}))
	return files
}

// wantTold opens a damaged directory: every read gives the right bytes or a
// typed error, and at least one gives the error.
func wantTold(t testing.TB, what, dir string, sealer Sealer, want map[keymanager.Ref]string) {
	t.Helper()
	m, err := Open(dir, sealer, Options{})
	if err != nil {
		if !errors.Is(err, keymanager.ErrDamaged) && !errors.Is(err, ErrNotInitialised) {
			t.Errorf("%s: open: error %v is not typed", what, err)
		}
		return
	}
	defer m.Close()
	if err := m.Check(t.Context()); !errors.Is(err, keymanager.ErrDamaged) {
		t.Errorf("%s: check: error %v, want ErrDamaged", what, err)
	}
	for ref, content := range want {
		got, err := m.Get(t.Context(), ref)
		switch {
		case err == nil && string(got.Expose()) != content:
			t.Errorf("%s: get %s gave wrong bytes", what, ref)
		case err != nil && !errors.Is(err, keymanager.ErrDamaged) && !(content == "" && errors.Is(err, keymanager.ErrDestroyed)):
			t.Errorf("%s: get %s: error %v is not typed", what, ref, err)
		}
		got.Wipe()
	}
}

func TestEveryBitFlipIsTold(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	want := populate(t, m)
	must(t, m.Close())
	kinds := map[string]int{}
	for _, path := range stateFiles(t, dir) {
		whole, err := os.ReadFile(path)
		must(t, err)
		kinds[filepath.Base(path)]++
		for i := range whole {
			flipped := append([]byte(nil), whole...)
			flipped[i] ^= 1 << (i % 8)
			must(t, os.WriteFile(path, flipped, 0o600))
			wantTold(t, path, dir, sealer, want)
			if t.Failed() {
				t.Fatalf("%s: byte %d of %d flipped", path, i, len(whole))
			}
		}
		for _, size := range []int{0, 1, len(whole) / 2, len(whole) - 1} {
			must(t, os.WriteFile(path, whole[:size], 0o600))
			wantTold(t, path+" cut", dir, sealer, want)
		}
		must(t, os.WriteFile(path, append(whole[:len(whole):len(whole)], 0), 0o600))
		wantTold(t, path+" with a byte more", dir, sealer, want)
		must(t, os.Remove(path))
		wantTold(t, path+" removed", dir, sealer, want)
		must(t, os.WriteFile(path, whole, 0o600))
	}
	wantState(t, mustOpen(t, dir, sealer), want)
	for _, kind := range []string{kekFile, indexFile, recordFile, "1.sealed"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s was tried", kind)
		}
	}
}

func TestExchangedFilesAreTold(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	want := populate(t, m)
	alpha := filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"))
	beta := filepath.Join(dir, secretsFolder, m.keys.nameOf("beta"))
	otherDir, otherSealer := newDir(t)
	other := mustOpen(t, otherDir, otherSealer)
	populate(t, other)
	otherAlpha := filepath.Join(otherDir, secretsFolder, other.keys.nameOf("alpha"))
	for _, c := range []struct{ from, to string }{
		{filepath.Join(alpha, "1.sealed"), filepath.Join(alpha, "2.sealed")},
		{filepath.Join(alpha, "1.sealed"), filepath.Join(beta, "1.sealed")},
		{filepath.Join(alpha, recordFile), filepath.Join(beta, recordFile)},
		{filepath.Join(otherAlpha, "1.sealed"), filepath.Join(alpha, "1.sealed")},
		{filepath.Join(otherAlpha, recordFile), filepath.Join(alpha, recordFile)},
		{filepath.Join(otherDir, indexFile), filepath.Join(dir, indexFile)},
		{filepath.Join(alpha, recordFile), filepath.Join(dir, indexFile)},
	} {
		whole, err := os.ReadFile(c.to)
		must(t, err)
		foreign, err := os.ReadFile(c.from)
		must(t, err)
		must(t, os.WriteFile(c.to, foreign, 0o600))
		wantTold(t, c.from+" over "+c.to, dir, sealer, want)
		must(t, os.WriteFile(c.to, whole, 0o600))
	}
	must(t, os.Rename(beta, beta+".away"))
	wantTold(t, "a secret's folder removed", dir, sealer, want)
}

func TestRecordTakenBackIsTold(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	want := populate(t, m)
	path := filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"), recordFile)
	old, err := os.ReadFile(path)
	must(t, err)
	must(t, m.Hold(t.Context(), keymanager.Ref{ID: "alpha", Version: 1}, hold("point-2")))
	must(t, os.WriteFile(path, old, 0o600))
	wantTold(t, "record from before a hold", dir, sealer, want)
	if err := m.Destroy(t.Context(), keymanager.Ref{ID: "alpha", Version: 1}, "r"); !errors.Is(err, keymanager.ErrDamaged) {
		t.Errorf("destroy without the hold that was taken back: %v", err)
	}
	infos, err := m.List(t.Context())
	if !errors.Is(err, keymanager.ErrDamaged) || len(infos) != 1 || infos[0].ID != "beta" {
		t.Errorf("list gave %+v and %v, want the other secret and ErrDamaged", infos, err)
	}
	mustPut(t, m, "beta", "goes on")
}

// TestOldCopyOverNewer: whoever copies an old backup of the folder over it
// takes index and record back together; the newer versions are still there.
func TestOldCopyOverNewer(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	mustPut(t, m, "alpha", "first")
	record := filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"), recordFile)
	saved := map[string][]byte{}
	for _, path := range []string{filepath.Join(dir, indexFile), record} {
		data, err := os.ReadFile(path)
		must(t, err)
		saved[path] = data
	}
	mustPut(t, m, "alpha", "second")
	mustPut(t, m, "alpha", "third")
	for path, data := range saved {
		must(t, os.WriteFile(path, data, 0o600))
	}
	want := map[keymanager.Ref]string{
		{ID: "alpha", Version: 1}: "first", {ID: "alpha", Version: 2}: "second", {ID: "alpha", Version: 3}: "third",
	}
	wantState(t, m, want)
	if v := mustPut(t, m, "alpha", "fourth"); v.Ref.Version != 4 {
		t.Errorf("put gave %s, want version 4", v.Ref)
	}
	wantState(t, m, want)
}

func TestSealers(t *testing.T) {
	root := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(root, name)
		must(t, os.WriteFile(path, []byte(content), mode))
		must(t, os.Chmod(path, mode))
		return path
	}
	key := strings.Repeat("k", 40)
	passphrase := PassphraseFile(file("passphrase", "correct horse\nnot this\n", 0o600))
	keyed := KeyFile(file("key", key+"\n", 0o400))
	for name, c := range map[string]struct {
		init, open Sealer
		want       []error
	}{
		"passphrase":                  {passphrase, passphrase, nil},
		"same passphrase elsewhere":   {passphrase, PassphraseFile(file("crlf", "correct horse\r\n", 0o600)), nil},
		"wrong passphrase":            {passphrase, PassphraseFile(file("wrong", "correct horse \n", 0o600)), []error{keymanager.ErrSealed, ErrWrongKey}},
		"no passphrase":               {passphrase, PassphraseFile(file("empty", "\nsecond", 0o600)), []error{keymanager.ErrSealed, envelope.ErrEmptySecret}},
		"passphrase file missing":     {passphrase, PassphraseFile(filepath.Join(root, "nowhere")), []error{keymanager.ErrSealed, fs.ErrNotExist}},
		"passphrase file for all":     {passphrase, PassphraseFile(file("open", "correct horse", 0o644)), []error{keymanager.ErrSealed, ErrPermissions}},
		"key file":                    {keyed, keyed, nil},
		"key file without newline":    {keyed, KeyFile(file("key2", key, 0o600)), []error{keymanager.ErrSealed, ErrWrongKey}},
		"key file too short":          {keyed, KeyFile(file("short", key[:31], 0o600)), []error{keymanager.ErrSealed, ErrWeakKeyFile}},
		"key file for the group":      {keyed, KeyFile(file("group", key+"\n", 0o640)), []error{keymanager.ErrSealed, ErrPermissions}},
		"key file for a passphrase's": {passphrase, keyed, []error{keymanager.ErrSealed}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			must(t, Init(dir, c.init))
			m, err := Open(dir, c.open, Options{})
			if (err == nil) != (c.want == nil) {
				t.Fatalf("open: %v", err)
			}
			for _, want := range c.want {
				if !errors.Is(err, want) {
					t.Errorf("open: error %v, want one that is %q", err, want)
				}
			}
			if err != nil {
				if strings.Contains(err.Error(), "horse") || strings.Contains(err.Error(), key[:10]) {
					t.Errorf("the error shows what was read: %v", err)
				}
				return
			}
			mustPut(t, m, "alpha", "x")
			must(t, m.Close())
		})
	}
}

func TestGenerateKeyFile(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "deep", "kek.key")
	sealer := GenerateKeyFile(path)
	must(t, Init(filepath.Join(root, "a"), sealer))
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 || info.Size() != envelope.KeySize {
		t.Errorf("generated key file: mode %v, %d bytes", info.Mode(), info.Size())
	}
	if said := sealer.Describe(); !strings.Contains(said, path) || !strings.Contains(said, "can read the secrets") || !strings.Contains(said, "move it") {
		t.Errorf("describe does not name place and weakness: %s", said)
	}
	before, err := os.ReadFile(path)
	must(t, err)
	must(t, Init(filepath.Join(root, "b"), sealer)) // as after an interrupted Init
	after, err := os.ReadFile(path)
	must(t, err)
	if string(before) != string(after) {
		t.Error("the key file was replaced")
	}
	precious := filepath.Join(root, "precious")
	must(t, os.WriteFile(precious, []byte("something of the user's"), 0o600))
	if err := Init(filepath.Join(root, "c"), GenerateKeyFile(precious)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("generate over a user's file: %v", err)
	}
}
