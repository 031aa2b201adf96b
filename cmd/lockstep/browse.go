package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/unlock"
)

// browsePoint reads files out of a recovery point.
func browsePoint(ctx context.Context, o cli.BrowseOptions) (r cli.BrowseResult, err error) {
	x, err := openExport(ctx, dataDir(o.DataDir), o.Point, o.Repository, "browsing", o.Log)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	device, err := x.device(ctx, o)
	if err != nil {
		return r, err
	}
	f, err := browse.Open(device.R, device.Size, device.Class)
	if err != nil {
		return r, fileSystemRefusal(o, device.Class, err)
	}
	facts := f.Facts()
	m := x.point.Manifest
	r.Browsed = cli.Browsed{
		Point: m.Point, Machine: m.MachineName, Class: facts.Class, Label: facts.Label, UUID: facts.UUID, Reader: "user-space",
		Dirty: facts.Dirty, Replayed: facts.Replayed, Warnings: append(append([]string{}, x.warnings...), facts.Warnings...),
	}
	detail := map[string]string{"action": o.Action, "volume": o.Disk + "/" + o.Volume, "path": o.Path}
	if o.Pattern != "" {
		detail["pattern"] = o.Pattern
	}
	if o.Dir != "" {
		detail["folder"] = o.Dir
	}
	err = x.audited(ctx, "point.browse", x.unlocked(detail, o.Unlock), func() error {
		o.Opened(r.Browsed)
		return browsed(ctx, f, o, &r)
	})
	if errors.Is(err, fs.ErrNotExist) && o.Dir == "" {
		err = cli.WithHint(err, "'lockstep browse ls' and 'lockstep browse find' show what is there")
	}
	return r, err
}

// device is the volume to read, opened.
func (x *exporting) device(ctx context.Context, o cli.BrowseOptions) (*unlock.Device, error) {
	given := o.Unlock
	if given == nil {
		given = &cli.Unlock{}
	}
	x.reason = given.Reason
	keys, err := x.keys(ctx, x.listed, given, "point.browse")
	if err != nil {
		return nil, err
	}
	tree, err := x.point.Unlock(ctx, x.point.repo, x.only(o, keys.of), unlock.Options{Formats: formats(), Limits: diskcrypt.Limits{KDFMemory: kdfMemory()}})
	if err != nil {
		return nil, err
	}
	x.warnings = append(x.warnings, tree.Warnings...)
	var locked []unlock.Locked
	var texts []string
	for _, l := range tree.Locked {
		if l.Disk == o.Disk {
			locked = append(locked, l)
			texts = append(texts, fmt.Sprintf("%s/%s stays locked: %s", l.Disk, l.Name, strings.ReplaceAll(l.Why.Error(), "\n", "; ")))
		}
		if l.Disk == o.Disk && l.Name == o.Volume {
			return nil, lockedRefusal(x.point.Manifest.Point, []unlock.Locked{l}, texts[len(texts)-1:])
		}
	}
	if d := tree.Find(o.Disk, o.Volume); d != nil {
		return d, nil
	}
	if len(locked) > 0 { // it may lie in one of those
		return nil, lockedRefusal(x.point.Manifest.Point, locked, texts)
	}
	p := &api.Error{
		Status: http.StatusNotFound, Title: "not found", Exit: api.ExitUsage,
		Detail: fmt.Sprintf("recovery point %s has no volume %s/%s", x.point.Manifest.Point, o.Disk, o.Volume), Hint: "the volumes that are there:",
	}
	for _, d := range tree.Devices {
		p.Items = append(p.Items, fmt.Sprintf("%s/%s (%s)", d.Disk, d.Name, d.Class))
	}
	return nil, p
}

// only keeps secrets of volumes in custody that have nothing to do with what is
// asked for: of other disks, and of others where the volume itself is encrypted.
func (x *exporting) only(o cli.BrowseOptions, keys unlock.Keys) unlock.Keys {
	itself := false
	return func(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		itself = itself || disk == o.Disk && v.ID == o.Volume
		if disk != o.Disk || itself && v.ID != o.Volume {
			return func(func(unlock.Key, error) bool) {}
		}
		return keys(ctx, disk, v)
	}
}

func fileSystemRefusal(o cli.BrowseOptions, class string, err error) error {
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

// browsed does what was asked for.
func browsed(ctx context.Context, f *browse.FS, o cli.BrowseOptions, r *cli.BrowseResult) error {
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
