// Package frame is what every group of routes stands on: what the server works
// with, how an operation is added to the API, what an error means to who asked,
// how something is recorded and how a job is started. It has no routes itself.
package frame

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/jobdocs"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/target"
)

// Deps is what the server works with. The functions that open something are
// called when it is first needed, and give the same thing each time.
type Deps struct {
	Catalog    func(context.Context) (*catalog.Catalog, error)
	Repository func(context.Context) (*repository.Repository, error)
	// Repositories are all of them; Repository opens the one that is written.
	Repositories Repositories
	Manager      func(context.Context) (keymanager.Manager, error)
	Custodian    func() (envelope.SigningKey, error) // signs declarations
	// Rebuild opens the catalog for a rebuild; when fill has returned, Catalog
	// gives what was filled.
	Rebuild func(ctx context.Context, fill func(*catalog.Catalog) error) error

	// Locked says until when the store of a repository, by name, keeps recovery
	// points of a machine whatever anybody wants; nil: none keeps any.
	Locked func(ctx context.Context, repository, machine string, points []string) (map[string]time.Time, error)

	// LockOf and SetLock are for how long a repository's store locks what is
	// written, by the repository's name.
	LockOf  func(name string) (repository.LockPolicy, error)
	SetLock func(ctx context.Context, name string, l repository.LockPolicy) error
	// Free is the free space, in bytes, where a store on this host lies; nil: nobody knows.
	Free func(url string) (int64, error)

	Prover     custody.Prover
	Recipients []string // recovery recipients of key packages
	Audit      *audit.Log

	OpenSource func(ctx context.Context, spec string, o source.Options) (source.Disk, error)
	OpenTarget func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error)
	// Restricted limits sources and targets to the folders named; otherwise the
	// rights of this process decide.
	Restricted   bool
	AllowSources []string
	AllowTargets []string

	Formats      []diskcrypt.Format
	Locks        *job.Locks
	Installation string // id of this installation; holds are tagged with it
	Software     string
	// Actor is who asks where the context does not say (see WithActor).
	Actor string
	Log   *slog.Logger
	Now   func() time.Time
}

// Frame is Deps and what was made of them. Its OpenSource and OpenTarget hide
// those of Deps: they refuse what is outside the folders allowed.
type Frame struct {
	Deps
	API  huma.API
	Jobs *job.Runner

	damage sync.Mutex // what is remembered of it
}

// New makes a frame whose API answers on mux.
func New(d Deps, mux humago.Mux) *Frame {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Actor == "" {
		d.Actor = "unknown"
	}
	c := huma.DefaultConfig("Lockstep", d.Software)
	c.Info.Description = "Backup of encrypted disks, in lockstep with the keys that open them."
	// No pages that load scripts from elsewhere, no links in the answers.
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	return &Frame{
		Deps: d, API: humago.New(mux, c),
		Jobs: job.NewRunner(job.Options{
			Store: jobdocs.Store{Catalog: d.Catalog}, Locks: d.Locks, Log: d.Log, Now: d.Now,
			Describe: func(err error) any { return ProblemOf(err) },
		}),
	}
}

type actorKey struct{}

// WithActor says who is behind the requests with this context.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorOf is who is behind a request.
func (s *Frame) ActorOf(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	return s.Actor
}
