package browse

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

// made is a file system as somebody who means harm would make it.
type made struct {
	files map[uint64]madeFile
	fold  bool
}

type madeFile struct {
	info    Info
	entries []Entry
	content string
}

const madeRoot = 2

func (m *made) Facts() Facts { return Facts{Class: "ext4", Owners: true, FoldCase: m.fold} }
func (m *made) Root() uint64 { return madeRoot }

func (m *made) Stat(id uint64) (Info, error) {
	f, ok := m.files[id]
	if !ok {
		return Info{}, fsys.Corrupt("no inode %d", id)
	}
	f.info.ID, f.info.Size = id, int64(len(f.content))
	return f.info, nil
}

func (m *made) List(dir uint64, yield func(Entry) bool) error {
	for _, e := range m.files[dir].entries {
		if !yield(e) {
			break
		}
	}
	return nil
}
func (m *made) ReadLink(id uint64) (string, error) { return m.files[id].content, nil }
func (m *made) Open(id uint64) (File, error) {
	return fsys.BytesFile([]byte(m.files[id].content), int64(len(m.files[id].content)))
}
func (m *made) Xattrs(uint64) ([]Xattr, error) { return nil, nil }

// hostile makes one of entries of the root.
func hostile(entries ...madeEntry) *FS {
	m := &made{files: map[uint64]madeFile{}}
	next := uint64(madeRoot)
	var add func(e madeEntry) uint64
	add = func(e madeEntry) uint64 {
		id := next
		next++
		f := madeFile{info: Info{Type: e.kind, Mode: e.mode, Links: 1, Modified: time.Unix(1e9, 0)}, content: e.content}
		for _, x := range e.in {
			f.entries = append(f.entries, Entry{Name: x.name, ID: add(x), Type: x.kind})
		}
		m.files[id] = f
		return id
	}
	add(madeEntry{kind: Dir, mode: 0o755, in: entries})
	return &FS{fs: m, dirs: map[uint64]map[string]uint64{}}
}

type madeEntry struct {
	name, content string
	kind          Type
	mode          uint32
	in            []madeEntry
}

func file(name, content string) madeEntry {
	return madeEntry{name: name, content: content, kind: Regular, mode: 0o644}
}
func link(name, to string) madeEntry { return madeEntry{name: name, content: to, kind: Symlink} }
func dir(name string, in ...madeEntry) madeEntry {
	return madeEntry{name: name, kind: Dir, mode: 0o755, in: in}
}

