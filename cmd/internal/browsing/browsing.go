// Package browsing is what 'lockstep browse' does with a file system that is
// open: list, find, copy out.
package browsing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/cli"
)

// Refusal says what it means that a file system cannot be opened.
func Refusal(o cli.BrowseOptions, class string, err error) error {
	if class == "" {
		class = "nothing that is known"
	}
	p := &api.Error{
		Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: fmt.Sprintf("%s/%s holds %s: %v", o.Disk, o.Volume, class, err),
		Hint: "'lockstep mount --unlock' and 'lockstep export --unlock' give the plaintext to the tools of the system that wrote it",
	}
	if errors.As(err, new(*browse.CorruptError)) {
		p.Title, p.Exit = "damaged", api.ExitDamaged
	}
	return p
}

// Do does what was asked for.
func Do(ctx context.Context, f *browse.FS, o cli.BrowseOptions, r *cli.BrowseResult) error {
	r.Problems = []string{}
	problem := func(p browse.Problem) {
		if len(r.Problems) < 1000 {
			r.Problems = append(r.Problems, p.Error())
		}
	}
	problems := func(list []browse.Problem) {
		for _, p := range list {
			problem(p)
		}
	}
	show := func(n browse.Node) error { return o.File(browsedFile(f, n)) }
	switch o.Action {
	case "ls":
		nodes, bad, err := f.Ls(o.Path)
		if err != nil {
			return err
		}
		problems(bad)
		for _, n := range nodes {
			if err := show(n); err != nil {
				return err
			}
		}
		return nil
	case "find":
		return f.Find(ctx, o.Path, o.Pattern, show, problem)
	case "cat":
		n, err := f.Cat(ctx, o.Out, o.Path)
		r.Files, r.Bytes = 1, n
		return err
	case "tar":
		t, err := f.Tar(ctx, o.Out, o.Path)
		if t != nil {
			r.Files, r.Dirs, r.Links, r.Bytes = t.Files, t.Dirs, t.Links, t.Bytes
			problems(t.Problems)
		}
		return err
	case "get":
		return got(ctx, f, o, r, problems)
	}
	return fmt.Errorf("browse: no action %q", o.Action)
}

func got(ctx context.Context, f *browse.FS, o cli.BrowseOptions, r *cli.BrowseResult, problems func([]browse.Problem)) error {
	root, err := os.OpenRoot(o.Dir)
	if err != nil {
		return &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitTarget, Detail: err.Error(), Hint: "name a folder that is there with --to"}
	}
	g, name, err := f.Get(ctx, root, o.Path, browse.GetOptions{Force: o.Force, Owners: o.Owners})
	if g != nil {
		r.Files, r.Dirs, r.Links, r.Bytes = g.Files, g.Dirs, g.Links, g.Bytes
		problems(g.Problems)
		r.Written = filepath.Join(o.Dir, name)
	}
	if errors.Is(err, fs.ErrExist) {
		err = &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: err.Error(), Hint: "--force writes over it; --to names another folder"}
	}
	return errors.Join(err, root.Close())
}

var typeNames = map[browse.Type]string{
	browse.Regular: "file", browse.Dir: "directory", browse.Symlink: "symlink", browse.Fifo: "fifo", browse.Socket: "socket",
	browse.CharDevice: "character-device", browse.BlockDevice: "block-device", browse.Other: "other", browse.Unknown: "unreadable",
}

func browsedFile(f *browse.FS, n browse.Node) cli.BrowsedFile {
	i := n.Info
	v := cli.BrowsedFile{
		Path: n.Path, Type: typeNames[i.Type], Mode: modeText(i), UID: i.UID, GID: i.GID, Links: i.Links,
		SizeBytes: i.Size, Modified: i.Modified, Flags: i.Flags,
	}
	if i.Type == browse.Symlink {
		v.Target, _ = f.ReadLink(n.Path) // shown as none where it cannot be read
	}
	return v
}

// modeText is a mode as ls shows it.
func modeText(i browse.Info) string {
	b := []byte(i.Type.String() + "rwxrwxrwx")
	for k := range 9 {
		if i.Mode>>(8-k)&1 == 0 {
			b[1+k] = '-'
		}
	}
	for _, s := range []struct {
		bit  uint32
		at   int
		mark byte
	}{{0o4000, 3, 's'}, {0o2000, 6, 's'}, {0o1000, 9, 't'}} {
		if i.Mode&s.bit != 0 {
			if b[s.at] == '-' {
				s.mark -= 'a' - 'A'
			}
			b[s.at] = s.mark
		}
	}
	return string(b)
}
