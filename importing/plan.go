package importing

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
)

// Errors about images beside those of package backup.
var (
	ErrImplausible = errors.New("no disk image is older than 1980")
	ErrOther       = errors.New("the recovery point of that time is of another image")
)

// earliest is when clocks without a battery begin at the latest: what is before
// is a mistake.
var earliest = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// Plausible refuses times that cannot be. ErrImplausible.
func Plausible(items []Item) error {
	for _, i := range items {
		if i.Time.Before(earliest) {
			return fmt.Errorf("%s as of %s: %w", i.name(), stamp(i.Time), ErrImplausible)
		}
	}
	return nil
}

// Plan says what of items in order of time would be imported behind points, or
// is there already, and which are older than the newest of points, so that they
// cannot be imported any more. It is the rule of Run, for all of them at once.
// backup.ErrFuture.
func Plan(points []catalog.Point, items []Item, now time.Time) (take, older []Item, err error) {
	for _, i := range items {
		if i.Time.After(now) {
			return nil, nil, fmt.Errorf("%s as of %s: %w", i.name(), stamp(i.Time), backup.ErrFuture)
		}
		_, there := Existing(points, i)
		if newest, ok := Newest(points); ok && !there && i.Time.Truncate(time.Millisecond).Before(newest.Time) {
			older = append(older, i)
			continue
		}
		take = append(take, i)
	}
	return take, older, nil
}

// Newest is the recovery point with the latest time.
func Newest(points []catalog.Point) (newest catalog.Point, ok bool) {
	for _, p := range points {
		if p.DeletedAt.IsZero() && (!ok || p.Time.After(newest.Time)) {
			newest, ok = p, true
		}
	}
	return newest, ok
}

// Same says whether the recovery point with a definition is of an item's
// images, by the names of their files; folders may have been moved. ErrOther.
func Same(definition []byte, i Item) error {
	var disks []catalog.MachineDisk
	if err := json.Unmarshal(definition, &disks); err != nil {
		return fmt.Errorf("read the definition of a recovery point: %w", err)
	}
	for _, x := range i.Images {
		n := slices.IndexFunc(disks, func(d catalog.MachineDisk) bool { return d.ID == x.Disk })
		if n < 0 {
			return fmt.Errorf("%s: %w: it has no disk %s", x.Path, ErrOther, x.Disk)
		}
		path, ok := Imported(disks[n].Source)
		if !ok || filepath.Base(path) != filepath.Base(x.Path) {
			return fmt.Errorf("%s: %w: %s", x.Path, ErrOther, path)
		}
	}
	return nil
}

func (i Item) name() string { return i.Images[0].Path }

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }
