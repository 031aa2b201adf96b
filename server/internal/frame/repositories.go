package frame

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
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
}

// Place finds a repository of the installation by name, URL or id.
func (s *Frame) Place(name string) (Place, error) {
	all := s.Repositories.List()
	i := slices.IndexFunc(all, func(p Place) bool { return p.Name == name || p.ID == name || p.URL == name })
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

// Nearest finds the repositories that have a recovery point, the nearest first.
// note is told which one cannot be used, and why. The error is the first of
// them, where none has it.
func (s *Frame) Nearest(ctx context.Context, p catalog.Point, note func(format string, args ...any)) ([]Found, error) {
	var found []Found
	var first error
	for _, place := range s.Repositories.List() {
		repo, err := s.Repositories.Open(ctx, place.Name)
		var mf *repository.Manifest
		if err == nil {
			mf, err = s.Manifest(ctx, repo, p)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil {
			found = append(found, Found{place, repo, mf})
			continue
		}
		if first == nil {
			first = err
		}
		if !errors.Is(err, repository.ErrNotFound) || place.Primary {
			note("repository %s is passed over: %s", place.Name, ProblemOf(err).Detail)
		}
	}
	if len(found) == 0 {
		return nil, first
	}
	return found, nil
}
