// Package server is the HTTP API over the operations: it checks what is asked
// for, starts jobs, and says in problem documents what was refused and why.
//
// It chooses no adapter and knows no data directory: both come through Deps.
// Its invariants: what changes, releases or is refused is in the audit log; and
// no secret is in an answer, except the one that was released, nor in a log, an
// event or an error.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
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
	"github.com/lockstep-backup/lockstep/server/internal/witness"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/target"
)

// Deps is what the server works with. The functions that open something are
// called when it is first needed, and give the same thing each time.
type Deps struct {
	Catalog    func(context.Context) (*catalog.Catalog, error)
	Repository func(context.Context) (*repository.Repository, error)
	Manager    func(context.Context) (keymanager.Manager, error)
	Custodian  func() (envelope.SigningKey, error) // signs declarations
	// Rebuild opens the catalog for a rebuild; when fill has returned, Catalog
	// gives what was filled.
	Rebuild func(ctx context.Context, fill func(*catalog.Catalog) error) error

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

	Formats       []diskcrypt.Format
	Locks         *job.Locks
	Installation  string // id of this installation; holds are tagged with it
	RepositoryURL string
	Software      string
	// Actor is who asks where the context does not say (see WithActor).
	Actor string
	Log   *slog.Logger
	Now   func() time.Time
}

// Server answers the API. It is an http.Handler.
type Server struct {
	d       Deps
	mux     *http.ServeMux
	api     huma.API
	jobs    *job.Runner
	recover sync.Once
}

// New makes a server.
func New(d Deps) *Server {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Actor == "" {
		d.Actor = "unknown"
	}
	s := &Server{d: d, mux: http.NewServeMux()}
	s.jobs = job.NewRunner(job.Options{
		Store: jobdocs.Store{Catalog: d.Catalog}, Locks: d.Locks, Log: d.Log, Now: d.Now,
		Describe: func(err error) any { return problemOf(err) },
	})
	c := huma.DefaultConfig("Lockstep", d.Software)
	c.Info.Description = "Backup of encrypted disks, in lockstep with the keys that open them."
	// No pages that load scripts from elsewhere, no links in the answers.
	c.DocsPath, c.SchemasPath, c.CreateHooks = "", "", nil
	s.api = humago.New(s.mux, c)
	s.machineRoutes()
	s.volumeRoutes()
	s.secretRoutes()
	s.pointRoutes()
	s.workRoutes()
	s.auditRoutes()
	s.jobRoutes()
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, newProblem(http.StatusNotFound, 0, r.Method+" "+r.URL.Path+": the API has no such path"))
	})
	return s
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
	before, err := s.jobs.List(ctx, maxJobs)
	if err != nil {
		s.d.Log.Warn("jobs of earlier processes could not be looked at", "error", err)
	}
	n, err := s.jobs.Recover(ctx)
	if err != nil {
		s.d.Log.Warn("jobs of earlier processes could not be looked at", "error", err)
	}
	if n > 0 {
		s.d.Log.Info("jobs of processes that died are marked as failed", "jobs", n)
		s.recordDead(ctx, before)
	}
	if c, err := s.d.Catalog(ctx); err == nil {
		if err := c.Jobs.TrimJobs(ctx, s.d.Now().Add(-jobsKept)); err != nil {
			s.d.Log.Warn("old jobs could not be forgotten", "error", err)
		}
	}
}

// recordDead records the jobs whose process died: they could not do it themselves.
func (s *Server) recordDead(ctx context.Context, before []job.Job) {
	for _, j := range before {
		if j.State.Ended() {
			continue
		}
		now, err := s.jobs.Get(ctx, j.ID)
		if err != nil || now.State != job.Failed || now.Error != job.ErrStopped.Error() {
			continue
		}
		e := audit.Event{Action: "job.died", Object: j.ID, Outcome: audit.Failed, Detail: map[string]string{"kind": j.Kind, "error": now.Error}}
		if err := s.record(ctx, e); err != nil {
			s.d.Log.Warn("that a job died is not recorded", "job", j.ID, "error", err)
		}
	}
}

