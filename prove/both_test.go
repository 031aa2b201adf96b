package prove_test

import (
	"testing"

	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
)

// Each secret in custody that opens a recovery point has its proof and its
// hold: losing one of two must not be noticed on the day of the restore.
func TestEveryActiveSecretIsProven(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one", "two")})
	if _, err := e.Add(m, "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Add(m, "two", func(r *prove.AddRequest) { r.New = true }); err != nil {
		t.Fatal(err)
	}
	point, res := e.Backup(m)
	if len(res.Opened) != 2 || res.Opened[0].Secret == res.Opened[1].Secret {
		t.Fatalf("opened by %v, want both secrets", res.Opened)
	}
	infos, err := e.Manager.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range infos {
		for _, v := range s.Versions {
			if len(v.Holds) != 1 || v.Holds[0].Point != point {
				t.Errorf("%s is held by %v", v.Ref, v.Holds)
			}
		}
	}
	proofs, err := e.Catalog.Proofs.OfPoint(t.Context(), point)
	if err != nil || len(proofs) != 2 {
		t.Fatalf("%d proofs, %v", len(proofs), err)
	}
	if proofs[0].VKProof == "" || proofs[0].VKProof != proofs[1].VKProof {
		t.Errorf("two secrets of one volume key: %q and %q", proofs[0].VKProof, proofs[1].VKProof)
	}
}
