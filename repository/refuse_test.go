package repository_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/verify"
)

// everyReader does all that readers do and returns every error met.
func (s *sample) everyReader(st store.Store) error {
	r, err := s.openReader(st)
	if err != nil {
		return err
	}
	defer r.Close()
	ctx := ctxBackground
	_, err = r.Machines(ctx)
	errs := []error{err}
	_, err = r.Holders(ctx)
	errs = append(errs, err)
	points, err := r.Points(ctx, s.machine.ID)
	errs = append(errs, err)
	for _, pid := range []string{repository.MachineSidecars, s.points[0].ID, s.points[1].ID, s.points[2].ID} {
		_, err = r.Sidecars(ctx, s.machine.ID, pid)
		errs = append(errs, err)
	}
	for _, p := range points {
		m, err := r.Manifest(ctx, p)
		errs = append(errs, err)
		if err != nil {
			continue
		}
		for _, d := range m.Disks {
			_, err := scanDisk(r, m, d)
			errs = append(errs, err)
			for _, h := range d.Headers {
				errs = append(errs, r.CheckHeader(ctx, s.machine.ID, h.ID))
			}
		}
	}
	return errors.Join(errs...)
}

func castagnoli(p []byte) uint32 { return crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)) }

// TestLaterVersionsAreRefused gives one object of each kind a later version, or
// a flag that is not known, with checksums that are right: every reader must
// say ErrFormat, and never take it for damage to write over.
func TestLaterVersionsAreRefused(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	seen := map[string]bool{}
	for _, key := range allKeys(t, s.mem, "") {
		kind := kindOf(key)
		if seen[kind] || strings.HasPrefix(kind, "copies/") {
			continue
		}
		if kind == "points" && strings.HasSuffix(key, s.gone.ID) {
			continue
		}
		seen[kind] = true
		changes := map[string]func(p []byte){
			"frame version": func(p []byte) { p[3] = '2' },
			"frame flag": func(p []byte) {
				p[6] |= 4
				binary.LittleEndian.PutUint32(p[len(p)-4:], castagnoli(p[:len(p)-4]))
			},
		}
		switch kind {
		case "seg":
			header := func(at int, b byte) func(p []byte) {
				return func(p []byte) {
					p[at] = b
					binary.LittleEndian.PutUint32(p[4092:], castagnoli(p[:4092]))
				}
			}
			changes = map[string]func(p []byte){"segment version": header(8, 2), "segment flag": header(10, 5)}
		case "map":
			header := func(at int, b byte) func(p []byte) {
				return func(p []byte) {
					p[at] = b
					binary.LittleEndian.PutUint32(p[60:], castagnoli(p[:60]))
				}
			}
			changes = map[string]func(p []byte){"map version": header(8, 3), "map flag": header(10, 2)}
		}
		for what, change := range changes {
			t.Run(kind+"/"+what, func(t *testing.T) {
				mem := s.mem.Clone()
				for _, at := range []string{key, "copies/" + key} {
					_ = mem.Corrupt(at, func(p []byte) []byte { change(p); return p })
				}
				err := s.everyReader(mem)
				want := repository.ErrFormat
				if kind == "points" {
					want = repository.ErrDamaged // the log names its digest: it is not the one that was committed
				}
				if !errors.Is(err, want) {
					t.Fatalf("readers say %v", err)
				}
				if kind == "log" {
					f := *s.fixture
					f.st = mem
					if _, _, err := backupDisks(f.open(t), s.machine.ID, nil); !errors.Is(err, repository.ErrFormat) {
						t.Fatalf("a writer says %v", err)
					}
				}
			})
		}
	}
	if len(seen) < 11 {
		t.Errorf("only %v were there", seen)
	}
}

