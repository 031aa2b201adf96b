package embedded

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/keymanager/keymanagertest"
)

func TestConformance(t *testing.T) {
	keymanagertest.Run(t, func(t *testing.T) (keymanager.Manager, func() keymanager.Manager) {
		dir, sealer := newDir(t)
		return mustOpen(t, dir, sealer), func() keymanager.Manager { return mustOpen(t, dir, sealer) }
	})
}

func newDir(t testing.TB) (dir string, sealer Sealer) {
	t.Helper()
	root := t.TempDir()
	sealer = GenerateKeyFile(filepath.Join(root, "keys", "kek.key"))
	dir = filepath.Join(root, "state", "keymanager")
	if err := Init(dir, sealer); err != nil {
		t.Fatal(err)
	}
	return dir, sealer
}

func mustOpen(t testing.TB, dir string, sealer Sealer) *Manager {
	t.Helper()
	m, err := Open(dir, sealer, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func request(id, content string) keymanager.Put {
	return keymanager.Put{
		ID: id, Kind: "passphrase", State: keymanager.Active, Reason: "test",
		Labels: map[string]string{keymanager.LabelMachine: "machine-1"},
		Secret: envelope.CopySecret([]byte(content)),
	}
}

func mustPut(t testing.TB, m *Manager, id, content string) keymanager.Version {
	t.Helper()
	v, err := m.Put(t.Context(), request(id, content))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hold(point string) keymanager.Hold {
	return keymanager.Hold{
		Repository: "r", Machine: "m", Point: point, Installer: "i",
		Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

// populate makes a state with every kind of file and every state.
func populate(t testing.TB, m *Manager) map[keymanager.Ref]string {
	t.Helper()
	want := map[keymanager.Ref]string{}
	for _, id := range []string{"alpha", "beta"} {
		for _, content := range []string{"correct horse battery", "staple", "hunter2"} {
			want[mustPut(t, m, id, content).Ref] = content
		}
	}
	must(t, m.SetState(t.Context(), keymanager.Ref{ID: "alpha", Version: 1}, keymanager.Deactivated, "rotated"))
	must(t, m.Hold(t.Context(), keymanager.Ref{ID: "alpha", Version: 2}, hold("point-1")))
	must(t, m.Destroy(t.Context(), keymanager.Ref{ID: "beta", Version: 2}, "test"))
	want[keymanager.Ref{ID: "beta", Version: 2}] = ""
	return want
}

// wantState checks bytes of every version; "" means destroyed.
func wantState(t testing.TB, m *Manager, want map[keymanager.Ref]string) {
	t.Helper()
	must(t, m.Check(t.Context()))
	for ref, content := range want {
		got, err := m.Get(t.Context(), ref)
		switch {
		case content == "" && !errors.Is(err, keymanager.ErrDestroyed):
			t.Errorf("get %s: error %v, want ErrDestroyed", ref, err)
		case content != "" && err != nil:
			t.Errorf("get %s: %v", ref, err)
		case string(got.Expose()) != content:
			t.Errorf("get %s: other bytes", ref)
		}
		got.Wipe()
	}
}

func TestWrap(t *testing.T) {
	dir, sealer := newDir(t)
	a, b := mustOpen(t, dir, sealer), mustOpen(t, dir, sealer)
	otherDir, otherSealer := newDir(t)
	stranger := mustOpen(t, otherDir, otherSealer)
	key, err := envelope.NewKey()
	must(t, err)
	wrapped, err := a.Wrap(t.Context(), key, []byte("repository 1"))
	must(t, err)
	got, err := b.Unwrap(t.Context(), wrapped, []byte("repository 1"))
	must(t, err)
	if !got.Equal(key) || a.ID() != b.ID() || a.ID() == stranger.ID() || !strings.HasPrefix(a.ID(), "embedded:") {
		t.Errorf("unwrapped another key, or ids are wrong: %s, %s, %s", a.ID(), b.ID(), stranger.ID())
	}
	if _, err := b.Unwrap(t.Context(), wrapped, []byte("repository 2")); !errors.Is(err, envelope.ErrFrameAuth) {
		t.Errorf("unwrap with another context: %v", err)
	}
	if _, err := stranger.Unwrap(t.Context(), wrapped, []byte("repository 1")); !errors.Is(err, envelope.ErrFrameAuth) {
		t.Errorf("unwrap by another manager: %v", err)
	}
	must(t, a.Close())
	must(t, a.Close())
	if _, err := a.Unwrap(t.Context(), wrapped, nil); !errors.Is(err, keymanager.ErrSealed) {
		t.Errorf("unwrap after close: %v", err)
	}
	if _, err := a.List(t.Context()); !errors.Is(err, keymanager.ErrSealed) {
		t.Errorf("list after close: %v", err)
	}
}

func TestInit(t *testing.T) {
	dir, sealer := newDir(t)
	if err := Init(dir, sealer); !errors.Is(err, ErrInitialised) {
		t.Errorf("second init: %v", err)
	}
	if _, err := Open(t.TempDir(), sealer, Options{}); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("open of an empty folder: %v", err)
	}
	mustPut(t, mustOpen(t, dir, sealer), "alpha", "x")
	must(t, os.Remove(filepath.Join(dir, kekFile)))
	if err := Init(dir, sealer); !errors.Is(err, ErrInitialised) {
		t.Errorf("init over secrets whose KEK is lost: %v", err)
	}
}

func TestNewerFormatsAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		header string
		want   error
		says   string
	}{
		"version":    {`{"format":"lockstep-keymanager","version":2,"kek":"00112233445566778899aabbccddeeff"}`, ErrFormat, "version 2"},
		"feature":    {`{"format":"lockstep-keymanager","version":1,"must_understand":["shamir shares"]}`, ErrFormat, "shamir shares"},
		"format":     {`{"format":"other","version":1}`, ErrFormat, "other"},
		"KEK's id":   {`{"format":"lockstep-keymanager","version":1,"kek":"00"}`, keymanager.ErrDamaged, "id"},
		"not JSON":   {`{`, keymanager.ErrDamaged, "header"},
		"may ignore": {`{"format":"lockstep-keymanager","version":1,"kek":"00112233445566778899aabbccddeeff","may_ignore":["x"],"new":1}`, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseHeader([]byte(c.header + "\n"))
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v that says %q", err, c.want, c.says)
			}
		})
	}
}

