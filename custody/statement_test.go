package custody

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

const (
	repoID    = "11111111111111111111111111111111"
	machineID = "22222222222222222222222222222222"
	pointID   = "33333333333333333333333333333333"
	rootHex   = "44444444444444444444444444444444444444444444444444444444444444aa"
)

var day = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func key(tb testing.TB, role string) envelope.SigningKey {
	tb.Helper()
	k, err := envelope.GenerateSigningKey(role)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func trust(keys ...envelope.SigningKey) TrustKeys {
	var t TrustKeys
	for _, k := range keys {
		t = append(t, k.Public())
	}
	return t
}

// revoking is a Trust with one revoked key.
type revoking struct {
	TrustKeys
	id envelope.KeyID
}

func (r revoking) Key(id envelope.KeyID) (envelope.PublicKey, *time.Time, bool) {
	k, _, ok := r.TrustKeys.Key(id)
	if id == r.id {
		at := day.Add(time.Hour) // after the statement: it does not count all the same
		return k, &at, ok
	}
	return k, nil, ok
}

func goodProof() Proof {
	return Proof{
		Format: 1, Repository: repoID, Machine: machineID, Point: pointID,
		Disk: "vda", ContentRoot: rootHex, Volume: "p2", Type: "luks2", UUID: "u", Epoch: "v1:e", HeaderDigest: "sha256:h",
		Secret: keymanager.Ref{ID: "s", Version: 2}, Kind: diskcrypt.KindPassphrase,
		Protectors: []ProofProtector{{ID: "slot-0", Fingerprint: "v1:f"}},
		KeyCheck:   "luks2-digest-0", Class: "ext4", VKProof: make([]byte, 32), Time: day, Software: "lockstep test",
	}
}

func goodPoint() ExpectedPoint {
	return ExpectedPoint{
		Repository: repoID, Machine: machineID, Point: pointID,
		Disks: []ExpectedDisk{{
			ID: "vda", ContentRoot: rootHex,
			Volumes: []diskcrypt.Volume{{ID: "p2", Type: "luks2", HeaderDigest: "sha256:h"}},
		}},
	}
}

func TestVerifyProof(t *testing.T) {
	prover, writer := key(t, envelope.RoleProver), key(t, envelope.RoleWriter)
	good, err := SignProof(goodProof(), prover)
	if err != nil {
		t.Fatal(err)
	}
	got, signer, err := VerifyProof(good, trust(prover), goodPoint())
	if err != nil || signer != prover.ID() || got.Secret.Version != 2 || got.Class != "ext4" {
		t.Fatalf("good proof: %+v %v %v", got, signer, err)
	}

	expect := func(edit func(*ExpectedPoint)) ExpectedPoint {
		p := goodPoint()
		edit(&p)
		return p
	}
	cases := []struct {
		name  string
		trust Trust
		want  ExpectedPoint
		err   error
	}{
		{"another recovery point", trust(prover), expect(func(p *ExpectedPoint) { p.Point = machineID }), ErrMismatch},
		{"another machine", trust(prover), expect(func(p *ExpectedPoint) { p.Machine = pointID }), ErrMismatch},
		{"another repository", trust(prover), expect(func(p *ExpectedPoint) { p.Repository = pointID }), ErrMismatch},
		{"another content root", trust(prover), expect(func(p *ExpectedPoint) { p.Disks[0].ContentRoot = "00" }), ErrMismatch},
		{"another disk", trust(prover), expect(func(p *ExpectedPoint) { p.Disks[0].ID = "vdb" }), ErrMismatch},
		{"another volume", trust(prover), expect(func(p *ExpectedPoint) { p.Disks[0].Volumes[0].ID = "p3" }), ErrMismatch},
		{"another header", trust(prover), expect(func(p *ExpectedPoint) { p.Disks[0].Volumes[0].HeaderDigest = "sha256:x" }), ErrMismatch},
		{"another key", trust(key(t, envelope.RoleProver)), goodPoint(), envelope.ErrSignature},
		{"no key", TrustKeys(nil), goodPoint(), envelope.ErrSignature},
		{"a revoked key", revoking{trust(prover), prover.ID()}, goodPoint(), ErrRevoked},
		{"another key revoked", revoking{trust(prover, writer), writer.ID()}, goodPoint(), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := VerifyProof(good, c.trust, c.want); !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
		})
	}
}

