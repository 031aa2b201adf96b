package frame

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
)

// How damage was found; the first of them are found again by what is cheapest.
const (
	FoundByStructure = "structure" // of objects; a verification of the structure finds it again
	FoundByScrub     = "scrub"     // by a checksum
	FoundByReading   = "reading"   // of content through the maps: nothing less finds it again
)

// KnownDamage is an object that was found damaged, and not whole since.
type KnownDamage struct {
	Object  string    `json:"object"`
	Machine string    `json:"machine,omitempty"` // id
	Points  []string  `json:"points,omitempty"`  // recovery points that it touches
	Many    bool      `json:"many,omitempty"`    // and more of them
	By      string    `json:"by"`
	At      time.Time `json:"at"` // the last time
}

// knownDamage is what is known of one repository.
type knownDamage struct {
	Objects []KnownDamage `json:"objects"`
	More    bool          `json:"more,omitempty"` // were found than are listed
}

// What the catalog remembers is for status, which counts: the list itself is
// the result of a verification.
const (
	damageKey      = "damage:"
	maxKnown       = 256
	maxKnownPoints = 16
)

// Only says whether the damage touches none but these recovery points.
func (d KnownDamage) Only(points []repository.Point) bool {
	return !d.Many && len(d.Points) > 0 && !slices.ContainsFunc(d.Points, func(id string) bool {
		return !slices.ContainsFunc(points, func(p repository.Point) bool { return p.ID == id })
	})
}

// NoteDamage remembers what was found damaged in a repository, and forgets what
// was known before, was not found now, and is whole.
func (s *Frame) NoteDamage(ctx context.Context, place Place, by string, found []KnownDamage, whole func(KnownDamage) bool) {
	ctx = context.WithoutCancel(ctx) // what was found is known, whoever hangs up
	c, err := s.Catalog(ctx)
	if err != nil {
		return // its loss has its own message
	}
	s.damage.Lock()
	defer s.damage.Unlock()
	known, err := readDamage(ctx, c, place.ID)
	if err == nil {
		err = writeDamage(ctx, c, place.ID, known.after(by, found, whole, s.Now()))
	}
	if err != nil {
		s.Log.Warn("damage that was found is not remembered", "repository", place.Name, "error", err)
	}
}

func (k knownDamage) after(by string, found []KnownDamage, whole func(KnownDamage) bool, now time.Time) knownDamage {
	rank := []string{FoundByStructure, FoundByScrub, FoundByReading}
	out := knownDamage{}
	at := map[string]int{} // place in out
	before := map[string]string{}
	for _, d := range k.Objects {
		before[d.Object] = d.By
	}
	add := func(d KnownDamage) {
		i, seen := at[d.Object]
		switch {
		case seen:
			for _, p := range d.Points {
				if !slices.Contains(out.Objects[i].Points, p) {
					out.Objects[i].Points = append(out.Objects[i].Points, p)
				}
			}
		case len(out.Objects) >= maxKnown:
			out.More = true
			return
		default:
			i = len(out.Objects)
			at[d.Object] = i
			d.Points = slices.Clone(d.Points)
			out.Objects = append(out.Objects, d)
		}
		if o := &out.Objects[i]; len(o.Points) > maxKnownPoints {
			o.Points, o.Many = o.Points[:maxKnownPoints], true
		}
	}
	for _, d := range found {
		d.At, d.By = now.UTC(), by
		if old, known := before[d.Object]; known && slices.Index(rank, old) < slices.Index(rank, by) {
			d.By = old
		}
		add(d)
	}
	// Of what is not listed, nothing can be forgotten one by one: what finds
	// that nothing at all is damaged finds it of that, too.
	if k.More && !whole(KnownDamage{By: FoundByReading}) {
		out.More = true
	}
	for _, d := range k.Objects {
		if _, again := at[d.Object]; !again && whole(d) {
			continue
		}
		add(d)
	}
	return out
}

func readDamage(ctx context.Context, c *catalog.Catalog, id string) (k knownDamage, err error) {
	text, err := c.Meta.Get(ctx, damageKey+id)
	if err != nil || text == "" {
		return k, err
	}
	if json.Unmarshal([]byte(text), &k) != nil {
		return knownDamage{More: true}, nil // something is known, nobody can tell what
	}
	return k, nil
}

func writeDamage(ctx context.Context, c *catalog.Catalog, id string, k knownDamage) error {
	text := ""
	if len(k.Objects) > 0 || k.More {
		b, err := json.Marshal(k)
		if err != nil {
			return fmt.Errorf("remember damage: %w", err)
		}
		text = string(b)
	}
	return c.Meta.Set(ctx, damageKey+id, text)
}

// Damaged says in which repositories damage is known, by name, and warns of it;
// machine, an id, limits it to one machine's.
func (s *Frame) Damaged(ctx context.Context, c *catalog.Catalog, machine string) (in, warnings []string, err error) {
	names := s.Names(ctx)
	for _, place := range s.Repositories.List() {
		k, err := readDamage(ctx, c, place.ID)
		if err != nil {
			return nil, nil, err
		}
		var of []string
		var last time.Time
		n := 0
		for _, d := range k.Objects {
			if machine != "" && d.Machine != machine {
				continue
			}
			n++
			if d.At.After(last) {
				last = d.At
			}
			name := names[d.Machine]
			if name == "" {
				name = d.Machine
			}
			if name != "" && !slices.Contains(of, name) {
				of = append(of, name)
			}
		}
		if n == 0 && !k.More {
			continue
		}
		slices.Sort(of)
		what := fmt.Sprintf("damaged objects: %d", n)
		if k.More {
			what = fmt.Sprintf("damaged objects: more than %d", n)
		}
		if len(of) > 0 {
			what += ", of " + strings.Join(of[:min(len(of), 8)], ", ")
			if len(of) > 8 {
				what += " and others"
			}
		}
		if !last.IsZero() {
			what += ", found last on " + last.UTC().Format(time.DateOnly)
		}
		option := ""
		if !place.Primary {
			option = " --repository " + place.Name
		}
		in = append(in, place.Name)
		warnings = append(warnings, fmt.Sprintf("repository %s is DAMAGED (%s): 'lockstep repository repair%s' brings back what is whole elsewhere; 'lockstep verify%s' names it, and clears this where all is whole", place.Name, what, option, option))
	}
	return in, warnings, nil
}
