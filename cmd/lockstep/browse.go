package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net/http"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/browsing"
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
		return r, browsing.Refusal(o, device.Class, err)
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
		return browsing.Do(ctx, f, o, &r)
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
