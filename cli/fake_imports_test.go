package cli

import (
	"net/http"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		mux.HandleFunc("POST /v1/imports", func(w http.ResponseWriter, req *http.Request) {
			r := body[api.ImportRequest](f, req)
			at := time.Date(2019, 3, 31, 0, 0, 0, 0, time.UTC)
			if r.Time != nil {
				at = *r.Time
			}
			res := &api.ImportResult{Machine: r.Machine, DryRun: r.DryRun, PassedOver: []string{"notes.txt"}}
			for i := range 2 {
				it := api.ImportedItem{Time: at.AddDate(0, 0, i), SizeBytes: 8 << 30, Disks: []api.ImportDisk{{ID: "vda", File: "/srv/old/web01/a.qcow2"}}}
				switch {
				case i == 0:
					it.Existing, it.Point = true, "0123456789abcdef0123456789abcdef"
				case !r.DryRun:
					it.Point, it.State = "1123456789abcdef0123456789abcdef", api.StateUnrecoverable
				}
				res.Items = append(res.Items, it)
			}
			j := api.Job{JobResult: api.JobResult{Import: res}}
			if !r.DryRun {
				j.Exit = api.ExitNotProven
			}
			f.start(w, j)
		})
	})
}
