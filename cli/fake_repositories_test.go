package cli

import (
	"net/http"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		at := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
		places := []api.Repository{
			{Name: "main", ID: "00000000000000000000000000000001", URL: "file:///srv/lockstep", Primary: true, Reachable: true, Writable: true, Machines: 2, Points: 12, Newest: &at},
			{Name: "offsite", ID: "00000000000000000000000000000002", URL: "file:///mnt/offsite", Reachable: true, Writable: true, Machines: 2, Points: 11, Missing: 1, Newest: &at, LastCopy: &at},
			{Name: "vault", ID: "00000000000000000000000000000003", URL: "s3://vault/lockstep", Error: "open repository: the store does not answer"},
		}
		mux.HandleFunc("GET /v1/repositories", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, places) })
		mux.HandleFunc("POST /v1/repositories", func(w http.ResponseWriter, r *http.Request) {
			in := body[api.RepositoryAdd](f, r)
			answer(w, http.StatusOK, api.RepositoryAdded{Name: in.Name, ID: places[1].ID, URL: "file://" + in.URL, Made: true, KitFile: "/root/lockstep-recovery-kit-" + in.Name + ".txt"})
		})
		mux.HandleFunc("POST /v1/repositories/{name}/promote", func(w http.ResponseWriter, r *http.Request) {
			p := places[1]
			p.Name, p.Primary = r.PathValue("name"), true
			answer(w, http.StatusOK, p)
		})
		mux.HandleFunc("DELETE /v1/repositories/{name}", func(w http.ResponseWriter, r *http.Request) {
			out := api.RepositoryRemoved{Name: places[1].Name, ID: places[1].ID, URL: places[1].URL, Only: []string{}}
			if r.PathValue("name") == "vault" {
				if r.URL.Query().Get("force") != "true" {
					refuse(w, api.Error{
						Status: http.StatusConflict, Title: "Conflict", Exit: api.ExitRefused, Items: []string{newPoint},
						Detail: "remove repository: vault is the only place of 1 recovery points", Hint: "--force forgets it all the same",
					})
					return
				}
				out.Name, out.URL, out.Only = "vault", places[2].URL, []string{newPoint}
			}
			answer(w, http.StatusOK, out)
		})
		mux.HandleFunc("POST /v1/copies", func(w http.ResponseWriter, r *http.Request) {
			in := body[api.CopyRequest](f, r)
			f.start(w, api.Job{Kind: "copy", JobResult: api.JobResult{Copy: &api.CopyResult{Copies: []api.MachineCopy{
				{Machine: "web01", From: "main", To: in.To, Points: []string{"4a21c79fb4a48a9b30721fbeea7e8c19"}, Present: 5, Deleted: 1, Objects: 4, Found: 2, Bytes: 9 << 20, Sidecars: 2},
			}}}})
		})
		mux.HandleFunc("POST /v1/repairs", func(w http.ResponseWriter, r *http.Request) {
			in := body[api.RepairRequest](f, r)
			f.start(w, api.Job{Kind: "repair", JobResult: api.JobResult{Repair: &api.RepairResult{
				Repository: "main", DryRun: in.DryRun, Failed: []api.FailedRepair{},
				Repaired: []api.RepairedObject{{Object: "seg/0123/00000001/89abcdef", From: "offsite", As: "seg/0123/00000001/89abcdef-01234567"}},
			}}})
		})
	})
}
