// Package jobs is the routes of jobs: listing them, following them, asking them to stop.
package jobs

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
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-jobs", http.MethodGet, "/v1/jobs", "List jobs, the newest first", s.listJobs)
	frame.Route(f, "get-job", http.MethodGet, "/v1/jobs/{id}", "Show a job", s.getJob)
	frame.Route(f, "cancel-job", http.MethodPost, "/v1/jobs/{id}/cancel", "Ask a job to stop", s.cancelJob)
	frame.Route(f, "watch-job", http.MethodGet, "/v1/jobs/{id}/events", "Follow a job to its end", s.watchJob, func(o *huma.Operation) {
		schema := s.API.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.JobEvent](), true, "JobEvent")
		o.Responses = map[string]*huma.Response{"200": {
			Description: "Events (WHATWG HTML, server-sent events); the data of each is a JobEvent; the last is of kind done",
			Content:     map[string]*huma.MediaType{"text/event-stream": {Schema: schema}},
		}}
	})
}

type JobPath struct {
	ID string `path:"id"`
}

type jobEvents struct {
	JobPath
	After int `query:"after" minimum:"0" doc:"number of the last event that was seen"`
}

// Most bounds a list of jobs.
const Most = 1000

func (s routes) listJobs(ctx context.Context, _ *frame.None) (*frame.Out[[]api.Job], error) {
	all, err := s.Jobs.List(ctx, Most)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[[]api.Job]{Body: []api.Job{}}
	for _, j := range all {
		r.Body = append(r.Body, frame.JobView(j))
	}
	return r, nil
}

func (s routes) getJob(ctx context.Context, req *JobPath) (*frame.Out[api.Job], error) {
	j, err := s.Jobs.Get(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	return &frame.Out[api.Job]{Body: frame.JobView(j)}, nil
}

func (s routes) cancelJob(ctx context.Context, req *JobPath) (*frame.Out[api.Job], error) {
	return frame.Audited(ctx, s.Frame, audit.Event{Action: "job.cancel", Object: req.ID}, func() (*frame.Out[api.Job], error) {
		if err := s.Jobs.Cancel(ctx, req.ID); err != nil {
			return nil, fmt.Errorf("cancel job %s: %w", req.ID, err)
		}
		return s.getJob(ctx, req)
	})
}

// quiet is how long a stream of events may say nothing, so that neither side
// takes the other for dead.
const quiet = 20 * time.Second

func (s routes) watchJob(ctx context.Context, req *jobEvents) (*huma.StreamResponse, error) {
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
			for e, err := range s.Jobs.Events(ctx, req.ID, req.After) {
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
