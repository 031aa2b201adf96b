package importing

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
)

// ErrLayout says that a layout of times in names cannot be used.
var ErrLayout = errors.New("time is mtime or name:LAYOUT with %Y, %m, %d and, if they are there, %H, %M, %S, or with %s")

// ErrSameTime says that two images of a folder would be one recovery point.
var ErrSameTime = errors.New("are of the same time")

// maxFiles bounds a folder.
const maxFiles = 100_000

// Folder describes a folder of images of one disk, one for each time.
type Folder struct {
	Dir     string
	Disk    string
	Format  string // of all, "" is what each name says
	Backing []string
	// TimeFrom is "mtime" (also ""), when a file was last written, or
	// "name:LAYOUT": %Y %m %d %H %M %S, in UTC, or %s, seconds since 1970; * is
	// anything, and what else there is stands for itself.
	TimeFrom string
}

// parts of VMDK images, which are read with their description.
var vmdkPart = regexp.MustCompile(`-(flat|delta|sesparse|rdm|rdmp|ctk|[sf][0-9]{3})\.vmdk$`)

// Items are the images of a folder in order of time, and the names of files
// that are none. Folders below it are not looked into.
func (f Folder) Items() (items []Item, other []string, err error) {
	at, err := timeOf(f.TimeFrom)
	if err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(f.Dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read folder: %w", err)
	}
	if len(entries) > maxFiles {
		return nil, nil, fmt.Errorf("read folder %s: %d files are more than %d", f.Dir, len(entries), maxFiles)
	}
	for _, e := range entries {
		name := e.Name()
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went away
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read folder: %w", err)
		}
		image := f.Format != "" || disk.ImageFormat(name) != ""
		if !info.Mode().IsRegular() || !image || vmdkPart.MatchString(name) || strings.HasPrefix(name, ".") {
			other = append(other, name)
			continue
		}
		t, ok := at(info)
		if !ok {
			other = append(other, name)
			continue
		}
		items = append(items, Item{
			Time:   t.UTC().Truncate(time.Millisecond),
			Images: []Image{{Disk: f.Disk, Path: filepath.Join(f.Dir, name), Format: f.Format, Backing: f.Backing}},
		})
	}
	slices.SortStableFunc(items, func(a, b Item) int { return a.Time.Compare(b.Time) })
	for i := 1; i < len(items); i++ {
		if items[i].Time.Equal(items[i-1].Time) {
			return nil, nil, fmt.Errorf("%s and %s: %w, %s", filepath.Base(items[i-1].Images[0].Path),
				filepath.Base(items[i].Images[0].Path), ErrSameTime, items[i].Time.Format(time.RFC3339Nano))
		}
	}
	return items, other, nil
}

// timeOf gives what finds a file's time.
func timeOf(from string) (func(fs.FileInfo) (time.Time, bool), error) {
	layout, named := strings.CutPrefix(from, "name:")
	switch {
	case named:
		find, err := parseLayout(layout)
		if err != nil {
			return nil, err
		}
		return func(i fs.FileInfo) (time.Time, bool) { return find(i.Name()) }, nil
	case from == "", from == "mtime":
		return func(i fs.FileInfo) (time.Time, bool) { return i.ModTime(), true }, nil
	default:
		return nil, fmt.Errorf("%.80q: %w", from, ErrLayout)
	}
}

// directives of a layout, and what they match.
var directives = map[byte]string{
	'Y': `(?P<Y>[0-9]{4})`, 'm': `(?P<m>[0-9]{2})`, 'd': `(?P<d>[0-9]{2})`,
	'H': `(?P<H>[0-9]{2})`, 'M': `(?P<M>[0-9]{2})`, 'S': `(?P<S>[0-9]{2})`, 's': `(?P<s>[0-9]{1,11})`, '%': `%`,
}

// parseLayout gives what finds a time in a name, where the layout occurs in it
// first.
func parseLayout(layout string) (func(name string) (time.Time, bool), error) {
	bad := fmt.Errorf("layout %.80q: %w", layout, ErrLayout)
	if len(layout) > 255 {
		return nil, bad
	}
	var b strings.Builder
	seen := map[byte]bool{}
	for i := 0; i < len(layout); i++ {
		switch layout[i] {
		case '*':
			b.WriteString(`.*?`)
		case '%':
			if i++; i == len(layout) || directives[layout[i]] == "" || seen[layout[i]] && layout[i] != '%' {
				return nil, bad
			}
			seen[layout[i]] = true
			b.WriteString(directives[layout[i]])
		default:
			n := strings.IndexAny(layout[i:], "%*")
			if n < 0 {
				n = len(layout) - i
			}
			b.WriteString(regexp.QuoteMeta(layout[i : i+n]))
			i += n - 1
		}
	}
	day := seen['Y'] && seen['m'] && seen['d']
	clock := seen['H'] || seen['M'] || seen['S']
	if seen['s'] == day || seen['s'] && (clock || seen['Y'] || seen['m'] || seen['d']) || seen['M'] && !seen['H'] || seen['S'] && !seen['M'] {
		return nil, bad
	}
	re, err := regexp.Compile(b.String())
	if err != nil {
		return nil, bad
	}
	return func(name string) (time.Time, bool) {
		m := re.FindStringSubmatch(name)
		if m == nil {
			return time.Time{}, false
		}
		number := func(key string) int {
			if i := re.SubexpIndex(key); i >= 0 {
				n, _ := strconv.Atoi(m[i]) // digits, and few of them
				return n
			}
			return 0
		}
		if seen['s'] {
			return time.Unix(int64(number("s")), 0).UTC(), true
		}
		month, d, h, min, s := number("m"), number("d"), number("H"), number("M"), number("S")
		t := time.Date(number("Y"), time.Month(month), d, h, min, s, 0, time.UTC)
		// 31 February is no time.
		return t, int(t.Month()) == month && t.Day() == d && t.Hour() == h && t.Minute() == min && t.Second() == s
	}, nil
}
