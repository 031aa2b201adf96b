// Package overlays is what the commands make of overlay files: what an error
// about one means, whether one was committed already, and a disk of one as a
// source of backups.
package overlays

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/source"
)

// Refusal says what an error about an overlay means.
func Refusal(err error) error {
	if err == nil {
		return nil
	}
	p := &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: "overlay: " + err.Error()}
	switch {
	case errors.Is(err, export.ErrInUse):
		p.Exit, p.Hint = api.ExitBusy, "end the export that uses it"
	case errors.Is(err, export.ErrOverlay):
		p.Exit, p.Hint = api.ExitDamaged, "'lockstep export' makes overlays, 'lockstep overlay discard' removes a damaged one; another file stays: remove it yourself if it is of no use"
	case errors.Is(err, export.ErrOtherBase):
		p.Hint = "'lockstep overlay show' says to which recovery point it belongs"
	default:
		return err
	}
	return p
}

// Use opens an overlay over a recovery point, or makes it.
func Use(path string, p *export.Point) (o *export.Overlay, made bool, err error) {
	o, err = export.OpenOverlay(path)
	if errors.Is(err, fs.ErrNotExist) {
		o, err = export.CreateOverlay(path, p)
		return o, true, Refusal(err)
	}
	if err == nil {
		if err = o.Attach(p); err != nil {
			err = errors.Join(err, o.Close())
		}
	}
	return o, false, Refusal(err)
}

// BaseGone says what has become of an overlay whose recovery point cannot be
// found any more; other errors stay as they are.
func BaseGone(ctx context.Context, c *catalog.Catalog, o *export.Overlay, err error) error {
	p, cerr := c.Points.Get(ctx, o.Base.Point)
	if !errors.Is(err, server.ErrPointDeleted) && (cerr != nil || p.DeletedAt.IsZero()) {
		return err
	}
	return &api.Error{
		Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused,
		Detail: fmt.Sprintf("overlay: the recovery point that it lies over was deleted: %s of %s", o.Base.Point, o.Base.MachineName),
		Hint:   "nothing can be made of it any more, 'lockstep overlay discard' removes it; next time 'lockstep point pin' keeps the recovery point until the overlay is committed",
	}
}

// committed remembers that an overlay, as it was at a time, became a recovery point.
type committed struct {
	Point    string `json:"point"`
	Modified int64  `json:"modified"` // nanoseconds since 1970, of the file
}

func committedKey(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "overlay.committed." + hex.EncodeToString(sum[:12])
}

// checkCommitted refuses an overlay that became a recovery point already, if
// nothing was written to it since and the recovery point is still there.
func checkCommitted(ctx context.Context, c *catalog.Catalog, path string, modified int64) error {
	text, err := c.Meta.Get(ctx, committedKey(path))
	if err != nil || text == "" {
		return err
	}
	var was committed
	if err := json.Unmarshal([]byte(text), &was); err != nil || was.Modified != modified {
		return nil // what cannot be read only fails to prevent a second one
	}
	p, err := c.Points.Get(ctx, was.Point)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && !p.DeletedAt.IsZero() {
		return nil
	}
	if err != nil {
		return err
	}
	return &api.Error{
		Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused,
		Detail: "overlay: it is committed already, as recovery point " + was.Point + ", and nothing was written to it since",
		Hint:   "'lockstep overlay discard' removes it",
	}
}

// Committing refuses an overlay that became a recovery point already; note is called when the commit has ended, and
// remembers the recovery point that came of it.
func Committing(ctx context.Context, c *catalog.Catalog, path, machine string) (note func() error, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	modified := st.ModTime().UnixNano()
	if err := checkCommitted(ctx, c, path, modified); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	q := catalog.PointQuery{Machine: machine, Bare: true}
	before, err := c.Points.List(ctx, q)
	if err != nil {
		return nil, err
	}
	return func() error {
		after, err := c.Points.List(ctx, q)
		if err != nil || len(after) == 0 {
			return err
		}
		last := after[len(after)-1]
		if slices.ContainsFunc(before, func(p catalog.Point) bool { return p.ID == last.ID }) {
			return nil // it came to nothing
		}
		text, err := json.Marshal(committed{last.ID, modified})
		if err != nil {
			return err
		}
		return cli.WithHint(c.Meta.Set(ctx, committedKey(path), string(text)), "the recovery point is made; a second commit of the overlay would make it again")
	}, nil
}

// Disk is a disk of a recovery point with what was written over it.
type Disk struct {
	export.Image
	Written []disk.Range
	Point   string // below
	Level   source.Consistency
}

// Check finds nothing: nobody else writes to an overlay.
func (d *Disk) Check() error { return nil }

// Close does nothing: the overlay outlives its disks.
func (d *Disk) Close() error { return nil }

// Consistency is that of what was written.
func (d *Disk) Consistency() source.Consistency { return d.Level }

// Changed is what was written since the recovery point below.
func (d *Disk) Changed(_ context.Context, parent string) (changed []disk.Range, known bool, reason string, err error) {
	if parent != d.Point {
		return nil, false, "the overlay is over " + d.Point + ", not over the recovery point before this one", nil
	}
	return d.Written, true, "overlay", nil
}
