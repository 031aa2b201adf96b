// Package catalog says what is where: machines, recovery points, proofs, jobs.
// It is the port; catalog/sqlite is an adapter, catalogtest the conformance
// suite that every adapter passes.
//
// The catalog holds nothing that a restore needs: recovery points, proofs, key
// packages, declarations and marks can be rebuilt from the repositories. It never
// holds a secret. It knows nothing of repositories or encryption formats
// either; what others describe is carried as JSON.
//
// Its invariant: whatever one method records is there whole after a power cut,
// or not at all.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrNotFound  = errors.New("not in the catalog")
	ErrExists    = errors.New("name is taken")
	ErrAmbiguous = errors.New("more than one recovery point fits")
	ErrBadRef    = errors.New("not a recovery point's id, NAME@latest or NAME@TIME")

	// The catalog as a whole cannot be used; an *UnusableError says what to do.
	ErrMissing    = errors.New("catalog is missing")
	ErrDamaged    = errors.New("catalog is damaged")
	ErrIncomplete = errors.New("catalog was not rebuilt to its end")
	ErrNewer      = errors.New("catalog was written by a newer version")
)

// UnusableError says that a catalog cannot be used, and what to do. errors.Is
// finds Reason, which is one of the Err… above, and Err.
type UnusableError struct {
	Path   string
	Reason error
	Err    error // what the database said; may be nil
}

func (e *UnusableError) Error() string {
	s := fmt.Sprintf("open catalog %s: %v", e.Path, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives Reason and Err.
func (e *UnusableError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Err}
}

// Hint says what to do, in one sentence.
func (e *UnusableError) Hint() string {
	if errors.Is(e.Reason, ErrNewer) {
		return "use the version of lockstep that wrote it, or a later one"
	}
	return "run `lockstep catalog rebuild`; it reads recovery points, proofs and holds from the repository"
}

// Catalog is an open catalog. Its parts are safe for concurrent use, also by
// several processes. Values that are read belong to the caller.
type Catalog struct {
	Machines     Machines
	Repositories Repositories
	Points       Points
	Proofs       Proofs
	Packages     Packages
	Declarations Declarations
	Marks        Marks
	Policies     Policies
	Readings     Readings
	Jobs         Jobs
	Meta         Meta
	Maintenance  Maintenance
}

// Meta keeps single values, e.g. the last clock reading that pruning trusts.
type Meta interface {
	// Get returns "" where nothing was set.
	Get(ctx context.Context, key string) (string, error)
	Set(ctx context.Context, key, value string) error
}

// Maintenance is about the catalog as a whole.
type Maintenance interface {
	// Rebuild forgets machines, recovery points, proofs, attempts, packages,
	// declarations and marks, calls fill with a catalog on the same transaction,
	// and commits if fill returns nil; otherwise all stays as it was.
	// Repositories, policies, readings, jobs and meta values stay in any case.
	// Writers wait meanwhile: read from the repository first, then call Rebuild.
	Rebuild(ctx context.Context, fill func(*Catalog) error) error
	// Check reads the whole catalog; ErrDamaged where it is not sound.
	Check(ctx context.Context) error
	Close() error
}

// list shows at most a few of the names that fit.
func list(names []string) string {
	const most = 4
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
