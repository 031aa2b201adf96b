package prover

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

type frame struct {
	m    message
	body []byte
}

// script is a child that says what it was told, whatever it is asked.
func script(t testing.TB, frames ...frame) *Client {
	t.Helper()
	var out bytes.Buffer
	for _, f := range append([]frame{{m: message{Kind: kindHello, Protocol: protocolVersion}}}, frames...) {
		if err := writeFrame(&out, f.m, f.body); err != nil {
			t.Fatal(err)
		}
	}
	return stream(out.Bytes())
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

func stream(b []byte) *Client {
	return NewDialer(func() (*Conn, error) {
		return &Conn{In: discard{io.Discard}, Out: bytes.NewReader(b), Kill: func() {}, Wait: func() error { return nil }}, nil
	}, nil)
}

type noPoint struct{ t testing.TB }

func (p noPoint) ReadAt(disk, volume string, header bool, b []byte, off int64) (int, error) {
	if disk != "vda" || volume != "p1" || header || off < 0 || len(b) > maxRead {
		p.t.Errorf("read of %s/%s header %v at %d, %d bytes", disk, volume, header, off, len(b))
	}
	return len(b), nil
}

var ref = keymanager.Ref{ID: "s", Version: 1}

func ask() custody.Request {
	return custody.Request{
		Repository: strings.Repeat("1", 32), Machine: strings.Repeat("2", 32), Point: strings.Repeat("3", 32),
		Volumes: []custody.VolumeRequest{{
			Disk: "vda", Volume: diskcrypt.Volume{ID: "p1", Type: "luks2", HeaderDigest: "sha256:h", Range: disk.Range{Length: 1 << 20}},
			Candidates: []custody.CandidateRequest{{Secret: ref, Kind: diskcrypt.KindPassphrase}},
		}},
	}
}

func outcome(attempts ...custody.AttemptOutcome) frame {
	return frame{m: message{Kind: kindResult, Outcome: &custody.Outcome{Volumes: []custody.VolumeOutcome{{Attempts: attempts}}}}}
}

func TestHostileChild(t *testing.T) {
	read := func(r readRequest) frame { return frame{m: message{Kind: kindRead, Read: &r}} }
	opens := custody.AttemptOutcome{Secret: ref, Tried: custody.Opens, Protectors: []string{"slot-0"}}
	proof := frame{m: message{Kind: kindProof}, body: []byte("{}")}
	many := make([]frame, 300)
	for i := range many {
		many[i] = read(readRequest{Disk: "vda", Volume: "p1", Length: maxRead})
	}
	cases := []struct {
		name   string
		frames []frame
		err    error
	}{
		{"nothing more", nil, custody.ErrProverDied},
		{"refused", []frame{outcome(custody.AttemptOutcome{Secret: ref, Tried: custody.Refused})}, nil},
		{"opened with proof", []frame{proof, outcome(opens)}, nil},
		{"opened without proof", []frame{outcome(opens)}, custody.ErrProverProtocol},
		{"proof without opening", []frame{proof, outcome(custody.AttemptOutcome{Secret: ref, Tried: custody.Refused})}, custody.ErrProverProtocol},
		{"two proofs", []frame{proof, proof, outcome(opens)}, custody.ErrProverProtocol},
		{"proof of a volume not asked for", []frame{{m: message{Kind: kindProof, Index: 7}, body: []byte("{}")}}, custody.ErrProverProtocol},
		{"negative index", []frame{{m: message{Kind: kindProof, Index: -1}, body: []byte("{}")}}, custody.ErrProverProtocol},
		{"a secret not asked for", []frame{outcome(custody.AttemptOutcome{Secret: keymanager.Ref{ID: "x", Version: 1}, Tried: custody.Refused})}, custody.ErrProverProtocol},
		{"an inline secret not given", []frame{outcome(custody.AttemptOutcome{Inline: true, Tried: custody.Opens, Protectors: []string{"x"}})}, custody.ErrProverProtocol},
		{"many attempts", []frame{outcome(make([]custody.AttemptOutcome, 9)...)}, custody.ErrProverProtocol},
		{"no such outcome", []frame{outcome(custody.AttemptOutcome{Secret: ref, Tried: "maybe"})}, custody.ErrProverProtocol},
		{"opened by nothing", []frame{proof, outcome(custody.AttemptOutcome{Secret: ref, Tried: custody.Opens})}, custody.ErrProverProtocol},
		{"result without outcome", []frame{{m: message{Kind: kindResult}}}, custody.ErrProverProtocol},
		{"another number of volumes", []frame{{m: message{Kind: kindResult, Outcome: &custody.Outcome{}}}}, custody.ErrProverProtocol},
		{"package", []frame{{m: message{Kind: kindKeyPackage, KeyCover: &custody.KeyCover{}}, body: []byte("x")}}, custody.ErrProverProtocol},
		{"another disk", []frame{read(readRequest{Disk: "vdb", Volume: "p1", Length: 1})}, custody.ErrProverProtocol},
		{"a header there is not", []frame{read(readRequest{Disk: "vda", Volume: "p1", Header: true, Length: 1})}, custody.ErrProverProtocol},
		{"read of nothing", []frame{{m: message{Kind: kindRead}}}, custody.ErrProverProtocol},
		{"negative offset", []frame{read(readRequest{Disk: "vda", Volume: "p1", Offset: -1, Length: 1})}, custody.ErrProverProtocol},
		{"negative length", []frame{read(readRequest{Disk: "vda", Volume: "p1", Length: -1})}, custody.ErrProverProtocol},
		{"long read", []frame{read(readRequest{Disk: "vda", Volume: "p1", Length: maxRead + 1})}, custody.ErrProverProtocol},
		{"reads without end", many, custody.ErrProverProtocol},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out, err := script(t, c.frames...).Try(context.Background(), ask(), noPoint{t})
			if !errors.Is(err, c.err) {
				t.Errorf("got %v, want %v", err, c.err)
			}
			if err != nil && len(out.Volumes) > 0 {
				t.Error("an outcome beside the error")
			}
		})
	}
}