func TestPlaintextIsNowhere(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	const content, id, label = "Plaintext-Of-The-Secret", "id-of-the-secret", "label-of-the-secret"
	p := request(id, content)
	p.Labels = map[string]string{label: label}
	_, err := m.Put(t.Context(), p)
	must(t, err)
	must(t, m.Hold(t.Context(), keymanager.Ref{ID: id, Version: 1}, hold("point-of-the-hold")))
	mustPut(t, m, id, content+" 2")
	kek := m.keys.kek.Expose()
	files := 0
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, needle := range [][]byte{
			[]byte(content), []byte(hex.EncodeToString([]byte(content))), []byte(base64.StdEncoding.EncodeToString([]byte(content))),
			[]byte(id), []byte(label), []byte("point-of-the-hold"), kek, []byte(hex.EncodeToString(kek)),
		} {
			if bytes.Contains(data, needle) || strings.Contains(path, string(needle)) {
				t.Errorf("%q shows in %s", needle, path)
			}
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
		return nil
	}))
	if files != 6 { // KEK, index, lock, record, two versions
		t.Errorf("looked at %d files, want 6", files)
	}
}

func TestSizesAreRounded(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	sizes := map[int64]bool{}
	for i, n := range []int{1, 8, 20, 60} {
		v := mustPut(t, m, fmt.Sprint("s", i), strings.Repeat("x", n))
		info, err := os.Stat(filepath.Join(dir, secretsFolder, m.keys.nameOf(v.Ref.ID), "1.sealed"))
		must(t, err)
		sizes[info.Size()] = true
	}
	if len(sizes) != 1 {
		t.Errorf("passphrases of 1 to 60 bytes have files of %d sizes", len(sizes))
	}
}

