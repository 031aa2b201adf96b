package cli

import (
	"net/http"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		const gib = int64(1) << 30
		at := time.Date(2026, 11, 20, 3, 0, 0, 0, time.UTC)
		ids := []string{"4a21c79fb4a48a9b30721fbeea7e8c19", "5b21c79fb4a48a9b30721fbeea7e8c19", "6c21c79fb4a48a9b30721fbeea7e8c19"}
		mux.HandleFunc("GET /v1/repositories/{name}/stats", func(w http.ResponseWriter, r *http.Request) {
			web := api.MachineStats{
				Machine: "web01", Logical: 300 * gib, Stored: 42 * gib, Needed: 41 * gib, Dead: gib, Objects: 700,
				Outlook: &api.Outlook{Observed: 2, PerDay: gib, Typical: gib, Ahead: []api.Expected{{Days: 30, Bytes: 60 * gib, Points: 30}, {Days: 90, Bytes: 72 * gib, Points: 30}, {Days: 365, Bytes: 72 * gib, Points: 30}}},
			}
			for i, id := range ids {
				p := api.PointStats{Point: id, Time: at.AddDate(0, 0, i), Logical: 100 * gib, Written: gib, Alone: gib / 2}
				if i == 0 {
					p.Written = 40 * gib
				}
				web.Points = append(web.Points, p)
			}
			v := api.RepositoryStats{Name: "main", URL: "file:///srv/lockstep", Machines: []api.MachineStats{web}}
			if r.URL.Query().Get("machine") == "" {
				v.Machines = append(v.Machines, api.MachineStats{Machine: "db01", Points: []api.PointStats{}, Stored: gib, Error: "map: object is damaged"})
			}
			for _, m := range v.Machines {
				v.Logical, v.Stored, v.Needed, v.Dead, v.Objects = v.Logical+m.Logical, v.Stored+m.Stored, v.Needed+m.Needed, v.Dead+m.Dead, v.Objects+m.Objects
			}
			free, full := 20*gib, 33.4
			v.Free, v.FullIn, v.Outlook = &free, &full, web.Outlook
			answer(w, http.StatusOK, v)
		})
		mux.HandleFunc("GET /v1/repositories/{name}/lock", func(w http.ResponseWriter, r *http.Request) {
			answer(w, http.StatusOK, api.RepositoryLock{Repository: r.PathValue("name"), For: "30d", Mode: "governance"})
		})
		mux.HandleFunc("PUT /v1/repositories/{name}/lock", func(w http.ResponseWriter, r *http.Request) {
			in := body[api.RepositoryLock](f, r)
			if in.Repository = r.PathValue("name"); in.For != "" && in.Mode == "" {
				in.Mode = "governance"
			}
			answer(w, http.StatusOK, in)
		})
	})
}
