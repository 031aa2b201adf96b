package cli

import (
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		mux.HandleFunc("POST /v1/points/{point}/disks/{disk}/volumes/{volume}/header", func(w http.ResponseWriter, r *http.Request) {
			req := body[api.HeaderRestoreRequest](f, r)
			v := api.HeaderRestored{
				Point: r.PathValue("point"), Disk: r.PathValue("disk"), Volume: r.PathValue("volume"), Target: req.Target,
				Found: "damaged", Why: "primary header is not valid: checksum does not match", Written: !req.DryRun, Bytes: 16 << 20,
				Ranges: []api.Range{{Offset: 1 << 20, Length: 16 << 20}}, Samples: 64, Equal: 60,
			}
			if v.Written {
				v.Backup = req.Backup
			}
			switch {
			case v.Volume == "p1":
				v.Found, v.Why, v.Written, v.Backup = "same", "the target has this header already", false, ""
			case v.Volume == "p7" && !req.Force:
				refuse(w, api.Error{
					Status: http.StatusConflict, Title: "Conflict", Exit: api.ExitTarget, Hint: "look at the target first",
					Detail: "restore header: the target does not need this header, or is not its volume: it has a sound header of this volume",
				})
				return
			}
			answer(w, http.StatusOK, v)
		})
	})
}
