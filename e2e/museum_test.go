package e2e

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMuseum opens the installations in testdata/museum, each made by an
// earlier version, as whoever updates the program does: what they hold is
// restored byte for byte, with the installation and without it, and goes on.
// A file there is never made anew. The README there says what each has in it.
func TestMuseum(t *testing.T) {
	t.Parallel()
	pieces, err := filepath.Glob("testdata/museum/*.tar.gz")
	if err != nil || len(pieces) == 0 {
		t.Fatalf("the museum is empty: %v", err)
	}
	for _, piece := range pieces {
		t.Run(strings.TrimSuffix(filepath.Base(piece), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			visit(t, piece)
		})
	}
}

func visit(t *testing.T, piece string) {
	h := newHost(t)
	unpackPiece(t, piece, h.dir)
	raw, err := os.ReadFile(h.path("sums"))
	if err != nil {
		t.Fatal(err)
	}
	type disk struct{ point, id, sum string }
	var kept []disk
	marked := map[string][]string{} // "deleted", "pinned", "copied": recovery points
	listed := map[string]bool{}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if mark, id, ok := strings.Cut(f[0], "-"); ok {
			marked[mark] = append(marked[mark], id)
			continue
		}
		kept = append(kept, disk{f[0], f[1], f[2]})
		listed[f[0]] = true
	}
	if len(kept) < 4 || len(marked["deleted"]) == 0 {
		t.Fatalf("%d disks kept, deleted %q", len(kept), marked["deleted"])
	}
	var points []point
	h.ask(&points, []int{0, 3}, "point", "list", "vault")
	if len(points) != len(listed) {
		t.Fatalf("%d recovery points are listed, want %d", len(points), len(listed))
	}
	for _, p := range points {
		if !listed[p.ID] {
			t.Errorf("recovery point %s is listed", p.ID)
		}
	}
	for _, id := range marked["pinned"] {
		h.do(4, "point", "delete", id)
	}
	h.do(0, "verify")
	h.do(0, "audit", "verify")
	restored := map[string]string{}
	for _, d := range kept {
		out := h.path(d.point[:8] + "-" + d.id)
		h.do(0, "restore", d.point, "--disk", d.id+"="+out)
		if got := sum(t, out); got != d.sum {
			t.Errorf("%s of %s has the digest %s, want %s", d.id, d.point, got, d.sum)
		}
		restored[d.id] = out
		bare := out + "-bare"
		h.bare("restore", d.point, "--repository", filepath.Join(h.data, "repository"), "--identity", h.kit, "--disk", d.id+"="+bare)
		if got := sum(t, bare); got != d.sum {
			t.Errorf("by the kit alone, %s of %s has the digest %s, want %s", d.id, d.point, got, d.sum)
		}
		if slices.Contains(marked["copied"], d.point) {
			h.bare("restore", d.point, "--repository", h.path("offsite"), "--identity", h.kit, "--identity", h.path("offsite.kit"), "--disk", d.id+"="+out+"-copy")
			if got := sum(t, out+"-copy"); got != d.sum {
				t.Errorf("from the second repository, %s of %s has the digest %s, want %s", d.id, d.point, got, d.sum)
			}
		}
	}
	// It goes on: the disks lie elsewhere now, and something changes.
	h.do(0, "machine", "change", "vault", "--disk", "vda="+restored["vda"], "--disk", "vdb="+restored["vdb"])
	f, err := os.OpenFile(restored["vda"], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(strings.Repeat("changed ", 512)), 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var next point
	h.ask(&next, []int{0, 3}, "backup", "vault")
	if next.Transfer != "incremental" || next.Parent != kept[len(kept)-1].point {
		t.Errorf("the next recovery point is %s on %s, want an incremental on %s", next.Transfer, next.Parent, kept[len(kept)-1].point)
	}
	h.do(0, "restore", next.ID, "--disk", "vda="+h.path("next"))
	if sum(t, h.path("next")) != sum(t, restored["vda"]) {
		t.Error("the next recovery point restores to something else")
	}
	h.do(0, "prove", "--all")
	h.do(0, "catalog", "rebuild")
	h.do(0, "verify")
	h.ask(&points, []int{0, 3}, "point", "list", "vault")
	if len(points) != len(listed)+1 {
		t.Errorf("%d recovery points after the rebuild", len(points))
	}
}

// bare runs lockstep-recover on a piece; an opaque disk, which no secret opens,
// may make it exit status 3.
func (h *host) bare(args ...string) {
	h.tb.Helper()
	cmd := exec.Command(filepath.Join(bin, "lockstep-recover"), args...)
	cmd.Dir, cmd.Env = h.dir, environ()
	if r := run(h.tb, cmd, ""); r.exit != 0 && r.exit != 3 {
		h.tb.Fatalf("%v", r)
	}
}

// unpackPiece unpacks an archive of ours.
func unpackPiece(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(e.Name))
		if e.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var content []byte
			if content, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, content, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