// OpenAPI returns the API's description.
func (s *Server) OpenAPI() *huma.OpenAPI { return s.api.OpenAPI() }

// Shutdown lets no job start any more, cancels those that run, and waits for
// their end, or for ctx.
func (s *Server) Shutdown(ctx context.Context) error { return s.jobs.Shutdown(ctx) }

type actorKey struct{}

// WithActor says who is behind the requests with this context.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

func (s *Server) actor(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	return s.d.Actor
}

// none is a request without body or parameters.
type none struct{}

// in is a request that is a body and nothing else, out an answer.
type (
	in[B any]  struct{ Body B }
	out[B any] struct{ Body B }
)

const (
	maxBody       = 1 << 20
	maxSecretBody = 12 << 20 // a key file of 8 MiB, in base64
)

// route adds an operation. Its id is what generated clients call it.
func route[I, O any](s *Server, id, method, path, summary string, fn func(context.Context, *I) (*O, error), change ...func(*huma.Operation)) {
	o := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		MaxBodyBytes: maxBody,
		// A deadline for the body would go on to end the request; who may connect
		// is the owner of the server.
		BodyReadTimeout: -1,
	}
	for _, f := range change {
		f(&o)
	}
	huma.Register(s.api, o, func(ctx context.Context, i *I) (*O, error) {
		r, err := fn(ctx, i)
		if err != nil {
			p := problemOf(err)
			if p.Status >= http.StatusInternalServerError {
				// Who asked is told; this is for who reads the server's log.
				s.d.Log.Info("request failed", "operation", id, "error", p.Detail)
			}
			return nil, p
		}
		return r, nil
	})
}

// status sets the HTTP status of success.
func status(n int) func(*huma.Operation) {
	return func(o *huma.Operation) { o.DefaultStatus = n }
}

// record appends to the audit log.
func (s *Server) record(ctx context.Context, e audit.Event) error {
	e.Time, e.Actor = s.d.Now().UTC(), s.actor(ctx)
	if _, err := s.d.Audit.Append(context.WithoutCancel(ctx), e); err != nil {
		return err
	}
	// One more witness: where it cannot be kept, the entry is in the log all the same.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), witnessWait)
	defer stop()
	c, err := s.d.Catalog(ctx)
	if err == nil {
		err = witness.Keep(ctx, c, s.d.Audit)
	}
	if err != nil {
		s.d.Log.Info("the audit log's checkpoint is not kept in the catalog", "error", err)
	}
	return nil
}

// witnessWait bounds how long an entry waits for the catalog.
const witnessWait = 5 * time.Second

// begin records what is about to be done. What cannot be recorded is not done:
// the caller goes no further where this returns an error.
func (s *Server) begin(ctx context.Context, e audit.Event) error {
	e.Outcome = audit.Begun
	if err := s.record(ctx, e); err != nil {
		return hint(fmt.Errorf("%s: it could not be recorded in the audit log, so nothing was done: %w", strings.ReplaceAll(e.Action, ".", " "), err),
			"'lockstep audit verify' says what is wrong with the audit log")
	}
	return nil
}

// audited does something and records it with its outcome. Where it was done
// but could not be recorded, that is the error.
func audited[T any](ctx context.Context, s *Server, e audit.Event, fn func() (T, error)) (T, error) {
	v, err := fn()
	e.Outcome = outcomeOf(err)
	if err != nil {
		e.Detail = withDetail(e.Detail, "error", clip(problemOf(err).Detail))
	}
	if aerr := s.record(ctx, e); aerr != nil {
		s.d.Log.Error("audit log", "action", e.Action, "object", e.Object, "error", aerr)
		if err == nil {
			err = hint(errors.Join(errors.New("done, but not recorded in the audit log"), aerr),
				"'lockstep audit verify' says what is wrong with the audit log")
		}
	}
	return v, err
}

func withDetail(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// clip keeps an entry of the audit log short.
func clip(text string) string {
	const most = 2000
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}
