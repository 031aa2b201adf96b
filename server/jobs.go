package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/job"
)

type JobPath struct {
	ID string `path:"id"`
}

type jobEvents struct {
	JobPath
	After int `query:"after" minimum:"0" doc:"number of the last event that was seen"`
}

func (s *Server) jobRoutes() {
	route(s, "list-jobs", http.MethodGet, "/v1/jobs", "List jobs, the newest first", s.listJobs)
	route(s, "get-job", http.MethodGet, "/v1/jobs/{id}", "Show a job", s.getJob)
	route(s, "cancel-job", http.MethodPost, "/v1/jobs/{id}/cancel", "Ask a job to stop", s.cancelJob)
	route(s, "watch-job", http.MethodGet, "/v1/jobs/{id}/events", "Follow a job to its end", s.watchJob, func(o *huma.Operation) {
		schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.JobEvent](), true, "JobEvent")
		o.Responses = map[string]*huma.Response{"200": {
			Description: "Events (WHATWG HTML, server-sent events); the data of each is a JobEvent; the last is of kind done",
			Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: schema}},
		}}
	})
}

// result is what a job came to, as it is kept with the job.
type result struct {
	Exit    int                `json:"exit"`
	Backup  *api.Point         `json:"backup,omitempty"`
	Prove   []api.Point        `json:"prove,omitempty"`
	Restore *api.RestoreResult `json:"restore,omitempty"`
	Verify  *api.VerifyResult  `json:"verify,omitempty"`
	Rebuild *api.RebuildResult `json:"rebuild,omitempty"`
}

func jobView(j job.Job) api.Job {
	v := api.Job{ID: j.ID, Kind: j.Kind, State: string(j.State), Created: j.Created.UTC(), Warnings: j.Warnings}
	if !j.Ended.IsZero() {
		at := j.Ended.UTC()
		v.Ended = &at
	}
	var r result
	if len(j.Result) > 0 && json.Unmarshal(j.Result, &r) == nil {
		v.Exit, v.Backup, v.Prove, v.Restore, v.Verify, v.Rebuild = r.Exit, r.Backup, r.Prove, r.Restore, r.Verify, r.Rebuild
	}
	switch j.State {
	case job.Failed:
		v.Error = new(api.Error)
		if len(j.Problem) == 0 || json.Unmarshal(j.Problem, v.Error) != nil {
			// A process that died describes nothing.
			*v.Error = api.Error(*newProblem(http.StatusInternalServerError, api.ExitFailed, j.Kind+": "+j.Error))
		}
		v.Exit = v.Error.Exit
	case job.Canceled:
		v.Exit = api.ExitInterrupted
	}
	return v
}

// maxJobs bounds a list of jobs.
const maxJobs = 1000

func (s *Server) listJobs(ctx context.Context, _ *none) (*out[[]api.Job], error) {
	all, err := s.jobs.List(ctx, maxJobs)
	if err != nil {
		return nil, err
	}
	r := &out[[]api.Job]{Body: []api.Job{}}
	for _, j := range all {
		r.Body = append(r.Body, jobView(j))
	}
	return r, nil
}

func (s *Server) getJob(ctx context.Context, req *JobPath) (*out[api.Job], error) {
	j, err := s.jobs.Get(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &out[api.Job]{Body: jobView(j)}, nil
}

func (s *Server) cancelJob(ctx context.Context, req *JobPath) (*out[api.Job], error) {
	return audited(ctx, s, audit.Event{Action: "job.cancel", Object: req.ID}, func() (*out[api.Job], error) {
		if err := s.jobs.Cancel(ctx, req.ID); err != nil {
			return nil, fmt.Errorf("cancel job %s: %w", req.ID, err)
		}
		return s.getJob(ctx, req)
	})
}

// quiet is how long a stream of events may say nothing, so that neither side
// takes the other for dead.
const quiet = 20 * time.Second

func (s *Server) watchJob(ctx context.Context, req *jobEvents) (*huma.StreamResponse, error) {
	if _, err := s.getJob(ctx, &req.JobPath); err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		c.SetHeader("Content-Type", "text/event-stream")
		c.SetStatus(http.StatusOK)
		w := c.BodyWriter()
		flush := func() {
			if f, ok := w.(http.Flusher); ok {
				f.Flush()
			}
		}
		flush()
		ctx, stop := context.WithCancel(c.Context())
		defer stop()
		events := make(chan job.Event)
		go func() {
			defer close(events)
			for e, err := range s.jobs.Events(ctx, req.ID, req.After) {
				if err != nil {
					return // the client asks again from where it is
				}
				select {
				case events <- e:
				case <-ctx.Done():
					return
				}
			}
		}()
		beat := time.NewTicker(quiet)
		defer beat.Stop()
		for {
			select {
			case e, more := <-events:
				if !more {
					return
				}
				data, err := json.Marshal(eventView(e))
				if err != nil {
					return
				}
				if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.N, data); err != nil {
					return
				}
			case <-beat.C:
				if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
					return
				}
			}
			flush()
		}
	}}, nil
}

func eventView(e job.Event) api.JobEvent {
	v := api.JobEvent{N: e.N, Time: e.Time.UTC(), Kind: e.Kind, Message: e.Message}
	if p := e.Progress; p != nil {
		v.Phase, v.Done, v.Total, v.Unit = p.Phase, p.Done, p.Total, p.Unit
		if v.Message == "" {
			v.Message = p.Note
		}
	}
	return v
}
