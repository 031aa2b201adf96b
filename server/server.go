// Package server is the HTTP API over the operations: it checks what is asked
// for, starts jobs, and says in problem documents what was refused and why.
//
// It chooses no adapter and knows no data directory: both come through Deps.
// Each group of routes is a package below internal/; this one puts them
// together. Its invariants: what changes, releases or is refused is in the
// audit log; and no secret is in an answer, except the one that was released,
// nor in a log, an event or an error.
package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/audits"
	"github.com/lockstep-backup/lockstep/server/internal/backups"
	"github.com/lockstep-backup/lockstep/server/internal/catalogs"
	"github.com/lockstep-backup/lockstep/server/internal/checks"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/imports"
	"github.com/lockstep-backup/lockstep/server/internal/jobs"
	"github.com/lockstep-backup/lockstep/server/internal/machines"
	"github.com/lockstep-backup/lockstep/server/internal/points"
	"github.com/lockstep-backup/lockstep/server/internal/policies"
	"github.com/lockstep-backup/lockstep/server/internal/prunes"
	"github.com/lockstep-backup/lockstep/server/internal/release"
	"github.com/lockstep-backup/lockstep/server/internal/repositories"
	"github.com/lockstep-backup/lockstep/server/internal/restores"
	"github.com/lockstep-backup/lockstep/server/internal/secrets"
	"github.com/lockstep-backup/lockstep/server/internal/volumes"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Deps is what the server works with.
type Deps = frame.Deps

// Place, NewPlace and AddedPlace are about the installation's repositories.
type (
	Place      = frame.Place
	NewPlace   = frame.NewPlace
	AddedPlace = frame.AddedPlace
)

// Repositories are where the installation's recovery points are kept.
type Repositories = frame.Repositories

// FindNearest finds a recovery point in the nearest repository that has it, or
// in the one that is named. note is told which one cannot be used, and why.
// rest opens the others that have it, for what cannot be read there; it tells
// note as well.
func FindNearest(ctx context.Context, all Repositories, p catalog.Point, name string, note func(format string, args ...any)) (near *repository.Repository, m *repository.Manifest, rest func() []*repository.Repository, err error) {
	found, rest, err := frame.FindNearest(ctx, all, p, name, note)
	return found.Repo, found.Manifest, rest, err
}

// ErrPointDeleted says that a repository's log deletes a recovery point.
var ErrPointDeleted = frame.ErrPointDeleted

// Lease keeps a recovery point, by its id, from being deleted while this
// process reads it; what says for people who. It has to be held before
// FindNearest finds it.
func Lease(ctx context.Context, locks *job.Locks, point, what string) (release func(), err error) {
	l, err := frame.Lease(ctx, locks, point, what)
	if err != nil {
		return nil, err
	}
	return l.Release, nil
}

// Keys gives the secrets in custody that claim the volumes of a recovery point,
// and records each that it hands out with the reason and with what it is for.
func Keys(ctx context.Context, d Deps, p catalog.Point, reason, what string) (unlock.Keys, error) {
	return release.Keys(ctx, frame.New(d, http.NewServeMux()), p, reason, what)
}

// groups are the routes of the API.
var groups = []func(*frame.Frame){
	audits.Register, backups.Register, catalogs.Register, checks.Register, imports.Register, jobs.Register,
	machines.Register, points.Register, policies.Register, prunes.Register, repositories.Register, restores.Register, secrets.Register, volumes.Register,
}

// Server answers the API. It is an http.Handler.
type Server struct {
	f       *frame.Frame
	mux     *http.ServeMux
	recover sync.Once
}

// New makes a server.
func New(d Deps) *Server {
	mux := http.NewServeMux()
	s := &Server{f: frame.New(d, mux), mux: mux}
	for _, register := range groups {
		register(s.f)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		frame.WriteProblem(w, frame.NewProblem(http.StatusNotFound, 0, r.Method+" "+r.URL.Path+": the API has no such path"))
	})
	return s
}

// WithActor says who is behind the requests with this context.
func WithActor(ctx context.Context, actor string) context.Context {
	return frame.WithActor(ctx, actor)
}

// CaughtUp is the audit entry of a recovery point that is recorded later than
// it was committed, for the process that committed it could not do so.
func CaughtUp(m catalog.Machine, point, actor string, now time.Time) audit.Event {
	return backups.CaughtUp(m, point, actor, now)
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.recover.Do(func() { s.recoverJobs(r.Context()) })
	// Answers may hold what must not lie around in a cache.
	w.Header().Set("Cache-Control", "no-store")
	s.mux.ServeHTTP(w, r)
}

// jobsKept is how long jobs that ended are remembered.
const jobsKept = 90 * 24 * time.Hour

// recoverJobs marks what a killed process left running as failed, and forgets
// jobs that ended long ago: the audit log has what matters of them.
func (s *Server) recoverJobs(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	before, err := s.f.Jobs.List(ctx, jobs.Most)
	if err != nil {
		s.f.Log.Warn("jobs of earlier processes could not be looked at", "error", err)
	}
	n, err := s.f.Jobs.Recover(ctx)
	if err != nil {
		s.f.Log.Warn("jobs of earlier processes could not be looked at", "error", err)
	}
	if n > 0 {
		s.f.Log.Info("jobs of processes that died are marked as failed", "jobs", n)
		s.recordDead(ctx, before)
	}
	if c, err := s.f.Catalog(ctx); err == nil {
		if err := c.Jobs.TrimJobs(ctx, s.f.Now().Add(-jobsKept)); err != nil {
			s.f.Log.Warn("old jobs could not be forgotten", "error", err)
		}
	}
}

// recordDead records the jobs whose process died: they could not do it themselves.
func (s *Server) recordDead(ctx context.Context, before []job.Job) {
	for _, j := range before {
		if j.State.Ended() {
			continue
		}
		now, err := s.f.Jobs.Get(ctx, j.ID)
		if err != nil || now.State != job.Failed || now.Error != job.ErrStopped.Error() {
			continue
		}
		e := audit.Event{Action: "job.died", Object: j.ID, Outcome: audit.Failed, Detail: map[string]string{"kind": j.Kind, "error": now.Error}}
		if err := s.f.Record(ctx, e); err != nil {
			s.f.Log.Warn("that a job died is not recorded", "job", j.ID, "error", err)
		}
	}
}

// OpenAPI returns the API's description.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.f.API.OpenAPI() }

// Shutdown lets no job start any more, cancels those that run, and waits for
// their end, or for ctx.
func (s *Server) Shutdown(ctx context.Context) error { return s.f.Jobs.Shutdown(ctx) }