func TestRepairByPuttingAgain(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	v := mustPut(t, m, "alpha", "x")
	must(t, os.Remove(filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"), "1.sealed")))
	if _, err := m.Get(t.Context(), v.Ref); !errors.Is(err, keymanager.ErrDamaged) {
		t.Errorf("get of a lost version: %v", err)
	}
	if v := mustPut(t, m, "alpha", "x"); v.Ref.Version != 2 {
		t.Errorf("put gave %s, want version 2", v.Ref)
	}
}

// TestCancelWhileWaiting holds the lock as another process would.
func TestCancelWhileWaiting(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	unlock, err := lockFolder(t.Context(), dir, true)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error, 2)
	go func() { _, err := m.Put(ctx, request("alpha", "x")); answers <- err }()
	go func() { _, err := m.List(ctx); answers <- err }()
	cancel()
	for range 2 {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	}
	unlock()
	mustPut(t, m, "alpha", "y") // the waits that were left behind gave the lock back
}

func TestRebuildIndex(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	want := populate(t, m)
	must(t, os.Remove(filepath.Join(dir, indexFile)))
	if _, err := m.List(t.Context()); !errors.Is(err, keymanager.ErrDamaged) {
		t.Fatalf("list without an index: %v", err)
	}
	if n, err := RebuildIndex(dir, sealer); err != nil || n != 2 {
		t.Fatalf("rebuilt with %d secrets: %v", n, err)
	}
	wantState(t, m, want)
	mustPut(t, m, "alpha", "next")
}

func TestBackup(t *testing.T) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	want := populate(t, m)
	key, err := envelope.NewKey()
	must(t, err)
	wrapped, err := m.Wrap(t.Context(), key, []byte("c"))
	must(t, err)
	identity, recipient, err := envelope.GenerateIdentity()
	must(t, err)
	stranger, _, err := envelope.GenerateIdentity()
	must(t, err)
	var backup bytes.Buffer
	must(t, m.Backup(t.Context(), &backup, []string{recipient}))
	before, err := m.List(t.Context())
	must(t, err)

	root := t.TempDir()
	sealer2 := GenerateKeyFile(filepath.Join(root, "kek.key"))
	restored := filepath.Join(root, "restored")
	must(t, Restore(restored, bytes.NewReader(backup.Bytes()), identity, sealer2))
	m2 := mustOpen(t, restored, sealer2)
	wantState(t, m2, want)
	after, err := m2.List(t.Context())
	must(t, err)
	if !reflect.DeepEqual(before, after) {
		t.Errorf("restored %+v, want %+v", after, before)
	}
	if got, err := m2.Unwrap(t.Context(), wrapped, []byte("c")); err != nil || !got.Equal(key) || m.ID() != m2.ID() {
		t.Errorf("what the first wrapped does not open with the restored: %v", err)
	}
	mustPut(t, m2, "alpha", "after the restore")

	if err := m.Backup(t.Context(), &bytes.Buffer{}, nil); !errors.Is(err, envelope.ErrRecipient) {
		t.Errorf("backup to nobody: %v", err)
	}
	if err := Restore(restored, bytes.NewReader(backup.Bytes()), identity, sealer2); !errors.Is(err, ErrInitialised) {
		t.Errorf("restore over a key manager: %v", err)
	}
	fresh := filepath.Join(root, "fresh")
	if err := Restore(fresh, bytes.NewReader(backup.Bytes()), stranger, sealer2); !errors.Is(err, envelope.ErrNoIdentity) {
		t.Errorf("restore with a stranger's identity: %v", err)
	}
	for _, size := range []int{0, 10, 300, backup.Len() / 2, backup.Len() - 1} {
		into := filepath.Join(root, fmt.Sprint("cut", size))
		if err := Restore(into, bytes.NewReader(backup.Bytes()[:size]), identity, sealer2); !errors.Is(err, keymanager.ErrDamaged) {
			t.Errorf("restore of %d of %d bytes: %v", size, backup.Len(), err)
		}
		if _, err := Open(into, sealer2, Options{}); !errors.Is(err, ErrNotInitialised) {
			t.Errorf("open after a failed restore: %v", err)
		}
	}
}

func TestReseal(t *testing.T) {
	dir, from := newDir(t)
	want := populate(t, mustOpen(t, dir, from))
	path := filepath.Join(t.TempDir(), "passphrase")
	must(t, os.WriteFile(path, []byte("a new passphrase\nits hint\n"), 0o600))
	to := passphraseFile{path: path, cost: argonCost{1, 64, 1}}
	must(t, Reseal(dir, from, to))
	wantState(t, mustOpen(t, dir, to), want)
	if _, err := Open(dir, from, Options{}); !errors.Is(err, keymanager.ErrSealed) || !strings.Contains(err.Error(), "passphrase-file") {
		t.Errorf("open with the old sealer: %v", err)
	}
}