// raw signs whatever a payload says.
func raw(t *testing.T, payloadType string, key envelope.SigningKey, statement any, edit func(map[string]any)) []byte {
	t.Helper()
	b, err := json.Marshal(statement)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	out, err := envelope.Sign(payloadType, b, key)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProofPayloads(t *testing.T) {
	prover := key(t, envelope.RoleProver)
	cases := []struct {
		name string
		edit func(map[string]any)
		err  error
	}{
		{"unknown member", func(m map[string]any) { m["later"] = 1 }, nil},
		{"future format", func(m map[string]any) { m["format"] = 2; m["protectors"] = "other" }, ErrFormat},
		{"no format", func(m map[string]any) { delete(m, "format") }, ErrFormat},
		{"label in class", func(m map[string]any) { m["class"] = "ext4 label=Payroll" }, ErrStatement},
		{"control character", func(m map[string]any) { m["uuid"] = "\x1b[2J" }, ErrStatement},
		{"long text", func(m map[string]any) { m["software"] = strings.Repeat("x", 2000) }, ErrStatement},
		{"no protector", func(m map[string]any) { m["protectors"] = []any{} }, ErrStatement},
		{"no version", func(m map[string]any) { m["secret"] = map[string]any{"id": "s"} }, ErrStatement},
		{"no key check", func(m map[string]any) { m["key_check"] = "" }, ErrStatement},
		{"short vkproof", func(m map[string]any) { m["vkproof"] = "AAAA" }, ErrStatement},
		{"no time", func(m map[string]any) { delete(m, "time") }, ErrStatement},
		{"id", func(m map[string]any) { m["point"] = "../../x" }, ErrStatement},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := raw(t, ProofType, prover, goodProof(), c.edit)
			if _, _, err := VerifyProof(r, trust(prover), goodPoint()); !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
		})
	}
}

func TestRolesAndTypesAreApart(t *testing.T) {
	prover, writer, custodian := key(t, envelope.RoleProver), key(t, envelope.RoleWriter), key(t, envelope.RoleCustodian)
	all := trust(prover, writer, custodian)
	if _, err := SignProof(goodProof(), writer); err == nil {
		t.Error("a writer's key signs a proof")
	}
	forged := raw(t, ProofType, writer, goodProof(), func(map[string]any) {})
	if _, _, err := VerifyProof(forged, all, goodPoint()); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("proof signed by a writer: %v", err)
	}
	other := raw(t, DeclarationType, prover, goodProof(), func(map[string]any) {})
	if _, _, err := VerifyProof(other, all, goodPoint()); !errors.Is(err, envelope.ErrPayloadType) {
		t.Errorf("proof of another type: %v", err)
	}
	d := Declaration{Repository: repoID, Machine: machineID, Disk: "vda", Volume: "p2", NotNeeded: true, Reason: "swap", Time: day}
	if _, err := SignDeclaration(d, prover); err == nil {
		t.Error("a prover's key signs a declaration")
	}
	signed, err := SignDeclaration(d, custodian)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := VerifyDeclaration(signed, all, repoID, machineID); err != nil || got.Reason != "swap" {
		t.Errorf("declaration: %+v %v", got, err)
	}
	if _, err := VerifyDeclaration(signed, all, repoID, pointID); !errors.Is(err, ErrMismatch) {
		t.Errorf("declaration for another machine: %v", err)
	}
	if _, err := VerifyDeclaration(signed, revoking{all, custodian.ID()}, repoID, machineID); !errors.Is(err, ErrRevoked) {
		t.Errorf("declaration of a revoked key: %v", err)
	}
	d.Reason = " "
	if _, err := SignDeclaration(d, custodian); !errors.Is(err, ErrStatement) {
		t.Errorf("declaration without reason: %v", err)
	}
}

