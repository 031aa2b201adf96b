// Package importing makes recovery points of images that exist already, with
// the time that they show. It reads no image format: an image is opened as any
// source is, and stored, inspected and committed by package backup.
//
// Its invariant: recovery points of a machine are in order of time in its log
// after an import as before, so what is old becomes neither the newest nor the
// parent of the next backup.
package importing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// ConsistencyUnknown is recorded where nobody says how quiet the guest was when
// an image was made.
const ConsistencyUnknown = "unknown"

// scheme marks the sources of machines that were imported: where a recovery
// point came from is known, and a backup must not read it again.
const scheme = "imported:"

// Imported says whether a disk's source is an image that was imported, and which.
func Imported(spec string) (path string, ok bool) { return strings.CutPrefix(spec, scheme) }

// ErrFormat says that an image's format is neither given nor in its name.
var ErrFormat = errors.New("what format the image has is not known, and is not guessed from its content")

// Image is an image of one disk.
type Image struct {
	Disk    string
	Path    string   // from the root
	Format  string   // as disk.Format…; "" is what the name says
	Backing []string // folders beside its own that it may name files of
}

// Spec is the image as a source.
func (i Image) Spec() (string, error) {
	format := i.Format
	if format == "" {
		if format = disk.ImageFormat(i.Path); format == "" {
			return "", fmt.Errorf("%s: %w", i.Path, ErrFormat)
		}
		if format == disk.FormatRaw {
			return i.Path, nil // refused where it looks like another format: somebody has to say
		}
	}
	q := url.Values{"format": {format}}
	if format != disk.FormatRaw && len(i.Backing) > 0 {
		q["backing"] = i.Backing
	}
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(i.Path), RawQuery: q.Encode()}).String(), nil
}

// Item is what becomes one recovery point.
type Item struct {
	Time   time.Time
	Images []Image
}

// Disks are the item's disks as a machine has them.
func (i Item) Disks() []catalog.MachineDisk {
	var out []catalog.MachineDisk
	for _, x := range i.Images {
		out = append(out, catalog.MachineDisk{ID: x.Disk, Source: scheme + x.Path})
	}
	return out
}

// Existing is the recovery point that an item has become already: the one of
// its very time.
func Existing(points []catalog.Point, i Item) (catalog.Point, bool) {
	at := i.Time.Truncate(time.Millisecond)
	for _, p := range points {
		if p.DeletedAt.IsZero() && p.Time.Equal(at) {
			return p, true
		}
	}
	return catalog.Point{}, false
}

// Look opens an item's images and says how large their disks are, by number of
// the image; nothing is stored.
func Look(ctx context.Context, d backup.Deps, i Item) (sizes []int64, err error) {
	for _, x := range i.Images {
		s, err := open(ctx, d, x)
		if err != nil {
			return nil, fmt.Errorf("open disk %s: %w", x.Disk, err)
		}
		sizes = append(sizes, s.Size())
		if err := s.Close(); err != nil {
			return nil, err
		}
	}
	return sizes, nil
}

func open(ctx context.Context, d backup.Deps, x Image) (source.Disk, error) {
	spec, err := x.Spec()
	if err != nil {
		return nil, err
	}
	return d.Open(ctx, spec, source.Options{})
}

// Request asks for one recovery point.
type Request struct {
	Machine     catalog.Machine // its disks do not matter
	Item        Item
	Description string
	Consistency string // "" is ConsistencyUnknown
	Progress    func(phase string, done, total int64)
}

// Run imports one item. backup.ErrFuture, backup.ErrOrder.
func Run(ctx context.Context, d backup.Deps, req Request) (backup.Result, error) {
	machine := req.Machine
	machine.Disks = req.Item.Disks()
	consistency := req.Consistency
	if consistency == "" {
		consistency = ConsistencyUnknown
	}
	images := map[string]Image{}
	for _, x := range req.Item.Images {
		images[scheme+x.Path] = x
	}
	real := d
	d.Open = func(ctx context.Context, spec string, _ source.Options) (source.Disk, error) {
		x, ok := images[spec]
		if !ok {
			return nil, fmt.Errorf("open %s: %w", spec, fs.ErrNotExist)
		}
		return open(ctx, real, x)
	}
	return backup.Run(ctx, d, backup.Request{
		Machine: machine, At: req.Item.Time, Consistency: consistency, Description: req.Description, Progress: req.Progress,
	})
}