func TestConfigurationIsRefused(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	var cfg map[string]any
	newLens(t, s.mem, s.identity, s.machine.ID).unframe(t, s.mem, "config", 1, nil, &cfg)
	for _, c := range []struct {
		field string
		value any
		want  error
		names string
	}{
		{"format", 2, repository.ErrFormat, "version 2"},
		{"format", 0, repository.ErrFormat, "version 0"},
		{"must", []string{"compression"}, repository.ErrFormat, `"compression"`},
		{"sealing", "rot13", repository.ErrFormat, `"rot13"`},
		{"id", "x", repository.ErrDamaged, "config"},
		// Known to this program, but not what the custodian signed.
		{"sealing", "none", repository.ErrUntrusted, "belong"},
		{"may", []string{"colour"}, repository.ErrUntrusted, "belong"},
	} {
		t.Run(fmt.Sprint(c.field, c.value), func(t *testing.T) {
			changed := map[string]any{}
			for k, v := range cfg {
				changed[k] = v
			}
			changed[c.field] = c.value
			body, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			frame, err := envelope.SealFrame(1, nil, nil, body)
			if err != nil {
				t.Fatal(err)
			}
			mem := s.mem.Clone()
			replace(t, mem, "config", frame)
			replace(t, mem, "copies/config", frame)
			if _, err := s.openReader(mem); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.names) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

func TestTrustIsRefused(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	open := func(o repository.OpenOptions) error {
		o.Unlock.Identities = s.identity
		_, err := repository.Open(t.Context(), s.mem, o)
		return err
	}
	if err := open(repository.OpenOptions{TrustRoot: "sha256:" + strings.Repeat("0", 64)}); !errors.Is(err, repository.ErrUntrusted) {
		t.Errorf("another pin gives %v", err)
	}
	stranger, err := envelope.GenerateSigningKey("writer")
	if err != nil {
		t.Fatal(err)
	}
	if err := open(repository.OpenOptions{Writer: &stranger}); !errors.Is(err, repository.ErrUntrusted) {
		t.Errorf("a writer nobody named gives %v", err)
	}
	for _, wrong := range []envelope.SigningKey{s.writer, stranger} {
		if err := s.repo.PublishKeys(t.Context(), wrong, []envelope.PublicKey{stranger.Public()}, nil); !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("keys published by a %s: %v", wrong.ID(), err)
		}
	}
	// A trust log of somebody else's, whole and rightly signed: the pin refuses
	// it, and without a pin the configuration that it names does.
	other := newSample(t, repository.SealingAESGCM)
	mem := s.mem.Clone()
	for _, key := range []string{"trust/0000000000000000", "copies/trust/0000000000000000"} {
		replace(t, mem, key, get(t, other.mem, key))
	}
	for _, pin := range []string{s.trust, ""} {
		_, err := repository.Open(t.Context(), mem, repository.OpenOptions{Unlock: repository.Unlocker{Identities: s.identity}, TrustRoot: pin})
		if !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("another repository's trust log, pin %q: %v", pin, err)
		}
	}
	// An entry signed by a key that the log does not hold as a custodian's.
	var first struct {
		Repository string
		Keys       json.RawMessage
	}
	raw := get(t, s.mem, "trust/0000000000000000")
	signed, err := envelope.OpenFrame(raw, 3, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := envelope.ParseDSSE(signed)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(d.Payload, &first); err != nil {
		t.Fatal(err)
	}
	for _, signer := range []envelope.SigningKey{s.writer, other.custodian} {
		body, err := json.Marshal(map[string]any{"n": 1, "repository": first.Repository, "previous": sha256Of(raw), "keys": first.Keys})
		if err != nil {
			t.Fatal(err)
		}
		forged, err := envelope.Sign("application/vnd.lockstep.trust+json", body, signer)
		if err != nil {
			t.Fatal(err)
		}
		frame, err := envelope.SealFrame(3, nil, nil, forged)
		if err != nil {
			t.Fatal(err)
		}
		mem := s.mem.Clone()
		put(t, mem, "trust/0000000000000001", frame)
		if _, err := s.openReader(mem); !errors.Is(err, repository.ErrUntrusted) {
			t.Errorf("a trust entry signed by %s: %v", signer.ID(), err)
		}
	}
}

type entry struct {
	Machine  string    `json:"machine"`
	N        int64     `json:"n"`
	Kind     string    `json:"kind"`
	Point    string    `json:"point,omitempty"`
	Manifest string    `json:"manifest,omitempty"`
	Parent   string    `json:"parent,omitempty"`
	Previous string    `json:"previous,omitempty"`
	Time     time.Time `json:"time"`
	Reason   string    `json:"reason,omitempty"`
}

func logKey(mid string, n int) string { return fmt.Sprintf("log/%s/%016x", mid, n) }

// TestLogTampered forges, repeats and moves entries of a machine's log with
// every key but a writer's.
func TestLogTampered(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	l := newLens(t, s.mem, s.identity, s.machine.ID)
	mid := s.machine.ID
	n := len(allKeys(t, s.mem, "log/"))
	stranger, err := envelope.GenerateSigningKey("writer")
	if err != nil {
		t.Fatal(err)
	}
	last := sha256Of(get(t, s.mem, logKey(mid, n-1)))
	good := entry{Machine: mid, N: int64(n), Kind: "delete", Point: s.points[0].ID, Previous: last, Time: time.Now()}
	reseal := func(from, to int) []byte {
		signed, err := envelope.OpenFrame(get(t, s.mem, logKey(mid, from)), 6, l.key("metadata"), []byte(logKey(mid, from)))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := envelope.SealFrame(6, l.key("metadata"), []byte(logKey(mid, to)), signed)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	with := func(change func(*entry)) entry {
		e := good
		change(&e)
		return e
	}
	for _, c := range []struct {
		name   string
		objs   map[int][]byte
		points int
		want   error
	}{
		{"as it should be", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", good, s.writer)}, 2, nil},
		{"signed by a stranger", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", good, stranger)}, 3, repository.ErrUntrusted},
		{"signed by the custodian", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", good, s.custodian)}, 3, repository.ErrUntrusted},
		{"of another payload type", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "manifest", good, s.writer)}, 3, repository.ErrUntrusted},
		{"of another machine", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", with(func(e *entry) { e.Machine = mid0 }), s.writer)}, 3, repository.ErrDamaged},
		{"of another number", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", with(func(e *entry) { e.N++ }), s.writer)}, 3, repository.ErrDamaged},
		{"on another entry before it", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", with(func(e *entry) { e.Previous = sha256Of(nil) }), s.writer)}, 3, repository.ErrUntrusted},
		{"of an unknown kind", map[int][]byte{n: l.forge(t, logKey(mid, n), 6, "log", with(func(e *entry) { e.Kind = "merge" }), s.writer)}, 3, repository.ErrFormat},
		{"not sealed", map[int][]byte{n: unsealed(t, 6, get(t, s.mem, logKey(mid, n-1)))}, 3, repository.ErrDamaged},
		{"repeated", map[int][]byte{n: get(t, s.mem, logKey(mid, n-1))}, 3, repository.ErrDamaged},
		{"repeated and sealed for its place", map[int][]byte{n: reseal(n-1, n)}, 3, repository.ErrDamaged},
		{"two exchanged", map[int][]byte{2: get(t, s.mem, logKey(mid, 3)), 3: get(t, s.mem, logKey(mid, 2))}, 1, repository.ErrDamaged},
		{"two exchanged and sealed for their places", map[int][]byte{2: reseal(3, 2), 3: reseal(2, 3)}, 1, repository.ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			mem := s.mem.Clone()
			for at, raw := range c.objs {
				if at < n {
					replace(t, mem, logKey(mid, at), raw)
				} else {
					put(t, mem, logKey(mid, at), raw)
				}
			}
			r, err := s.openReader(mem)
			if err != nil {
				t.Fatal(err)
			}
			points, err := r.Points(t.Context(), mid)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("it says %v, want %v", err, c.want)
			}
			if len(points) != c.points {
				t.Errorf("%d points are listed, want %d", len(points), c.points)
			}
			res, err := verify.Run(t.Context(), verify.Request{Repository: r})
			if err != nil || (len(res.Damage) > 0) != (c.want != nil) {
				t.Errorf("verify says %v, %v", res.Damage, err)
			}
		})
	}
}

func unsealed(tb testing.TB, kind uint16, body []byte) []byte {
	tb.Helper()
	raw, err := envelope.SealFrame(kind, nil, nil, body)
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

// TestManifestTampered commits, rightly, manifests that a writer never signed.
func TestManifestTampered(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	l := newLens(t, s.mem, s.identity, s.machine.ID)
	mid := s.machine.ID
	n := len(allKeys(t, s.mem, "log/"))
	const pid = "11112222333344445555666677778888"
	key := "points/" + mid + "/" + pid
	var good map[string]any
	l.payload(t, s.mem, "points/"+mid+"/"+s.points[0].ID, 5, &good)
	stranger, err := envelope.GenerateSigningKey("writer")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change map[string]any
		signer envelope.SigningKey
		want   error
	}{
		{"as it should be", nil, s.writer, nil},
		{"signed by a stranger", nil, stranger, repository.ErrUntrusted},
		{"signed by the custodian", nil, s.custodian, repository.ErrUntrusted},
		{"of a later version", map[string]any{"format": 2}, s.writer, repository.ErrFormat},
		{"of another point", map[string]any{"point": s.points[0].ID}, s.writer, repository.ErrDamaged},
		{"of another machine", map[string]any{"machine": mid0}, s.writer, repository.ErrDamaged},
		{"of another repository", map[string]any{"repository": mid0}, s.writer, repository.ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := map[string]any{}
			for k, v := range good {
				body[k] = v
			}
			body["point"] = pid
			for k, v := range c.change {
				body[k] = v
			}
			mem := s.mem.Clone()
			raw := l.forge(t, key, 5, "manifest", body, c.signer)
			put(t, mem, key, raw)
			put(t, mem, logKey(mid, n), l.forge(t, logKey(mid, n), 6, "log", entry{
				Machine: mid, N: int64(n), Kind: "commit", Point: pid, Manifest: sha256Of(raw), Previous: sha256Of(get(t, mem, logKey(mid, n-1))), Time: time.Now(),
			}, s.writer))
			r, err := s.openReader(mem)
			if err != nil {
				t.Fatal(err)
			}
			points, err := r.Points(t.Context(), mid)
			if err != nil || len(points) != 4 {
				t.Fatal(len(points), err)
			}
			_, err = r.Manifest(t.Context(), points[3])
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("it says %v, want %v", err, c.want)
			}
			res, err := verify.Run(t.Context(), verify.Request{Repository: r})
			if err != nil || (len(res.Damage) > 0) != (c.want != nil) {
				t.Errorf("verify says %v, %v", res.Damage, err)
			}
		})
	}
}

func TestSidecarsExchanged(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	var a, b string
	for _, key := range allKeys(t, s.mem, "side/") {
		switch {
		case strings.Contains(key, "/proof-") && !strings.Contains(key, repository.MachineSidecars):
			a = key
		case strings.Contains(key, "/certificate-") && !strings.Contains(key, repository.MachineSidecars):
			b = key
		}
	}
	rawA, rawB := get(t, s.mem, a), get(t, s.mem, b)
	replace(t, s.mem, a, rawB)
	replace(t, s.mem, b, rawA)
	for _, key := range []string{a, b} {
		pid := strings.Split(key, "/")[2]
		_, err := s.open(t).Sidecars(t.Context(), s.machine.ID, pid)
		var de *repository.DamageError
		if !errors.As(err, &de) || de.Object != key {
			t.Errorf("%s in another's place: %v", key, err)
		}
	}
}

// TestRevokedWriter: what a revoked key signed before its date counts; what it
// signs afterwards does not, whatever date it claims.
func TestRevokedWriter(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	l := newLens(t, s.mem, s.identity, s.machine.ID)
	mid := s.machine.ID
	next, err := envelope.GenerateSigningKey("writer")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(time.Hour)
	if err := s.repo.PublishKeys(t.Context(), s.custodian, []envelope.PublicKey{next.Public()}, map[envelope.KeyID]time.Time{s.writer.ID(): at}); err != nil {
		t.Fatal(err)
	}
	if _, err := repository.Open(t.Context(), s.mem, repository.OpenOptions{Unlock: repository.Unlocker{Identities: s.identity}, Writer: &s.writer}); !errors.Is(err, repository.ErrUntrusted) {
		t.Errorf("a revoked writer opens: %v", err)
	}
	now := at.Add(-time.Minute)
	r, err := repository.Open(t.Context(), s.mem, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: s.identity}, Writer: &next, Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	points, err := r.Points(t.Context(), mid)
	if err != nil || len(points) != 3 {
		t.Fatalf("what the key signed before: %d points, %v", len(points), err)
	}
	add := func(by envelope.SigningKey, when time.Time) {
		n := len(allKeys(t, s.mem, "log/"))
		put(t, s.mem, logKey(mid, n), l.forge(t, logKey(mid, n), 6, "log", entry{
			Machine: mid, N: int64(n), Kind: "delete", Point: points[0].ID, Previous: sha256Of(get(t, s.mem, logKey(mid, n-1))), Time: when,
		}, by))
	}
	count := func() int {
		r, err := s.openReader(s.mem)
		if err != nil {
			t.Fatal(err)
		}
		ps, _ := r.Points(t.Context(), mid)
		return len(ps)
	}
	add(s.writer, at.Add(time.Second))
	if count() != 3 {
		t.Error("an entry of a revoked key counts after its date")
	}
	if _, _, err := backupDisks(r, mid, []namedDisk{{"vda", &memDisk{p: noise(1, 5000)}}}); err != nil {
		t.Fatal(err)
	}
	now = at.Add(time.Minute)
	if _, _, err := backupDisks(r, mid, []namedDisk{{"vda", &memDisk{p: noise(1, 5000)}}}); err != nil {
		t.Fatal(err)
	}
	add(s.writer, at.Add(-2*time.Hour)) // dated back
	if got := count(); got != 5 {
		t.Errorf("%d points are listed: an entry of a revoked key counts behind one of another writer after its date", got)
	}
}

// TestClockBackwards: order follows the log, whatever the clock says.
func TestClockBackwards(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	now := time.Now().Add(-365 * 24 * time.Hour)
	r, err := repository.Open(t.Context(), s.mem, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: s.identity}, Writer: &s.writer, Now: func() time.Time { now = now.Add(-time.Hour); return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	parent := s.points[2].ID
	for i := range 3 {
		p, _, err := backupDisks(r, s.machine.ID, []namedDisk{{"vda", &memDisk{p: noise(uint64(i), 5000)}}})
		if err != nil {
			t.Fatal(err)
		}
		if p.Parent != parent {
			t.Fatalf("parent is %s, want %s", p.Parent, parent)
		}
		parent = p.ID
	}
	points, err := s.open(t).Points(t.Context(), s.machine.ID)
	if err != nil || points[len(points)-1].ID != parent {
		t.Fatalf("the newest is not the last that was committed: %v", err)
	}
	for i := range points[1:] {
		if points[i+1].Sequence <= points[i].Sequence {
			t.Error("points are not in the log's order")
		}
	}
}

// TestStaleWriter: a writer that slept must not commit behind a fence, another
// commit, or the deletion of its parent, and may behind other deletions.
func TestStaleWriter(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry func(s *sample) entry
		want  error
	}{
		{"fence", func(*sample) entry { return entry{Kind: "fence"} }, repository.ErrConflict},
		{"parent deleted", func(s *sample) entry { return entry{Kind: "delete", Point: s.points[2].ID} }, repository.ErrConflict},
		{"another deleted", func(s *sample) entry { return entry{Kind: "delete", Point: s.points[0].ID} }, nil},
		{"later kind", func(*sample) entry { return entry{Kind: "merge"} }, repository.ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSample(t, repository.SealingAESGCM)
			l := newLens(t, s.mem, s.identity, s.machine.ID)
			w, err := s.repo.Begin(t.Context(), s.machine.ID, repository.BeginOptions{})
			if err != nil {
				t.Fatal(err)
			}
			dd, err := w.WriteDisk(t.Context(), repository.DiskInput{ID: "vda", Source: &memDisk{p: noise(1, 70000)}})
			if err != nil {
				t.Fatal(err)
			}
			n := len(allKeys(t, s.mem, "log/"))
			e := c.entry(s)
			e.Machine, e.N, e.Previous, e.Time = s.machine.ID, int64(n), sha256Of(get(t, s.mem, logKey(s.machine.ID, n-1))), time.Now()
			put(t, s.mem, logKey(s.machine.ID, n), l.forge(t, logKey(s.machine.ID, n), 6, "log", e, s.writer))
			_, err = w.Commit(t.Context(), &repository.Manifest{Disks: []repository.Disk{dd}})
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("commit says %v, want %v", err, c.want)
			}
		})
	}
}

// retryingStore answers every put of a log entry as a client does that lost
// the first answer and tried again.
type retryingStore struct {
	store.Store
	hide bool // instead: has an entry that it does not show
}

func (s retryingStore) Put(ctx context.Context, key string, p []byte) error {
	log := strings.HasPrefix(key, "log/")
	if log && s.hide {
		return store.ErrExist
	}
	err := s.Store.Put(ctx, key, p)
	if err == nil && log {
		err = s.Store.Put(ctx, key, p)
	}
	return err
}

func TestLostAnswerOfTheCommit(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	s.st = retryingStore{Store: s.mem}
	s.repo = s.open(t)
	p := s.backupAll(t, []namedDisk{{"vda", &memDisk{p: noise(1, 70000)}}})
	if err := s.repo.Delete(t.Context(), s.machine.ID, p.ID, "test"); err != nil {
		t.Fatal(err)
	}
}

func TestStoreThatHidesAnEntry(t *testing.T) {
	s := newSample(t, repository.SealingAESGCM)
	s.st = retryingStore{Store: s.mem, hide: true}
	r := s.open(t)
	if _, _, err := backupDisks(r, s.machine.ID, []namedDisk{{"vda", &memDisk{p: noise(1, 70000)}}}); !errors.Is(err, repository.ErrConflict) {
		t.Errorf("commit says %v", err)
	}
	if err := r.Delete(t.Context(), s.machine.ID, s.points[0].ID, "test"); !errors.Is(err, repository.ErrConflict) {
		t.Errorf("delete says %v", err)
	}
}

// TestTrustedChangesStillReadWhatIsOwed: a change source that is trusted must
// not carry unread pages on, nor leave out what a disk grew by.
func TestTrustedChangesStillReadWhatIsOwed(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 5<<20+100), bad: map[int64]bool{5: true}}
	f.backup(t, d, repository.BeginOptions{Unread: true})
	d.bad = nil
	d.p = append(d.p, noise(2, 200)...) // in the page where the disk ended
	w, err := f.repo.Begin(t.Context(), f.machine.ID, repository.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dd, err := w.WriteDisk(t.Context(), repository.DiskInput{ID: "vda", Source: d, Known: true})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Commit(t.Context(), &repository.Manifest{Disks: []repository.Disk{dd}})
	if err != nil {
		t.Fatal(err)
	}
	if len(dd.Unread) != 0 || !bytes.Equal(content(t, f.repo, p), d.p) {
		t.Error("the recovery point is not what the disk is")
	}
	if dd.Stats.Read > 4<<20+100000 {
		t.Errorf("%d bytes were read", dd.Stats.Read)
	}
}