func TestDeclarationsInForce(t *testing.T) {
	d := func(volume string, at int, needed bool) Declaration {
		return Declaration{Disk: "vda", Volume: volume, NotNeeded: !needed, Reason: fmt.Sprint(at), Time: day.Add(time.Duration(at) * time.Second)}
	}
	all := []Declaration{d("p1", 5, true), d("p1", 1, false), d("p2", 2, true), d("p2", 3, false), d("p3", 1, false)}
	got := InForce(all)
	if len(got) != 2 || got[VolumeKey{"vda", "p2"}].Reason != "3" || got[VolumeKey{"vda", "p3"}].Reason != "1" {
		t.Errorf("in force: %v", got)
	}
	// A clock that went back does not make a withdrawal without effect.
	if at := NextTime(all, VolumeKey{"vda", "p2"}, day); !at.After(day.Add(3 * time.Second)) {
		t.Errorf("next time %v", at)
	}
	if at := NextTime(all, VolumeKey{"vda", "p9"}, day); !at.Equal(day) {
		t.Errorf("next time %v", at)
	}
}

func goodCover(recipients ...string) KeyCover {
	return KeyCover{
		Repository: repoID, Machine: machineID, Point: pointID, Disks: map[string]string{"vda": rootHex},
		Secrets: []PackageSecret{
			{Disk: "vda", Volume: "p2", Kind: diskcrypt.KindPassphrase, Secret: keymanager.Ref{ID: "s", Version: 1}},
			{Disk: "vda", Volume: "p3", Kind: diskcrypt.KindKeyFile, Secret: keymanager.Ref{ID: "k", Version: 1}},
		},
		Headers:    []PackageHeader{{Disk: "vda", Volume: "p2", Type: "luks2", HeaderDigest: "sha256:h"}},
		Recipients: recipients, Time: day, Software: "test",
	}
}

func TestKeyPackage(t *testing.T) {
	prover := key(t, envelope.RoleProver)
	id1, to1, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	id2, to2, _ := envelope.GenerateIdentity()
	stranger, _, _ := envelope.GenerateIdentity()
	secrets := []envelope.Secret{envelope.NewSecret([]byte("correct horse")), envelope.NewSecret([]byte{0, '"', '\n', 0xff})}
	signed, err := SealKeyPackage(goodCover(to1, to2), secrets, prover)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(signed, []byte("correct horse")) || bytes.Contains(signed, []byte("Y29ycmVjdCBob3JzZQ")) {
		t.Fatal("the secret is in the package in clear")
	}
	for _, id := range []envelope.Secret{id1, id2} {
		p, err := OpenKeyPackage(signed, id, trust(prover))
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Bytes) != 2 || !p.Bytes[0].Equal(secrets[0]) || !p.Bytes[1].Equal(secrets[1]) || p.Cover.Secrets[1].Secret.ID != "k" {
			t.Errorf("opened: %+v", p.Cover)
		}
		p.Wipe()
		if !bytes.Equal(p.Bytes[0].Expose(), make([]byte, 13)) {
			t.Error("not wiped")
		}
	}
	if _, err := OpenKeyPackage(signed, stranger, trust(prover)); !errors.Is(err, envelope.ErrNoIdentity) {
		t.Errorf("stranger: %v", err)
	}
	if p, err := OpenKeyPackage(signed, id1, trust(key(t, envelope.RoleProver))); !errors.Is(err, envelope.ErrSignature) || p != nil {
		t.Errorf("another prover: %v", err)
	}
	p, err := OpenKeyPackage(signed, id1, revoking{trust(prover), prover.ID()})
	if !errors.Is(err, ErrRevoked) || p == nil || !p.Bytes[0].Equal(secrets[0]) {
		t.Errorf("revoked prover: %v %v", p, err)
	}
	if c, err := ReadKeyCover(signed, trust(prover)); err != nil || len(c.Recipients) != 2 {
		t.Errorf("cover: %+v %v", c, err)
	}
}

