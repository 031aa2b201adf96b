package frame

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/repository"
)

// Result is what a job came to, as it is kept with the job.
type Result struct {
	Exit int `json:"exit"`
	api.JobResult
	// Found: the job looks for damage and found some. It did what it is for, and
	// the audit log says that it was found.
	Found bool `json:"-"`
}

// Work is what a job does. The result stays with the job also where it failed.
type Work func(ctx context.Context, p *job.Reporter) (Result, error)

// Start starts a job, which is recorded when it has ended; a refusal to start
// it is recorded at once. Jobs with a key in common do not run at the same time.
func (s *Frame) Start(ctx context.Context, kind string, e audit.Event, do Work, keys ...string) (*Out[api.Job], error) {
	j, err := s.Jobs.Start(ctx, kind, func(ctx context.Context, p *job.Reporter) error {
		_, err := Audited(ctx, s, withJob(e, p.Job()), func() (Result, error) {
			r, err := do(ctx, p)
			if serr := p.Result(r); serr != nil && err == nil {
				err = serr
			}
			// What a canceled job says of itself is only that it was canceled.
			if cause := context.Cause(ctx); err != nil && ctx.Err() != nil && cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			if err == nil && r.Found {
				err = errFound
			}
			return r, err
		})
		if errors.Is(err, errFound) {
			err = nil // the job did what it is for
		}
		return err
	}, keys...)
	if err != nil {
		err = fmt.Errorf("%s: %w", kind, err)
		e.Outcome, e.Detail = OutcomeOf(err), WithDetail(e.Detail, "error", Clip(ProblemOf(err).Detail))
		return nil, errors.Join(err, s.Record(ctx, e))
	}
	return &Out[api.Job]{Body: JobView(j)}, nil
}

// errFound has the audit log say that a job which looks for damage found some.
var errFound = fmt.Errorf("%w was found", repository.ErrDamaged)

func withJob(e audit.Event, id string) audit.Event {
	detail := map[string]string{"job": id}
	for k, v := range e.Detail {
		detail[k] = v
	}
	e.Detail = detail
	return e
}

// Progress gives what operations report to a job, in bytes.
func Progress(p *job.Reporter) func(phase string, done, total int64) {
	return func(phase string, done, total int64) {
		p.Progress(job.Progress{Phase: phase, Done: done, Total: total, Unit: "bytes"})
	}
}

// ExitOfState is the exit status of a command that made or looked at a
// recovery point.
func ExitOfState(state string) int {
	switch state {
	case api.StateUnproven, api.StateAtRisk, api.StateUnrecoverable:
		return api.ExitNotProven
	default:
		return api.ExitDone
	}
}

// JobView shows a job.
func JobView(j job.Job) api.Job {
	v := api.Job{ID: j.ID, Kind: j.Kind, State: string(j.State), Created: j.Created.UTC(), Warnings: j.Warnings}
	if !j.Ended.IsZero() {
		at := j.Ended.UTC()
		v.Ended = &at
	}
	var r Result
	if len(j.Result) > 0 && json.Unmarshal(j.Result, &r) == nil {
		v.Exit, v.JobResult = r.Exit, r.JobResult
	}
	switch j.State {
	case job.Failed:
		v.Error = new(api.Error)
		if len(j.Problem) == 0 || json.Unmarshal(j.Problem, v.Error) != nil {
			// A process that died describes nothing.
			*v.Error = api.Error(*NewProblem(http.StatusInternalServerError, api.ExitFailed, j.Kind+": "+j.Error))
		}
		v.Exit = v.Error.Exit
	case job.Canceled:
		v.Exit = api.ExitInterrupted
	}
	return v
}
