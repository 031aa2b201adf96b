package cli

import (
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		mux.HandleFunc("POST /v1/scrubs", func(w http.ResponseWriter, r *http.Request) {
			q := body[api.ScrubRequest](f, r)
			since := at(2)
			j := api.Job{Kind: "scrub", JobResult: api.JobResult{Scrub: &api.ScrubResult{
				Objects: 100, ReadBytes: 5 << 30, LeftObjects: 20, LeftBytes: 4 << 30, Oldest: &since,
			}}}
			switch {
			case q.Bytes == 6<<20:
				j.Scrub.Damage = []api.Damage{{Object: "seg/aa/01", Machine: "web01", Disk: "vda", Range: &api.Range{Offset: 65536, Length: 4096}, Points: []string{newPoint}, Error: "authentication failed"}}
			case q.ForSeconds == 0:
				j.Scrub.Oldest, j.Scrub.Never = nil, true
			}
			f.start(w, j)
		})
	})
}
