package holder

import (
	"log/slog"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// FuzzHolder reads what anybody may write into an unsealed object, and tries to
// unwrap it.
func FuzzHolder(f *testing.F) {
	id, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		f.Fatal(err)
	}
	dek, err := envelope.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	mem := memstore.New()
	if err := Put(f.Context(), mem, "r", dek, New{Name: "recovery", Recipient: recipient}, time.Unix(0, 0)); err != nil {
		f.Fatal(err)
	}
	var good []byte
	if err := mem.Replace("keys/recovery", func(p []byte) { good = p }); err != nil {
		f.Fatal(err)
	}
	body, err := envelope.OpenFrame(good, format.KindHolder, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte(`{"name":"recovery","kind":"passphrase","wrapped":"AAAA"}`))
	f.Add([]byte(`{"name":"recovery","kind":"kek","id":""}`))
	f.Add([]byte(`{"name":"other"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		raw, err := envelope.SealFrame(format.KindHolder, nil, nil, body)
		if err != nil {
			t.Fatal(err)
		}
		mem := memstore.New()
		if err := mem.Put(t.Context(), "keys/recovery", raw); err != nil {
			t.Fatal(err)
		}
		hs, err := List(t.Context(), mem)
		if err == nil && (len(hs) != 1 || hs[0].Name != "recovery") {
			t.Fatalf("taken: %+v", hs)
		}
		second, err := twin.Look(t.Context(), mem)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unwrap(t.Context(), mem, second, "r", Unlocker{Identities: id}, slog.New(slog.DiscardHandler))
		if err == nil && !got.Equal(dek) {
			t.Fatal("another key came out")
		}
	})
}
