package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestMakeMuseumPiece makes a piece for the museum from the programs of the
// day, as the file that LOCKSTEP_MUSEUM names, and does nothing without it. What
// is in it is what a format generation adds: replicas, a ledger, page tables,
// births, a pin, and a second repository with copies. It is a few hundred KiB:
// LUKS1 with a short key has small key slots, and most of the disks is zeroes.
func TestMakeMuseumPiece(t *testing.T) {
	archive := os.Getenv("LOCKSTEP_MUSEUM")
	if archive == "" {
		t.Skip("LOCKSTEP_MUSEUM names no file")
	}
	h := initialised(t)
	vda, vdb := h.path("vda.img"), h.path("vdb.img")
	makeSparse(t, vda, 4*mib)
	makeSparse(t, vdb, mib)
	phrase := h.write("passphrase", "museum passphrase")
	tool(t, "", judge.Tool(t, "cryptsetup"), "luksFormat", "-q", "--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "128",
		"--pbkdf-force-iterations", "1000", "--key-file", phrase, vda)
	const slots, payload = 68 << 10, 2 * mib                      // where the second key slot begins, and what the volume holds
	writeAt(t, vda, slots, strings.Repeat("\x00", payload-slots)) // unused slots are noise
	writeAt(t, vdb, 0, string(noise(1, 32<<10)))                  // nothing that anybody knows
	h.do(0, "machine", "add", "vault", "--disk", "vda="+vda, "--disk", "vdb="+vdb)
	h.do(0, "repository", "add", "offsite", h.path("offsite"), "--kit", h.path("offsite.kit"))
	h.do(0, "secret", "add", "vault", "--kind", "passphrase", "--file", phrase)
	h.do(0, "policy", "set", "vault", "--keep-last", "2")

	lines := map[string][]string{}
	var order []string
	for n := range 6 {
		writeAt(t, vda, payload, string(noise(uint64(10+n), 40<<10)))
		writeAt(t, vda, payload+mib+int64(n)*4096, string(noise(uint64(20+n), 4096))) // stays, so that segments die in part
		var p point
		h.ask(&p, []int{0, 3}, "backup", "vault")
		order = append(order, p.ID)
		for _, d := range [][2]string{{"vda", vda}, {"vdb", vdb}} {
			lines[p.ID] = append(lines[p.ID], fmt.Sprintf("%s %s %s", p.ID, d[0], sum(t, d[1])))
		}
		switch n {
		case 1:
			h.do(0, "point", "pin", p.ID, "--reason", "for the museum")
			h.do(0, "point", "tag", p.ID, "exhibit=replicas")
		case 4:
			h.do(0, "prune", "vault")
		}
	}
	h.do(0, "prune", "vault")
	h.do(0, "repository", "copy", "vault", "--to", "offsite", "--newest", "2")
	h.do(0, "verify")

	var listedNow []point
	h.ask(&listedNow, []int{0}, "point", "list", "vault")
	there := map[string]bool{}
	for _, p := range listedNow {
		there[p.ID] = true
	}
	var sums strings.Builder
	for _, id := range order {
		if !there[id] {
			fmt.Fprintf(&sums, "deleted-%s\n", id)
			continue
		}
		fmt.Fprintln(&sums, strings.Join(lines[id], "\n"))
	}
	fmt.Fprintf(&sums, "pinned-%s\n", order[1])
	for _, id := range order[len(order)-2:] {
		fmt.Fprintf(&sums, "copied-%s\n", id)
	}
	h.write("sums", sums.String())
	for what, pattern := range map[string]string{"replica": "seg/*/*/*-*", "ledger": "ledger/*/*"} {
		if found, _ := filepath.Glob(filepath.Join(h.data, "repository", pattern)); len(found) == 0 {
			t.Errorf("there is no %s in it", what)
		}
	}
	packed := pack(t, h.dir, "data", "offsite", "offsite.kit", "kit.txt", "passphrase", "sums")
	if len(packed) > 3*mib/2 {
		t.Fatalf("%d bytes are too many for the museum", len(packed))
	}
	f, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // none is ever made anew
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(packed)
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	t.Logf("%s: %d bytes", archive, len(packed))
}

func makeSparse(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// pack makes the archive that unpackPiece unpacks.
func pack(t *testing.T, dir string, names ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, name := range names {
		err := filepath.WalkDir(filepath.Join(dir, name), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() && !d.Type().IsRegular() { // a socket stays here
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			e := tar.Header{Name: filepath.ToSlash(rel), Mode: 0o600, ModTime: time.Unix(0, 0), Typeflag: tar.TypeReg}
			if d.IsDir() {
				e.Mode, e.Typeflag = 0o700, tar.TypeDir
				return w.WriteHeader(&e)
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			e.Size = int64(len(content))
			if err := w.WriteHeader(&e); err != nil {
				return err
			}
			_, err = w.Write(content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
