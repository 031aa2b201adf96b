package frame

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
)

// Place is one of the installation's repositories.
type Place struct {
	Name      string
	ID        string
	URL       string
	TrustRoot string
	Primary   bool // it is the one that backups write to
	Local     bool // on this host
}

// NewPlace asks for a repository to be added: made where there is none, else joined.
type NewPlace struct {
	Name           string
	URL            string
	PassphraseFile string // a file with a passphrase that opens it as well
	IdentityFile   string // opens one that others made; empty: the host's identity and the passphrase
	KitFile        string // where its recovery kit goes; empty: beside the others
}

// AddedPlace says what was added.
type AddedPlace struct {
	Place
	Made     bool   // it was not there before
	KitFile  string // written now; empty: none was
	Warnings []string
}

// Repositories are the installation's repositories.
type Repositories interface {
	// List gives all in the order in which they are read: the one that is
	// written, local ones, the others, by name.
	List() []Place
	// Open opens one by name. It stays open; nobody closes it.
	Open(ctx context.Context, name string) (*repository.Repository, error)
	Add(ctx context.Context, n NewPlace) (AddedPlace, error)
	// Promote makes a repository the one that backups write to.
	Promote(ctx context.Context, name string) error
	// Remove forgets a repository that backups do not write to, and touches
	// nothing in it.
	Remove(ctx context.Context, name string) error
}

// Place finds a repository of the installation by name, URL or id.
func (s *Frame) Place(name string) (Place, error) { return placeOf(s.Repositories.List(), name) }

// PlaceOrPrimary is Place, and the one that backups write to where name is "".
func (s *Frame) PlaceOrPrimary(name string) (Place, error) {
	if name == "" {
		return s.Repositories.List()[0], nil
	}
	return s.Place(name)
}

func placeOf(all []Place, name string) (Place, error) {
	i := slices.IndexFunc(all, func(p Place) bool {
		return p.Name == name || p.ID == name || p.URL == name || disk.SameLocal(name, p.URL)
	})
	if i < 0 {
		p := NewProblem(http.StatusNotFound, api.ExitFailed, fmt.Sprintf("find repository: this installation has no repository %q", Clip(name)))
		p.Hint = "'lockstep repository list' shows the repositories; 'lockstep repository add' adds one"
		return Place{}, p
	}
	return all[i], nil
}

// Found is a recovery point in a repository that has it.
type Found struct {
	Place    Place
	Repo     *repository.Repository
	Manifest *repository.Manifest
}

// Nearest is FindNearest in the installation's repositories.
func (s *Frame) Nearest(ctx context.Context, p catalog.Point, name string, note func(format string, args ...any)) (near Found, rest func() []*repository.Repository, err error) {
	return FindNearest(ctx, s.Repositories, p, name, note)
}

// FindNearest finds a recovery point in the nearest repository that has it, or in
// the one that is named. rest gives the others that do, when they are needed.
// note is told which one cannot be used, and why. The error is the first of
// them, where none has it.
func FindNearest(ctx context.Context, all Repositories, p catalog.Point, name string, note func(format string, args ...any)) (near Found, rest func() []*repository.Repository, err error) {
	places := all.List()
	if name != "" {
		named, err := placeOf(places, name)
		if err != nil {
			return Found{}, nil, err
		}
		places = append([]Place{named}, slices.DeleteFunc(places, func(p Place) bool { return p.ID == named.ID })...)
	}
	var first error
	for i, place := range places {
		found, err := findIn(ctx, all, place, p, note)
		if ctx.Err() != nil {
			return Found{}, nil, ctx.Err()
		}
		if err == nil {
			return found, sync.OnceValue(func() []*repository.Repository {
				var others []*repository.Repository
				for _, place := range places[i+1:] {
					if found, err := findIn(ctx, all, place, p, note); err == nil {
						others = append(others, found.Repo)
					}
				}
				return others
			}), nil
		}
		if name != "" {
			return Found{}, nil, fmt.Errorf("repository %s: %w", place.Name, err)
		}
		if first == nil {
			first = err
		}
	}
	return Found{}, nil, first
}

func findIn(ctx context.Context, all Repositories, place Place, p catalog.Point, note func(format string, args ...any)) (Found, error) {
	repo, err := all.Open(ctx, place.Name)
	var rp repository.Point
	if err == nil {
		rp, err = pointIn(ctx, repo, p)
	}
	var mf *repository.Manifest
	if err == nil {
		mf, err = repo.Manifest(ctx, rp)
	}
	if err != nil && ctx.Err() == nil && (place.Primary || !errors.Is(err, repository.ErrNotFound)) {
		note("repository %s is passed over: %s", place.Name, ProblemOf(err).Detail)
	}
	return Found{place, repo, mf}, err
}

// Copied is what the catalog remembers of the copying to a repository: it says
// what is there without a look at a store that may be far away.
type Copied struct {
	Time   time.Time         `json:"time"`             // when it last came to its end, for all that was asked for
	Newest map[string]string `json:"newest,omitempty"` // by machine id: its newest recovery point there
	// Points are by machine id all that were there then. What was deleted there
	// since, its log says: what it does not know of is gone.
	Points map[string][]string `json:"points,omitempty"`
}

func copiedKey(id string) string { return "repository.copied." + id }

// Copied is zero where nothing was copied to the repository, by its id.
func (s *Frame) Copied(ctx context.Context, c *catalog.Catalog, id string) (v Copied, err error) {
	raw, err := c.Meta.Get(ctx, copiedKey(id))
	if err == nil && raw != "" {
		err = json.Unmarshal([]byte(raw), &v)
	}
	if v.Newest == nil {
		v.Newest = map[string]string{}
	}
	if v.Points == nil {
		v.Points = map[string][]string{}
	}
	return v, err
}

// SetCopied records it.
func (s *Frame) SetCopied(ctx context.Context, c *catalog.Catalog, id string, v Copied) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Meta.Set(ctx, copiedKey(id), string(raw))
}

// Behind names the repositories that have recovery points of a machine and not
// its newest.
func (s *Frame) Behind(ctx context.Context, c *catalog.Catalog, machine, newest string) (names []string, err error) {
	for _, p := range s.Repositories.List() {
		if p.Primary {
			continue
		}
		v, err := s.Copied(ctx, c, p.ID)
		if err != nil {
			return names, err
		}
		if has := v.Newest[machine]; has != "" && has != newest {
			names = append(names, p.Name)
		}
	}
	return names, nil
}

// mostAsked bounds how many damaged objects others are asked for: each is read there.
const mostAsked = 64

// RepairFrom says from which repository damaged objects of repo, by their keys,
// can be brought back: of the first of them, where there are many.
func (s *Frame) RepairFrom(ctx context.Context, repo *repository.Repository, keys []string) map[string]string {
	names := map[string]string{}
	var others []*repository.Repository
	for _, p := range s.Repositories.List() {
		names[p.ID] = p.Name
		if p.ID == repo.ID() {
			names[""] = p.Name // the object's own second copy
			continue
		}
		if other, err := s.Repositories.Open(ctx, p.Name); err == nil {
			others = append(others, other)
		}
	}
	found, err := copies.Repair(ctx, repo, others, keys[:min(len(keys), mostAsked)], copies.RepairOptions{DryRun: true})
	if err != nil {
		s.Log.Info("what can be repaired is not known", "error", err)
	}
	from := map[string]string{}
	for _, x := range found.Repaired {
		from[x.Object] = names[x.From]
	}
	return from
}