// Nothing is written outside of the folder, and what one name spoils leaves the
// others alone.
func TestGetOfHostileNamesAndLinks(t *testing.T) {
	for _, k := range []struct {
		name     string
		entries  []madeEntry
		force    bool
		problems int
		want     map[string]string // file under the folder → content, "-> target" of a link
	}{
		{"dot dot", []madeEntry{file("..", "x"), file(".", "x"), dir("..", file("victim", "x")), file("good", "1")}, false, 1, map[string]string{"root/good": "1"}},
		{"slashes", []madeEntry{file("../victim", "x"), file("/victim", "x"), file("a/../../../victim", "x"), file("nul\x00", "x"), file("", "x"), file("good", "1")}, false, 1, map[string]string{"root/good": "1"}},
		{"link, then a file through it", []madeEntry{link("d", ".."), dir("d", file("victim", "x")), link("e", "/"), dir("e", file("victim", "x")), file("good", "1")}, false, 2, map[string]string{"root/d": "-> ..", "root/e": "-> /", "root/good": "1"}},
		{"link to a file, then that file", []madeEntry{link("f", "../../outside/victim"), file("f", "x"), file("good", "1")}, false, 1, map[string]string{"root/f": "-> ../../outside/victim", "root/good": "1"}},
		{"the same, forced", []madeEntry{link("f", "../../outside/victim"), file("f", "x")}, true, 0, map[string]string{"root/f": "x"}},
		{"absolute link", []madeEntry{link("passwd", "/etc/passwd"), file("good", "1")}, false, 0, map[string]string{"root/passwd": "-> /etc/passwd", "root/good": "1"}},
		{"newline and escape", []madeEntry{file("a\nb\x1b[31m", "1")}, false, 0, map[string]string{"root/a\nb\x1b[31m": "1"}},
		{"names that differ in case", []madeEntry{file("a", "1"), file("A", "2")}, false, 0, map[string]string{"root/a": "1", "root/A": "2"}},
		{"one name twice", []madeEntry{file("a", "1"), file("a", "2"), file("b", "3")}, false, 1, map[string]string{"root/a": "1", "root/b": "3"}},
		{"a name too long for this machine", []madeEntry{file(strings.Repeat("漢", 200), "x"), dir(strings.Repeat("漢", 200), file("x", "x")), file("good", "1")}, false, 2, map[string]string{"root/good": "1"}},
		{"a link to nothing", []madeEntry{link("empty", ""), link("nul", "a\x00b"), file("good", "1")}, false, 2, map[string]string{"root/good": "1"}},
		{"devices", []madeEntry{{name: "sda", kind: BlockDevice, mode: 0o666}, {name: "null", kind: CharDevice}, {name: "fifo", kind: Fifo}, {name: "socket", kind: Socket}, file("good", "1")}, false, 4, map[string]string{"root/good": "1"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			victim := filepath.Join(top, "outside", "victim")
			to := filepath.Join(top, "to")
			for _, d := range []string{to, filepath.Dir(victim)} {
				if err := os.Mkdir(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(victim, []byte("whole"), 0o600); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(to)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			r, _, err := hostile(k.entries...).Get(context.Background(), root, "/", GetOptions{Force: k.force})
			if err != nil || len(r.Problems) != k.problems {
				t.Errorf("%v; problems %v", err, r.Problems)
			}
			got := map[string]string{}
			err = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				rel, _ := filepath.Rel(to, p)
				if d.Type()&fs.ModeSymlink != 0 {
					target, err := os.Readlink(p)
					got[rel] = "-> " + target
					return err
				}
				b, err := os.ReadFile(p)
				got[rel] = string(b)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got["../outside/victim"] != "whole" {
				t.Errorf("outside: %q", got)
			}
			delete(got, "../outside/victim")
			for n, want := range k.want {
				if got[n] != want {
					t.Errorf("%q is %q, not %q", n, got[n], want)
				}
				delete(got, n)
			}
			if len(got) > 0 {
				t.Errorf("too many: %q", got)
			}
		})
	}
}

// A file of the machine is written over with --force alone, and a link there is
// replaced, not followed.
func TestGetOverWhatIsThere(t *testing.T) {
	to := t.TempDir()
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	there := filepath.Join(to, "f")
	if err := os.WriteFile(there, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f := hostile(file("f", "theirs"), dir("d", file("g", "theirs")))
	read := func(p string) string {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if _, _, err := f.Get(context.Background(), root, "/f", GetOptions{}); !errors.Is(err, fs.ErrExist) || read(there) != "mine" {
		t.Errorf("over a file: %v, %q", err, read(there))
	}
	if _, _, err := f.Get(context.Background(), root, "/f", GetOptions{Force: true}); err != nil || read(there) != "theirs" {
		t.Errorf("forced over a file: %v, %q", err, read(there))
	}
	if err := errors.Join(os.Remove(there), os.Symlink(outside, there)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Get(context.Background(), root, "/f", GetOptions{Force: true}); err != nil || read(there) != "theirs" || read(outside) != "whole" {
		t.Errorf("forced over a link: %v, %q, outside %q", err, read(there), read(outside))
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(to, "d")); err != nil {
		t.Fatal(err)
	}
	for _, force := range []bool{false, true} {
		if _, _, err := f.Get(context.Background(), root, "/d", GetOptions{Force: force}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a directory over a link to one, force %v: %v", force, err)
		}
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(outside), "g")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("written through a link: %v", err)
	}
}

func TestGetOfHostileModes(t *testing.T) {
	for _, k := range []struct {
		mode   uint32
		owners bool
		want   fs.FileMode
	}{
		{0o6755, false, 0o755},
		{0o1777, false, 0o777},
		{0o6755, true, 0o755 | fs.ModeSetuid | fs.ModeSetgid},
	} {
		if k.owners && os.Getuid() != 0 {
			continue
		}
		to := t.TempDir()
		root, err := os.OpenRoot(to)
		if err != nil {
			t.Fatal(err)
		}
		f := hostile(madeEntry{name: "f", kind: Regular, mode: k.mode, content: "#!"})
		if _, _, err := f.Get(context.Background(), root, "/f", GetOptions{Owners: k.owners}); err != nil {
			t.Fatal(err)
		}
		st, err := os.Lstat(filepath.Join(to, "f"))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != k.want {
			t.Errorf("mode %o, owners %v: %v", k.mode, k.owners, st.Mode())
		}
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Links in circles and out of the file system lead nowhere else.
func TestLinksStayInside(t *testing.T) {
	f := hostile(link("a", "b"), link("b", "a"), link("up", "../../../../etc"), dir("etc", file("passwd", "inside")), link("abs", "/etc/passwd"))
	for name, want := range map[string]string{"/up/passwd": "inside", "/abs": "inside", "/../../etc/passwd": "inside"} {
		var b bytes.Buffer
		if _, err := f.Cat(context.Background(), &b, name); err != nil || b.String() != want {
			t.Errorf("%s: %q, %v", name, b.String(), err)
		}
	}
	if _, err := f.Cat(context.Background(), &bytes.Buffer{}, "/a"); err == nil || !strings.Contains(err.Error(), "too many symbolic links") {
		t.Errorf("links in a circle: %v", err)
	}
}
