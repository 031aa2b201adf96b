package cli

import (
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		mux.HandleFunc("POST /v1/secrets/derive", func(w http.ResponseWriter, r *http.Request) {
			d := body[api.SecretDerive](f, r)
			answer(w, 200, api.SecretDeriveResult{
				Point: "0123456789abcdef0123456789abcdef", Disk: d.Disk, Volume: d.Volume, From: "win01-a1@1",
				Secrets: []api.DerivedSecret{{Protector: "{b0}", Kind: "recovery-password", Secret: "win01-b2", Version: 1}},
			})
		})
	})
}
