package envelope

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadSecret(t *testing.T) {
	for _, c := range []struct {
		name, in  string
		firstLine bool
		want      string
		err       error
	}{
		{"key file keeps its line end", "key\n", false, "key\n", nil},
		{"passphrase", "pass phrase\n", true, "pass phrase", nil},
		{"passphrase of Windows", "pass\r\n", true, "pass", nil},
		{"no line end", "pass", true, "pass", nil},
		{"carriage return without line end", "pass\r", true, "pass\r", nil},
		{"second line ignored", "one\ntwo\n", true, "one", nil},
		{"spaces kept", " pass ", true, " pass ", nil},
		{"empty", "", false, "", ErrEmptySecret},
		{"empty line", "\n", true, "", ErrEmptySecret},
		{"longer than a buffer", strings.Repeat("x", 100_000), false, strings.Repeat("x", 100_000), nil},
		{"largest", strings.Repeat("x", MaxSecretFile), false, strings.Repeat("x", MaxSecretFile), nil},
		{"too large", strings.Repeat("x", MaxSecretFile+1), false, "", ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ReadSecret(iotest.HalfReader(strings.NewReader(c.in)), c.firstLine)
			if !errors.Is(err, c.err) || string(got.Expose()) != c.want {
				t.Errorf("%d bytes, %v; want %v", got.Len(), err, c.err)
			}
			viaStdin, err := ReadSecretFile("-", c.firstLine, strings.NewReader(c.in))
			if !errors.Is(err, c.err) || !viaStdin.Equal(got) {
				t.Errorf("standard input: %v", err)
			}
		})
	}
	if _, err := ReadSecretFile("-", true, nil); err == nil {
		t.Error("read without standard input")
	}
	if _, err := ReadSecret(iotest.ErrReader(fs.ErrPermission), true); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("failing reader: %v", err)
	}
	if _, err := ReadSecretFile(filepath.Join(t.TempDir(), "absent"), true, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func TestWriteFileDurable(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	for _, content := range []string{"one", "two, longer", ""} {
		if err := WriteFileDurable(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("read %q, %v", got, err)
		}
	}
	if err := WriteNewFileDurable(path, []byte("x"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting: %v", err)
	}
	if got, _ := os.ReadFile(path); len(got) != 0 {
		t.Errorf("content is now %q", got)
	}
	if err := WriteNewFileDurable(filepath.Join(dir, "new"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if err := WriteFileDurable(filepath.Join(dir, "absent", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent folder: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "new")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestReadBoundedLeavesNoCopies(t *testing.T) {
	var seen [][]byte
	content := bytes.Repeat([]byte("s"), 20_000)
	r := &spyReader{r: bytes.NewReader(content), seen: &seen}
	got, err := readBounded(r, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for _, buf := range seen {
		if &buf[0] != &got.Expose()[0] && bytes.IndexByte(buf, 's') >= 0 {
			t.Errorf("a buffer of %d bytes still holds the secret", len(buf))
		}
	}
}

// spyReader keeps the first buffer it was given at each capacity.
type spyReader struct {
	r    *bytes.Reader
	seen *[][]byte
}

func (s *spyReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 && n == len(p) {
		*s.seen = append(*s.seen, p)
	}
	return n, err
}