func TestHostileChildPackages(t *testing.T) {
	pkg := frame{m: message{Kind: kindKeyPackage, KeyCover: &custody.KeyCover{}}, body: []byte("x")}
	end := frame{m: message{Kind: kindResult}}
	r := custody.PackageRequest{Recipients: []string{"age1a"}}
	if _, err := script(t, pkg, pkg, end).Package(context.Background(), r, noPoint{t}); !errors.Is(err, custody.ErrProverProtocol) {
		t.Errorf("two packages for one kind of recipients: %v", err)
	}
	if out, err := script(t, pkg, end).Package(context.Background(), r, noPoint{t}); err != nil || len(out.Key) != 1 {
		t.Errorf("%+v %v", out, err)
	}
	e := frame{m: message{Kind: kindError, Code: codeManager, Error: "key manager \x1b[2J"}}
	if _, err := script(t, e).Package(context.Background(), r, noPoint{t}); !errors.Is(err, custody.ErrManager) || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
}

func TestHello(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"garbage":         []byte("hello world, this is not a frame"),
		"half a frame":    {0, 0, 0, 9, 0, 0, 0, 0, '{'},
		"announces 4 GiB": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	} {
		_, err := stream(b).Try(context.Background(), ask(), noPoint{t})
		if !errors.Is(err, custody.ErrProverDied) && !errors.Is(err, custody.ErrProverProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var out bytes.Buffer
	_ = writeFrame(&out, message{Kind: kindHello, Protocol: 2}, nil)
	if _, err := stream(out.Bytes()).Try(context.Background(), ask(), noPoint{t}); !errors.Is(err, custody.ErrProverProtocol) {
		t.Errorf("version 2: %v", err)
	}
}

// FuzzClient: a child that was taken over cannot make its parent panic, read
// elsewhere, or take a proof for a volume it was not asked about.
func FuzzClient(f *testing.F) {
	var out bytes.Buffer
	for _, fr := range []frame{
		{m: message{Kind: kindHello, Protocol: 1}},
		{m: message{Kind: kindRead, Read: &readRequest{Disk: "vda", Volume: "p1", Offset: 7, Length: 512}}},
		{m: message{Kind: kindProof}, body: []byte("{}")},
		outcome(custody.AttemptOutcome{Secret: ref, Tried: custody.Opens, Protectors: []string{"slot-0"}}),
	} {
		_ = writeFrame(&out, fr.m, fr.body)
	}
	f.Add(out.Bytes())
	f.Add(out.Bytes()[:40])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := stream(b).Try(context.Background(), ask(), noPoint{t})
		if err == nil && len(got.Volumes) != 1 {
			t.Error("an outcome of another number of volumes")
		}
		_, _ = stream(b).Package(context.Background(), custody.PackageRequest{Recipients: []string{"age1a"}}, noPoint{t})
	})
}

