package importing_test

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/importing"
)

func day(n int) time.Time { return time.Date(2019, 5, n, 0, 0, 0, 0, time.UTC) }

func item(at time.Time, name string) importing.Item {
	return importing.Item{Time: at, Images: []importing.Image{{Disk: "vda", Path: "/images/" + name}}}
}

// TestPlan: a folder whose recovery points were pruned but two goes on.
func TestPlan(t *testing.T) {
	points := []catalog.Point{
		{ID: "1", Time: day(1), DeletedAt: now},
		{ID: "2", Time: day(2)},
		{ID: "3", Time: day(3), DeletedAt: now},
		{ID: "4", Time: day(4)},
		{ID: "9", Time: day(9), DeletedAt: now}, // what is gone orders nothing
	}
	var items []importing.Item
	for n := 1; n <= 6; n++ {
		items = append(items, item(day(n), string(rune('0'+n))))
	}
	names := func(items []importing.Item) (out string) {
		for _, i := range items {
			out += filepath.Base(i.Images[0].Path)
		}
		return out
	}
	take, older, err := importing.Plan(points, items, now)
	if err != nil || names(take) != "2456" || names(older) != "13" {
		t.Errorf("take %s, older %s, %v", names(take), names(older), err)
	}
	take, older, err = importing.Plan(nil, items, now)
	if err != nil || names(take) != "123456" || len(older) != 0 {
		t.Errorf("into an empty machine: take %s, older %s, %v", names(take), names(older), err)
	}
	late := slices.Concat(items, []importing.Item{item(now.Add(time.Second), "late")})
	if _, _, err := importing.Plan(nil, late, now); !errors.Is(err, backup.ErrFuture) || !strings.Contains(err.Error(), "late") {
		t.Errorf("tomorrow: %v", err)
	}
}

func TestPlausible(t *testing.T) {
	for at, want := range map[time.Time]error{
		{}:                              importing.ErrImplausible,
		time.Unix(0, 0):                 importing.ErrImplausible,
		time.Unix(315_532_799, 0):       importing.ErrImplausible,
		time.Unix(315_532_800, 0).UTC(): nil,
		now:                             nil,
	} {
		if err := importing.Plausible([]importing.Item{item(now, "a"), item(at, "b")}); !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), "/images/b") {
			t.Errorf("%s: %v, want %v", at, err, want)
		}
	}
}

func TestSame(t *testing.T) {
	define := func(source string) []byte {
		p, err := json.Marshal([]catalog.MachineDisk{{ID: "vda", Source: source}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for source, want := range map[string]error{
		"imported:/images/a.raw":    nil,
		"imported:/elsewhere/a.raw": nil, // the folder was moved
		"imported:/images/b.raw":    importing.ErrOther,
		"/images/a.raw":             importing.ErrOther, // a backup
	} {
		if err := importing.Same(define(source), item(now, "a.raw")); !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), "/images/a.raw") {
			t.Errorf("%s: %v, want %v", source, err, want)
		}
	}
	if err := importing.Same([]byte("[]"), item(now, "a.raw")); !errors.Is(err, importing.ErrOther) {
		t.Errorf("without the disk: %v", err)
	}
	if err := importing.Same([]byte("{"), item(now, "a.raw")); err == nil {
		t.Error("what is no definition is taken")
	}
}
