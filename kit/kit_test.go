package kit_test

import (
	"bytes"
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
	"github.com/lockstep-backup/lockstep/kit"
)

func testKit(t testing.TB, withIdentity bool) kit.Kit {
	t.Helper()
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	k := kit.Kit{
		Recipients: []string{recipient},
		Repository: strings.Repeat("0123", 8),
		Locations:  []string{"/srv/backup/repository", "s3://bucket/with space"},
		TrustRoot:  "sha256:" + strings.Repeat("ab", 32),
		Created:    time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	if withIdentity {
		k.Identity = envelope.CopySecret(append(bytes.TrimSpace(id.Expose()), '\n'))
	}
	for _, role := range []string{envelope.RoleWriter, envelope.RoleProver, envelope.RoleCustodian} {
		key, err := envelope.GenerateSigningKey(role)
		if err != nil {
			t.Fatal(err)
		}
		k.Keys = append(k.Keys, key.Public())
	}
	return k
}

func encode(t testing.TB, k kit.Kit) string {
	t.Helper()
	text, err := kit.Encode(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(text.Expose())
}

func same(t *testing.T, got, want kit.Kit) {
	t.Helper()
	if !got.Identity.Equal(want.Identity) {
		t.Error("identity differs")
	}
	got.Identity, want.Identity = envelope.Secret{}, envelope.Secret{}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestWriteRead(t *testing.T) {
	for _, withIdentity := range []bool{true, false} {
		k := testKit(t, withIdentity)
		path := filepath.Join(t.TempDir(), "kit.txt")
		if err := kit.Write(path, k); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
		got, err := kit.Read(path)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, k)
		if err := kit.Write(path, k); !errors.Is(err, fs.ErrExist) {
			t.Errorf("write over a kit: %v", err)
		}
	}
}

// The kit is an age identity file, so that age alone can open what it opens.
func TestIsIdentityFile(t *testing.T) {
	k := testKit(t, true)
	sealed, err := envelope.SealToRecipients([]byte("content"), k.Recipients)
	if err != nil {
		t.Fatal(err)
	}
	got, err := envelope.OpenWithIdentities(sealed, envelope.CopySecret([]byte(encode(t, k))))
	if err != nil || string(got.Expose()) != "content" {
		t.Fatalf("open with the kit as identity file: %v", err)
	}
}

func TestParseTyped(t *testing.T) {
	k := testKit(t, true)
	text := encode(t, k)
	var typed strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "# ") && line != "#\n" {
			typed.WriteString("  " + strings.TrimRight(line, "\n") + " \r\n\r\n")
		}
	}
	got, err := kit.Parse(envelope.CopySecret([]byte(typed.String())))
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, k)
}

func TestParseBad(t *testing.T) {
	text := encode(t, testKit(t, true))
	other := encode(t, testKit(t, true))
	identity := func(s string) string {
		for line := range strings.Lines(s) {
			if strings.HasPrefix(line, "AGE-SECRET-KEY-") {
				return line
			}
		}
		return ""
	}
	replace := func(old, replacement string) string {
		s := strings.Replace(text, old, replacement, 1)
		if s == text {
			panic("nothing replaced: " + old)
		}
		return s
	}
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"empty":               {"", kit.ErrNotKit},
		"bare identity":       {identity(text), kit.ErrNotKit},
		"later version":       {replace("lockstep-kit 1", "lockstep-kit 2"), kit.ErrVersion},
		"unknown line":        {replace("#: created", "#: frobnicate yes\n#: created"), kit.ErrVersion},
		"first line gone":     {replace("#: lockstep-kit 1\n", "#: created 2020-01-01T00:00:00Z\n#: lockstep-kit 1\n"), kit.ErrDamaged},
		"end gone":            {text[:strings.Index(text, "#: sum")], kit.ErrDamaged},
		"something behind":    {text + "#: repository x\n", kit.ErrDamaged},
		"repository changed":  {replace("#: repository 0", "#: repository 1"), kit.ErrDamaged},
		"pin changed":         {replace("#: trust-root sha256:a", "#: trust-root sha256:b"), kit.ErrDamaged},
		"identity exchanged":  {replace(identity(text), identity(other)), kit.ErrDamaged},
		"identity taken away": {replace(identity(text), ""), kit.ErrDamaged},
		"key damaged":         {replace("#: key lockstep-key-v1", "#: key lockstep-key-v9"), kit.ErrDamaged},
		"repository twice":    {replace("#: repository", "#: repository 00\n#: repository"), kit.ErrDamaged},
		"date":                {replace("#: created 2026", "#: created x026"), kit.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := kit.Parse(envelope.CopySecret([]byte(c.text)))
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if strings.Contains(fmt.Sprintf("%v %+v", err, err), "AGE-SECRET-KEY-") {
				t.Fatal("the error shows the identity")
			}
		})
	}
}

func TestCheck(t *testing.T) {
	for name, change := range map[string]func(*kit.Kit){
		"repository":       func(k *kit.Kit) { k.Repository = "x" },
		"trust root":       func(k *kit.Kit) { k.TrustRoot = "sha256:x" },
		"no recipient":     func(k *kit.Kit) { k.Recipients = nil },
		"bad recipient":    func(k *kit.Kit) { k.Recipients = append(k.Recipients, "age1x") },
		"foreign identity": func(k *kit.Kit) { k.Recipients = testKit(t, true).Recipients },
		"no keys":          func(k *kit.Kit) { k.Keys = nil },
		"location":         func(k *kit.Kit) { k.Locations = []string{"a\nAGE"} },
		"no date":          func(k *kit.Kit) { k.Created = time.Time{} },
		"not an identity":  func(k *kit.Kit) { k.Identity = envelope.CopySecret([]byte("AGE-SECRET-KEY-1X\n")) },
	} {
		t.Run(name, func(t *testing.T) {
			k := testKit(t, true)
			change(&k)
			if err := kit.Write(filepath.Join(t.TempDir(), "kit"), k); err == nil {
				t.Fatal("written")
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(encode(f, testKit(f, true))))
	f.Add([]byte(encode(f, testKit(f, false))))
	f.Add([]byte("#: lockstep-kit 1\n#: sum sha256:\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := kit.Parse(envelope.CopySecret(raw))
		if err != nil {
			return
		}
		text, err := kit.Encode(k)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := kit.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		same(t, again, k)
	})
}
