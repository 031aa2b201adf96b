package restores

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

// stream answers with the bytes of a disk. What comes of it is known behind
// them only, and said in a trailer.
func (s routes) stream(ctx context.Context, req *frame.In[api.StreamRequest]) (*huma.StreamResponse, error) {
	r := req.Body
	e := audit.Event{Action: "point.restore", Object: r.Point, Detail: map[string]string{"disk " + partName(r.RestorePart): "standard output"}}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	p, err := s.ResolvePoint(ctx, c, r.Point)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	e.Object = p.ID
	v, err := s.PointView(ctx, c, p)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	lease, err := s.Lease(ctx, p.ID, "a restore")
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	reading := false
	defer func() {
		if !reading {
			lease.Release()
		}
	}()
	// Others are looked for while the disk is read, by whoever meets damage.
	var mu sync.Mutex
	var notes []string
	near, rest, err := s.Nearest(ctx, p, r.Repository, func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		notes = append(notes, frame.Clip(fmt.Sprintf(format, args...)))
	})
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	mf := near.Manifest
	w, err := find(mf, r.RestorePart)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	reading = true
	return &huma.StreamResponse{Body: func(h huma.Context) {
		defer lease.Release()
		begun := false
		out := api.StreamOutcome{Exit: frame.ExitOfState(v.State)}
		d, err := frame.Audited(ctx, s.Frame, e, func() (restore.Disk, error) {
			return restore.Stream(s.Limited(h.Context(), r.Rates), restore.StreamRequest{
				Repository: near.Repo, Elsewhere: rest, Manifest: mf, Disk: w.disk, Part: w.part, Extents: w.extents, To: h.BodyWriter(),
				Sized: func(n int64) {
					h.SetHeader("Content-Type", "application/octet-stream")
					h.SetHeader(api.SizeHeader, strconv.FormatInt(n, 10))
					h.SetStatus(http.StatusOK)
					// An answer that fits into a buffer would have no trailer.
					if f, ok := h.BodyWriter().(http.Flusher); ok {
						f.Flush()
					}
					begun = true
				},
			})
		})
		mu.Lock()
		out.Warnings = slices.Clone(notes)
		mu.Unlock()
		if err == nil && d.Borrowed > 0 {
			out.Warnings = append(out.Warnings, borrowedText(d, near.Place))
		}
		if err != nil && !begun {
			p := frame.ProblemOf(err)
			h.SetHeader("Content-Type", "application/problem+json")
			h.SetStatus(p.Status)
			_ = json.NewEncoder(h.BodyWriter()).Encode(p)
			return
		}
		if err != nil {
			problem := api.Error(*frame.ProblemOf(err))
			problem.Items = nil // the trailer is bounded
			problem.Detail = frame.Clip(problem.Detail)
			out.Error, out.Exit = &problem, problem.Exit
		} else {
			out.Restore = &api.RestoreResult{
				Point: p.ID, State: v.State, Keys: keys(show.Preflight(v, []api.RestoreTarget{{RestorePart: api.RestorePart{Disk: w.disk}}}), v, []wanted{w}),
				Disks: []api.RestoredDisk{restored(d, r.RestorePart)},
			}
			if len(d.Unread) > 0 {
				out.Exit = api.ExitDamaged
			}
		}
		encoded, err := json.Marshal(out)
		if len(encoded) > maxTrailer { // thousands of ranges: their number is what matters here
			out.Restore = nil
			encoded, err = json.Marshal(out)
		}
		if err := errors.Join(err, context.Cause(h.Context())); err != nil {
			s.Log.Info("the end of a disk's stream is not told", "point", p.ID, "error", err)
		}
		h.SetHeader(http.TrailerPrefix+api.OutcomeTrailer, string(encoded))
	}}, nil
}

// maxTrailer stays below what clients take.
const maxTrailer = 64 << 10