// A package whose cover promises other secrets than are sealed is refused:
// somebody who can sign but not seal anew cannot swap covers.
func TestKeyPackageCoverIsBound(t *testing.T) {
	prover := key(t, envelope.RoleProver)
	id, to, _ := envelope.GenerateIdentity()
	secrets := []envelope.Secret{envelope.NewSecret([]byte("a")), envelope.NewSecret([]byte("b"))}
	signed, err := SealKeyPackage(goodCover(to), secrets, prover)
	if err != nil {
		t.Fatal(err)
	}
	payload, _, err := envelope.Verify(signed, KeyPackageType, envelope.KeySet(trust(prover)))
	if err != nil {
		t.Fatal(err)
	}
	swapped := bytes.Replace(payload, []byte(`"volume":"p2"`), []byte(`"volume":"p9"`), 1)
	forged, err := envelope.Sign(KeyPackageType, swapped, prover)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKeyPackage(forged, id, trust(prover)); !errors.Is(err, ErrMismatch) {
		t.Errorf("swapped cover: %v", err)
	}
	cover, _, _ := bytes.Cut(payload, []byte("\n"))
	for _, inner := range []string{
		`{"cover":` + string(cover) + `,"bytes":["YQ=="]}`,
		`{"cover":` + string(cover) + `,"bytes":["YQ==","Yg==","Yw=="]}`,
		`{"cover":` + string(cover) + `,"bytes":["YQ==","Y!=="]}`,
		`{"cover":` + string(cover) + `,"bytes":["YQ==","Yg=="]} `,
		`{"cover":` + string(cover) + `,"bytes":["YQ==" "Yg=="]}`,
		`{}`, ``,
	} {
		if _, err := parseInner([]byte(inner), cover, 2); !errors.Is(err, ErrMismatch) {
			t.Errorf("%q: %v", inner[max(0, len(inner)-30):], err)
		}
	}
}

func TestHeaderPackage(t *testing.T) {
	prover := key(t, envelope.RoleProver)
	id, to, _ := envelope.GenerateIdentity()
	header := bytes.Repeat([]byte("LUKS\n"), 20)
	c := HeaderCover{
		Repository: repoID, Machine: machineID, HeaderDigest: "sha256:h", Type: "luks2", Size: 1 << 20,
		Ranges: []disk.Range{{Offset: 0, Length: 60}, {Offset: 4096, Length: 40}}, Recipients: []string{to}, Time: day, Software: "test",
	}
	signed, err := SealHeaderPackage(c, header, prover)
	if err != nil {
		t.Fatal(err)
	}
	p, err := OpenHeaderPackage(signed, id, trust(prover))
	if err != nil || !bytes.Equal(p.Bytes, header) || p.Cover.HeaderDigest != "sha256:h" {
		t.Fatalf("%v %v", p, err)
	}
	bad := []struct {
		name string
		edit func(*HeaderCover)
		err  error
	}{
		{"overlap", func(c *HeaderCover) { c.Ranges[1].Offset = 59 }, ErrStatement},
		{"outside", func(c *HeaderCover) { c.Ranges[1].Offset = 1<<20 - 39 }, ErrStatement},
		{"overflow", func(c *HeaderCover) { c.Ranges[1].Offset = 1<<63 - 1 }, ErrStatement},
		{"negative", func(c *HeaderCover) { c.Ranges[1].Length = -1 }, ErrStatement},
		{"other sum", func(c *HeaderCover) { c.Ranges[1].Length = 41 }, ErrStatement},
		{"large", func(c *HeaderCover) { c.Size, c.Ranges[1].Length = 1<<40, MaxHeader }, ErrTooLarge},
		{"nobody", func(c *HeaderCover) { c.Recipients = nil }, ErrStatement},
	}
	for _, b := range bad {
		t.Run(b.name, func(t *testing.T) {
			c := c
			c.Ranges = append([]disk.Range(nil), c.Ranges...)
			b.edit(&c)
			if _, err := SealHeaderPackage(c, header, prover); !errors.Is(err, b.err) {
				t.Errorf("got %v, want %v", err, b.err)
			}
		})
	}
}

