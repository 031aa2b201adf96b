package trust

import (
	"errors"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// side is one repository's trust log and the keys behind it.
type side struct {
	st                        *memstore.Store
	id                        string
	log                       Log
	writer, prover, custodian envelope.SigningKey
}

func newSide(t *testing.T, id string) *side {
	t.Helper()
	s := &side{st: memstore.New(), id: id}
	for role, k := range map[string]*envelope.SigningKey{
		envelope.RoleWriter: &s.writer, envelope.RoleProver: &s.prover, envelope.RoleCustodian: &s.custodian,
	} {
		var err error
		if *k, err = envelope.GenerateSigningKey(role); err != nil {
			t.Fatal(err)
		}
	}
	first, err := First(id, Digest(nil), s.writer.Public(), s.prover.Public(), s.custodian, time.Unix(1000, 0))
	if err != nil {
		t.Fatal(err)
	}
	if err := twin.Put(t.Context(), s.st, format.TrustKey(0), first); err != nil {
		t.Fatal(err)
	}
	s.log = s.read(t)
	return s
}

func (s *side) read(t *testing.T) Log {
	t.Helper()
	second, err := twin.Look(t.Context(), s.st)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Read(t.Context(), s.st, second, s.id, Digest(nil), "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestAdopt(t *testing.T) {
	now := time.Unix(5000, 0)
	src, dst := newSide(t, "11111111111111111111111111111111"), newSide(t, "22222222222222222222222222222222")
	if _, _, err := dst.log.Adopt(t.Context(), dst.st, dst.id, src.custodian, src.log, nil, now); !errors.Is(err, damage.ErrUntrusted) {
		t.Fatalf("a custodian of elsewhere changed the log: %v", err)
	}
	adopt := func(custodians ...envelope.KeyID) bool {
		t.Helper()
		after, changed, err := dst.log.Adopt(t.Context(), dst.st, dst.id, dst.custodian, src.log, custodians, now)
		if err != nil {
			t.Fatal(err)
		}
		dst.log = after
		if again := dst.read(t); again.last != after.last || again.n != after.n {
			t.Fatal("what is stored is not what is said")
		}
		return changed
	}
	if !adopt() || adopt() {
		t.Fatal("keys are adopted once")
	}
	for _, k := range []envelope.SigningKey{src.writer, src.prover} {
		got, revoked, ok := dst.log.Key(k.ID())
		if !ok || revoked != nil || got.Role != k.Public().Role {
			t.Fatalf("key %s: %v, revoked %v, role %s", k.ID(), ok, revoked, got.Role)
		}
	}
	if _, _, ok := dst.log.Key(src.custodian.ID()); ok {
		t.Fatal("a custodian that was not named can change the log now")
	}

	// A revocation comes along, and never goes back to a later date.
	early, late := time.Unix(2000, 0).UTC(), time.Unix(3000, 0).UTC()
	var err error
	if src.log, err = src.log.Append(t.Context(), src.st, src.id, src.custodian, nil, map[envelope.KeyID]time.Time{src.writer.ID(): late, src.prover.ID(): early}, now); err != nil {
		t.Fatal(err)
	}
	if dst.log, err = dst.log.Append(t.Context(), dst.st, dst.id, dst.custodian, nil, map[envelope.KeyID]time.Time{src.writer.ID(): early}, now); err != nil {
		t.Fatal(err)
	}
	if got := dst.log.Missing(src.log); len(got) != 2 { // the prover's revocation, the custodian
		t.Fatalf("missing: %v", got)
	}
	if !adopt() || adopt() {
		t.Fatal("revocations are adopted once")
	}
	for _, k := range []envelope.SigningKey{src.writer, src.prover} {
		if _, revoked, _ := dst.log.Key(k.ID()); revoked == nil || !revoked.Equal(early) {
			t.Fatalf("key %s is revoked %v, not %v", k.ID(), revoked, early)
		}
	}

	if !adopt(src.custodian.ID()) {
		t.Fatal("the custodian that was named is not adopted")
	}
	if k, _, ok := dst.log.Key(src.custodian.ID()); !ok || k.Role != envelope.RoleCustodian {
		t.Fatal("the custodian that was named does not count")
	}
}

func TestAdoptRefusesItsOwnRevocation(t *testing.T) {
	dst := newSide(t, "22222222222222222222222222222222")
	src := newSide(t, "11111111111111111111111111111111")
	at := time.Unix(2000, 0)
	var err error
	if src.log, err = src.log.Append(t.Context(), src.st, src.id, src.custodian, []envelope.PublicKey{dst.custodian.Public()}, map[envelope.KeyID]time.Time{}, at); err != nil {
		t.Fatal(err)
	}
	if src.log, err = src.log.Append(t.Context(), src.st, src.id, src.custodian, nil, map[envelope.KeyID]time.Time{dst.custodian.ID(): at}, at); err != nil {
		t.Fatal(err)
	}
	if _, _, err := dst.log.Adopt(t.Context(), dst.st, dst.id, dst.custodian, src.log, nil, at); !errors.Is(err, damage.ErrUntrusted) {
		t.Fatalf("a custodian published its own revocation: %v", err)
	}
}