// FuzzServe: a parent that was taken over gets nothing but answers.
func FuzzServe(f *testing.F) {
	var in bytes.Buffer
	r := ask()
	_ = writeFrame(&in, message{Kind: kindTry, Try: &r}, []byte("inline"))
	_ = writeFrame(&in, message{Kind: kindBytes, End: true}, make([]byte, 512))
	_ = writeFrame(&in, message{Kind: kindPackage, Package: &custody.PackageRequest{Recipients: []string{"age1a"}}}, nil)
	f.Add(in.Bytes())
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 0, '{', '}'})
	key, err := envelope.GenerateSigningKey(envelope.RoleProver)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		deps := Deps{Formats: []diskcrypt.Format{reader{}}, Key: key, MACKey: envelope.NewSecret(make([]byte, 32))}
		_ = Serve(context.Background(), bytes.NewReader(b), io.Discard, deps)
	})
}

// reader is a format that reads a lot and recognises nothing.
type reader struct{}

func (reader) Name() string { return "reader" }
func (reader) Inspect(_ context.Context, p diskcrypt.Place) (*diskcrypt.Volume, error) {
	_, _ = p.Data.ReadAt(make([]byte, 3*maxRead/2), p.Size/2)
	return &diskcrypt.Volume{Type: "luks2", HeaderDigest: "sha256:h"}, nil
}

func (reader) Open(context.Context, diskcrypt.Place, diskcrypt.Kind, envelope.Secret, diskcrypt.Limits) (diskcrypt.Opened, error) {
	return nil, diskcrypt.ErrWrongSecret
}

func (reader) OpensAll(context.Context, diskcrypt.Place, diskcrypt.Kind, envelope.Secret, diskcrypt.Limits) ([]string, error) {
	return nil, diskcrypt.ErrWrongSecret
}

// What opened for one recovery point reads that recovery point and no other,
// and nothing once its request is over.
func TestAnchor(t *testing.T) {
	var a anchor
	if _, err := a.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("reads without a recovery point")
	}
	a.set(bytes.NewReader([]byte("abc")))
	b := make([]byte, 1)
	if _, err := a.ReadAt(b, 1); err != nil || b[0] != 'b' {
		t.Errorf("%q %v", b, err)
	}
	a.set(nil)
	if _, err := a.ReadAt(b, 1); err == nil {
		t.Error("reads after the request")
	}
}

type closing struct {
	diskcrypt.Opened
	closed *int
}

func (c closing) Close() error { *c.closed++; return nil }

func TestCacheForgets(t *testing.T) {
	closed := 0
	c := newCache([32]byte{}, 1<<40)
	for i := range maxCached + 3 {
		c.put(cacheKey{byte(i), byte(i >> 8)}, &entry{vol: closing{closed: &closed}})
	}
	if closed != 3 || len(c.entries) != maxCached {
		t.Errorf("%d closed, %d kept", closed, len(c.entries))
	}
	done := c.use()
	c.expire() // a request is running
	if len(c.entries) != maxCached {
		t.Error("closed under a request")
	}
	done()
	c.expire()
	if len(c.entries) != 0 || closed != maxCached+3 {
		t.Errorf("%d kept, %d closed", len(c.entries), closed)
	}
	a := attempt{header: &diskcrypt.Volume{Type: "luks2", HeaderDigest: "d"}, place: diskcrypt.Place{Size: 1}}
	k := c.key(a, diskcrypt.KindPassphrase, envelope.NewSecret([]byte("x")))
	a.place.Size = 2
	if c.key(a, diskcrypt.KindPassphrase, envelope.NewSecret([]byte("x"))) == k {
		t.Error("another size, the same key")
	}
}