func TestRecipientGroups(t *testing.T) {
	got := RecipientGroups([]string{"age1b", "age1pq1x", "age1a", "age1b"})
	if fmt.Sprint(got) != "[[age1a age1b] [age1pq1x]]" {
		t.Error(got)
	}
	if RecipientGroups(nil) != nil {
		t.Error("groups of nobody")
	}
}

// FuzzStatements: whoever holds a signing key still cannot make readers panic
// or accept texts that the format excludes.
func FuzzStatements(f *testing.F) {
	prover, custodian := key(f, envelope.RoleProver), key(f, envelope.RoleCustodian)
	id, to, _ := envelope.GenerateIdentity()
	p, _ := json.Marshal(goodProof())
	f.Add(p)
	c, _ := json.Marshal(goodCover(to))
	f.Add(append(c, "\nage-encryption.org/v1\n"...))
	f.Add([]byte(`{"format":1,"size":9,"ranges":[{"offset":9223372036854775807,"length":9}],"recipients":["age1"]}` + "\nx"))
	f.Add([]byte(`{"format":1,"reason":"x","time":"2026-01-02T03:04:05Z"}`))
	m, _ := json.Marshal(goodMark())
	f.Add(m)
	d, _ := json.Marshal(goodDrill())
	f.Add(d)
	po, _ := json.Marshal(goodPolicy())
	f.Add(po)
	f.Fuzz(func(t *testing.T, payload []byte) {
		for _, typ := range []string{ProofType, KeyPackageType, HeaderPackageType, DeclarationType, MarkType, DrillType, PolicyType} {
			k := prover
			if typ == DeclarationType || typ == MarkType || typ == DrillType || typ == PolicyType {
				k = custodian
			}
			signed, err := envelope.Sign(typ, payload, k)
			if err != nil {
				return
			}
			tr := trust(prover, custodian)
			if p, _, err := VerifyProof(signed, tr, goodPoint()); err == nil && p.Check() != nil {
				t.Error("accepted what Check refuses")
			}
			_, _ = VerifyDeclaration(signed, tr, repoID, machineID)
			if m, err := VerifyMark(signed, tr, repoID, machineID); err == nil && m.Check() != nil {
				t.Error("accepted what Check refuses")
			}
			if d, err := VerifyDrill(signed, tr, drillPoint()); err == nil && d.Check() != nil {
				t.Error("accepted what Check refuses")
			}
			if p, err := VerifyPolicyOf(signed, tr, map[string]bool{repoID: true}, machineID); err == nil && p.Check() != nil {
				t.Error("accepted what Check refuses")
			}
			_, _ = OpenKeyPackage(signed, id, tr)
			_, _ = OpenHeaderPackage(signed, id, tr)
		}
	})
}

func FuzzParseInner(f *testing.F) {
	f.Add([]byte(`{"cover":{},"bytes":["YQ=="]}`), 1)
	f.Fuzz(func(t *testing.T, inner []byte, n int) {
		got, err := parseInner(inner, []byte("{}"), n&7)
		if err == nil && len(got) != n&7 {
			t.Errorf("%d secrets, want %d", len(got), n&7)
		}
	})
}
