package cli

import (
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
)

func fakePolicy() api.Policy {
	return api.Policy{
		Format: 1, Timezone: "Europe/Berlin", Schedule: "30 2 * * *",
		Retention: api.PolicyRetention{Daily: 14, Within: "2d", Minimum: 3, KeepTags: []string{"release"}},
		ProofAge:  "90d", Limits: []api.PolicyLimit{{From: "08:00", To: "18:00", Read: 200 << 20}}, CopiesTo: []string{"file:///srv/copy"},
	}
}

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		view := func(machine, origin string, p api.Policy) api.PolicyView {
			v := api.PolicyView{Machine: machine, Origin: origin, Policy: p}
			if p.Schedule != "" {
				v.Next = append(v.Next, at(2), at(3))
			}
			return v
		}
		get := func(w http.ResponseWriter, r *http.Request) {
			switch name := r.PathValue("name"); name {
			case "":
				answer(w, 200, view("", api.PolicyDefault, api.Policy{Format: 1, Retention: api.PolicyRetention{KeepLast: 7}}))
			case "web01":
				answer(w, 200, view(name, api.PolicyOwn, fakePolicy()))
			case "db01":
				answer(w, 200, view(name, api.PolicyDefault, api.Policy{Format: 1, Retention: api.PolicyRetention{KeepLast: 7}}))
			case "new01":
				answer(w, 200, view(name, api.PolicyNone, api.Policy{Format: 1}))
			default:
				refuse(w, notFound("machine", name))
			}
		}
		put := func(w http.ResponseWriter, r *http.Request) {
			p := body[api.Policy](f, r)
			if p.Timezone == "Nowhere" {
				refuse(w, api.Error{Status: 422, Title: "Unprocessable Entity", Detail: `set policy: policy is not valid: timezone: "Nowhere" is no IANA time zone`, Exit: 2})
				return
			}
			name := r.PathValue("name")
			origin := api.PolicyOwn
			if name == "" {
				origin = api.PolicyDefault
			}
			answer(w, 200, view(name, origin, p))
		}
		for _, path := range []string{"/v1/policy", "/v1/machines/{name}/policy"} {
			mux.HandleFunc("GET "+path, get)
			mux.HandleFunc("PUT "+path, put)
			mux.HandleFunc("DELETE "+path, func(w http.ResponseWriter, r *http.Request) {
				answer(w, 200, view(r.PathValue("name"), api.PolicyNone, api.Policy{Format: 1}))
			})
		}
		mux.HandleFunc("POST /v1/points/{point}/marks", func(w http.ResponseWriter, r *http.Request) {
			m := body[api.MarkRequest](f, r)
			if !m.Set && m.Kind == api.MarkPin && r.PathValue("point") == oldPoint {
				refuse(w, api.Error{Status: 409, Title: "Conflict", Detail: "unmark recovery point " + oldPoint + ": it is not pinned", Exit: 4, Hint: "'lockstep point show' shows what is set"})
				return
			}
			p := fakePoints()[0]
			if m.Set && m.Kind == api.MarkPin {
				p.Pin = &api.PointMark{Reason: m.Reason, Actor: "uid:0", Time: at(5)}
			}
			answer(w, 200, p)
		})
		mux.HandleFunc("POST /v1/prunes", func(w http.ResponseWriter, req *http.Request) {
			r := body[api.PruneRequest](f, req)
			if r.Machine == "early" && !r.ClockIsRight {
				f.start(w, api.Job{Kind: "prune", State: "failed", Exit: 4, Error: &api.Error{
					Title: "Conflict", Detail: "prune early: the clock does not look right", Exit: 4, Hint: "set the clock right; if it is right, say so with --clock-is-right",
				}, JobResult: api.JobResult{Prune: &api.PruneResult{Machines: []api.PruneMachine{}}}})
				return
			}
			web := api.PruneMachine{Machine: "web01", Origin: api.PolicyOwn, Kept: 2, Deleted: 1, Points: []api.PrunePoint{
				{Point: newPoint, Time: at(3), State: api.StateUnrecoverable, Keep: true, Reasons: []string{"newest", "daily 1 of 14 (2026-03-14)"}},
				{Point: midPoint, Time: at(2), State: api.StateProven, Keep: true, Reasons: []string{"newest that is proven and complete", "pinned by uid:0 (before\x1b the move)"}},
				{Point: oldPoint, Time: at(1), State: api.StateProven, Reasons: []string{"daily: 2026-03-14 is kept by c41f9e33"}},
			}}
			db := api.PruneMachine{Machine: "db01", Origin: api.PolicyNone, Kept: 9, Points: []api.PrunePoint{}}
			if !r.DryRun {
				web.Points = web.Points[2:]
				web.Points[0].Deleted, web.ReleasedHolds, web.FreedBytes = true, 1, 11<<20
			}
			res := &api.PruneResult{DryRun: r.DryRun, Machines: []api.PruneMachine{web}}
			if r.Machine == "" {
				res.Machines = append(res.Machines, db)
			}
			f.start(w, api.Job{Kind: "prune", JobResult: api.JobResult{Prune: res}})
		})
	})
}
