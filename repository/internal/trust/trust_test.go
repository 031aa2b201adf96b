package trust

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
)

// FuzzTrust signs what the fuzzer wants with a custodian's key: entries that
// come first name their own, later ones are checked against what is held.
func FuzzTrust(f *testing.F) {
	var keys [3]envelope.SigningKey
	for i, role := range []string{"writer", "prover", "custodian"} {
		k, err := envelope.NewSigningKey(role, envelope.CopySecret(append(make([]byte, 31), byte(i))))
		if err != nil {
			f.Fatal(err)
		}
		keys[i] = k
	}
	const repo = "00112233445566778899aabbccddeeff"
	first, err := First(repo, Digest(nil), keys[0].Public(), keys[1].Public(), keys[2], time.Unix(0, 0))
	if err != nil {
		f.Fatal(err)
	}
	e, err := parse(first, 0, Log{})
	if err != nil {
		f.Fatal(err)
	}
	held := Log{keys: e.Keys, n: 1}
	body, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body, int64(0))
	f.Add(body, int64(1))
	f.Add([]byte(`{"keys":[]}`), int64(0))
	f.Add([]byte(`{"keys":[{"role":"custodian","key":"AA=="}]}`), int64(1))
	f.Fuzz(func(t *testing.T, body []byte, n int64) {
		signed, err := envelope.Sign(payloadType, body, keys[2])
		if err != nil {
			t.Skip()
		}
		raw, err := envelope.SealFrame(format.KindTrust, nil, nil, signed)
		if err != nil {
			t.Fatal(err)
		}
		e, err := parse(raw, n, held)
		if err != nil {
			return
		}
		custodian := false
		for _, k := range e.Keys {
			p, err := k.public()
			if err != nil || p.ID != k.ID {
				t.Fatalf("key %+v was taken", k)
			}
			custodian = custodian || p.ID == keys[2].ID() && k.Role == envelope.RoleCustodian && k.Revoked == nil
		}
		if n == 0 && !custodian {
			t.Fatal("a first entry that does not name its signer was taken")
		}
	})
}
