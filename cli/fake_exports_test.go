package cli

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

// withExports adds commands that export nothing and end at once.
func withExports(e Env) Env {
	exported := func(point string) Exported {
		return Exported{
			Point: "0123456789abcdef0123456789abcdef", Machine: "web01", Time: time.Date(2026, 3, 14, 2, 15, 0, 0, time.UTC),
			Disks: []ExportedDisk{{ID: "vda", SizeBytes: 1 << 30}}, Warnings: []string{"asked for " + point},
		}
	}
	e.Export = func(_ context.Context, o ExportOptions) error {
		if strings.HasPrefix(o.Address, "0.0.0.0") && !o.Insecure && o.Certificates == "" {
			return &api.Error{Exit: api.ExitRefused, Detail: "export: not without encryption", Hint: "--tls-certificate"}
		}
		v := exported(o.Point)
		v.Overlay, v.Disks[0].URI = o.Overlay, "nbd:"+o.Address
		v.Volumes = unlocked(o.Unlock)
		o.Ready(v)
		return nil
	}
	e.Browse = browsing
	e.Mount = func(_ context.Context, o MountOptions) error {
		v := exported(o.Point)
		v.Dir, v.Disks[0].File = o.Dir, o.Dir+"/vda.raw"
		v.Volumes = unlocked(o.Unlock)
		o.Ready(v)
		return nil
	}
	e.Overlay = func(_ context.Context, o OverlayOptions) (Overlay, error) {
		if strings.HasSuffix(o.File, "letter") {
			return Overlay{}, errors.New("not an overlay")
		}
		return Overlay{
			File: o.File, Point: "0123456789abcdef0123456789abcdef", Machine: "web01",
			Time: time.Date(2026, 3, 14, 2, 15, 0, 0, time.UTC), Disks: []OverlayDisk{{ID: "vda", SizeBytes: 1 << 30, WrittenBytes: 8192}},
		}, nil
	}
	e.DiscardOverlay = func(context.Context, OverlayOptions) error { return nil }
	return withDrills(e)
}

// unlocked says by what a volume would have been opened.
func unlocked(u *Unlock) []ExportedVolume {
	if u == nil {
		return nil
	}
	v := ExportedVolume{ID: "vda-p3.plain", Disk: "vda", Volume: "p3", Class: "ext4", SizeBytes: 1 << 29, URI: "for " + u.Reason}
	for _, s := range u.Secrets {
		v.URI += " " + s.Volume + " " + s.Kind + " " + string(s.Data)
	}
	return []ExportedVolume{v}
}

// browsing is a file system with one file, of a name for terminals.
func browsing(_ context.Context, o BrowseOptions) (BrowseResult, error) {
	r := BrowseResult{Browsed: Browsed{
		Point: "0123456789abcdef0123456789abcdef", Machine: "web01", Class: "ext4", Reader: "user-space", Dirty: true, Replayed: true,
		Warnings: []string{o.Point + " " + o.Disk + " " + o.Volume},
	}, Problems: []string{}}
	if o.Volume == "p1" {
		return r, &api.Error{Exit: api.ExitWrongSecret, Detail: "p1 stays locked", Hint: "--secret-file"}
	}
	o.Opened(r.Browsed)
	switch o.Action {
	case "ls", "find":
		f := BrowsedFile{Path: o.Path + "/a\x1b[31m" + o.Pattern, Type: "symlink", Mode: "lrwxrwxrwx", Links: 1, SizeBytes: 7, Target: "b\nc"}
		if err := o.File(f); err != nil {
			return r, err
		}
	case "cat", "tar":
		if _, err := o.Out.Write([]byte("content of " + o.Path)); err != nil {
			return r, err
		}
	case "get":
		r.Written, r.Files = o.Dir, 1
	}
	if o.Path == "/damaged" {
		r.Problems = append(r.Problems, "/damaged/x: damaged file system")
	}
	return r, nil
}
