package embedded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// entry is all that a caller can know of a version, its bytes included.
type entry struct {
	Content string
	State   keymanager.State
	Holds   []string
}

// look reads the whole state at one moment, also the bytes of disabled versions.
func look(t testing.TB, m *Manager) map[keymanager.Ref]entry {
	t.Helper()
	must(t, m.Check(t.Context()))
	tx, end, err := m.begin(t.Context(), false)
	must(t, err)
	defer end()
	names, err := tx.names()
	must(t, err)
	seen := map[keymanager.Ref]entry{}
	for _, name := range names {
		l, err := tx.load(name)
		must(t, err)
		if l.record == nil {
			continue
		}
		for _, v := range l.record.Versions {
			e := entry{State: v.State, Holds: []string{}}
			for _, h := range v.Holds {
				e.Holds = append(e.Holds, h.Point)
			}
			slices.Sort(e.Holds)
			if v.State != keymanager.Destroyed {
				_, secret, err := tx.bytesOf(name, v)
				must(t, err)
				e.Content = string(secret.Expose())
			}
			seen[keymanager.Ref{ID: l.record.ID, Version: v.Number}] = e
		}
	}
	return seen
}

// scenario is one call on a prepared state. What it needs lies in alpha@1
// (active, held by "held"), alpha@2 (active), alpha@3 (disabled).
type scenario struct {
	name  string
	call  func(*Manager) error
	trace string // the durable steps, in their order: a forgotten one shows here
}

func prepare(t testing.TB) (string, Sealer) {
	dir, sealer := newDir(t)
	m := mustOpen(t, dir, sealer)
	for _, content := range []string{"one", "two", "three"} {
		mustPut(t, m, "alpha", content)
	}
	must(t, m.Hold(t.Context(), keymanager.Ref{ID: "alpha", Version: 1}, hold("held")))
	must(t, m.SetState(t.Context(), keymanager.Ref{ID: "alpha", Version: 3}, keymanager.Disabled, "test"))
	must(t, m.Close())
	return dir, sealer
}

func scenarios(t testing.TB) []scenario {
	ctx := t.Context()
	put := func(id, content string) func(*Manager) error {
		return func(m *Manager) error {
			_, err := m.Put(ctx, request(id, content))
			return err
		}
	}
	ref := func(n int) keymanager.Ref { return keymanager.Ref{ID: "alpha", Version: n} }
	return []scenario{
		{"put a new secret", put("beta", "x"), "folder, version, record, index"},
		{"put a new version", put("alpha", "four"), "folder, version, record, index"},
		{"put known bytes", put("alpha", "two"), ""},
		{"set state", func(m *Manager) error { return m.SetState(ctx, ref(2), keymanager.Deactivated, "r") }, "record, index"},
		{"set the same state", func(m *Manager) error { return m.SetState(ctx, ref(3), keymanager.Disabled, "r") }, ""},
		{"hold", func(m *Manager) error { return m.Hold(ctx, ref(2), hold("new")) }, "record, index"},
		{"hold again", func(m *Manager) error { return m.Hold(ctx, ref(1), hold("held")) }, ""},
		{"unhold", func(m *Manager) error { return m.Unhold(ctx, ref(1), hold("held")) }, "record, index"},
		{"destroy", func(m *Manager) error { return m.Destroy(ctx, ref(2), "r") }, "index, record, overwriting, unlinking, index"},
		{"destroy a disabled one", func(m *Manager) error { return m.Destroy(ctx, ref(3), "r") }, "index, record, overwriting, unlinking, index"},
	}
}

func TestDurableSteps(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			dir, sealer := prepare(t)
			m := mustOpen(t, dir, sealer)
			var trace []string
			m.step = func(point string) {
				if step, ok := strings.CutPrefix(point, "before "); ok {
					trace = append(trace, step)
				}
			}
			must(t, sc.call(m))
			if got := strings.Join(trace, ", "); got != sc.trace {
				t.Errorf("steps: %s; want: %s", got, sc.trace)
			}
		})
	}
}

// crash ends a call as a kill would.
type crash struct{ point string }

// crashAt runs call and ends it at the n-th point it reaches, from 1; "" if it
// reached fewer.
func crashAt(t testing.TB, dir string, sealer Sealer, call func(*Manager) error, n int) (point string) {
	t.Helper()
	m := mustOpen(t, dir, sealer)
	m.step = func(point string) {
		if n--; n == 0 {
			panic(crash{point})
		}
	}
	defer func() {
		r := recover()
		if c, ok := r.(crash); ok {
			point = c.point
		} else if r != nil {
			panic(r)
		}
	}()
	must(t, call(m))
	return ""
}

// TestEveryCrashPoint ends each call at each point, then its repetition at each
// point, then repeats it to the end. At each stop the state is the one before
// or the one after the call, and never goes back.
func TestEveryCrashPoint(t *testing.T) {
	for _, sc := range scenarios(t) {
		t.Run(sc.name, func(t *testing.T) {
			dir, sealer := prepare(t)
			template := filepath.Join(t.TempDir(), "template")
			must(t, os.CopyFS(template, os.DirFS(dir)))
			before := look(t, mustOpen(t, dir, sealer))
			must(t, sc.call(mustOpen(t, dir, sealer)))
			after := look(t, mustOpen(t, dir, sealer))
			pairs := 0
			for first := 1; ; first++ {
				stopped := ""
				for second := 1; ; second++ {
					dir := filepath.Join(t.TempDir(), "copy")
					must(t, os.CopyFS(dir, os.DirFS(template)))
					if stopped = crashAt(t, dir, sealer, sc.call, first); stopped == "" {
						break
					}
					committed := wantOneOf(t, stopped, dir, sealer, before, after, false)
					again := crashAt(t, dir, sealer, sc.call, second)
					if again != "" {
						wantOneOf(t, stopped+", "+again, dir, sealer, before, after, committed)
						must(t, sc.call(mustOpen(t, dir, sealer)))
					}
					wantOneOf(t, stopped+", "+again+", repeated", dir, sealer, after, after, true)
					wantTidy(t, dir, sealer, after)
					pairs++
					if again == "" {
						break
					}
				}
				if stopped == "" {
					break
				}
			}
			if (pairs == 0) != (sc.trace == "") {
				t.Errorf("%d crashes for the steps %q", pairs, sc.trace)
			}
		})
	}
}

func wantOneOf(t testing.TB, where, dir string, sealer Sealer, before, after map[keymanager.Ref]entry, committed bool) bool {
	t.Helper()
	// Without Open's help first: readers must cope on their own.
	h, kek, err := readKEK(dir, sealer)
	must(t, err)
	m := newManager(dir, h.KEK, newKeys(kek), Options{})
	defer m.Close()
	got := look(t, m)
	if reflect.DeepEqual(got, after) {
		return true
	}
	if committed || !reflect.DeepEqual(got, before) {
		t.Fatalf("stopped %s: state %v, want %v (or, if not seen done, %v)", where, got, after, before)
	}
	return false
}

// wantTidy: a file for each version that lives, none besides.
func wantTidy(t testing.TB, dir string, sealer Sealer, want map[keymanager.Ref]entry) {
	t.Helper()
	m := mustOpen(t, dir, sealer)
	expect := []string{filepath.Join(dir, kekFile), filepath.Join(dir, indexFile)}
	for ref, e := range want {
		folder := filepath.Join(dir, secretsFolder, m.keys.nameOf(ref.ID))
		if ref.Version == 1 {
			expect = append(expect, filepath.Join(folder, recordFile))
		}
		if e.State != keymanager.Destroyed {
			expect = append(expect, filepath.Join(folder, versionFile(ref.Version)))
		}
	}
	got := stateFiles(t, dir)
	slices.Sort(expect)
	slices.Sort(got)
	if !slices.Equal(got, expect) {
		t.Errorf("files %v, want %v", got, expect)
	}
	tx, end, err := m.begin(t.Context(), false)
	must(t, err)
	defer end()
	if len(tx.index.Wiping) != 0 {
		t.Errorf("wiping is still %v", tx.index.Wiping)
	}
}

// TestOpenFinishesDestroying: bytes that were to be gone are gone at the next
// start, not at the next change.
func TestOpenFinishesDestroying(t *testing.T) {
	dir, sealer := prepare(t)
	ref := keymanager.Ref{ID: "alpha", Version: 2}
	destroy := func(m *Manager) error { return m.Destroy(t.Context(), ref, "r") }
	if point := crashAt(t, dir, sealer, destroy, 5); point != "before overwriting" {
		t.Fatalf("stopped %s", point)
	}
	m := mustOpen(t, dir, sealer)
	path := filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"), "2.sealed")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the destroyed version's file is still there: %v", err)
	}
}

// TestRemainsOfWrites has what a kill inside the writing of one file leaves:
// temporary files, one of them a second name of a version, and (where there are
// no hard links) half a version.
func TestRemainsOfWrites(t *testing.T) {
	dir, sealer := prepare(t)
	m := mustOpen(t, dir, sealer)
	before := look(t, m)
	folder := filepath.Join(dir, secretsFolder, m.keys.nameOf("alpha"))
	whole, err := os.ReadFile(filepath.Join(folder, "1.sealed"))
	must(t, err)
	must(t, os.Link(filepath.Join(folder, "1.sealed"), filepath.Join(folder, ".1.sealed.AAAA.tmp")))
	must(t, os.WriteFile(filepath.Join(folder, ".4.sealed.BBBB.tmp"), whole[:100], 0o600))
	must(t, os.WriteFile(filepath.Join(folder, ".record.sealed.CCCC.tmp"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, ".index.sealed.DDDD.tmp"), whole, 0o600))
	must(t, os.WriteFile(filepath.Join(folder, "4.sealed"), whole[:len(whole)/2], 0o600))
	must(t, os.MkdirAll(filepath.Join(dir, secretsFolder, strings.Repeat("0", 32)), 0o700))
	if got := look(t, m); !reflect.DeepEqual(got, before) {
		t.Errorf("readers see %v, want %v", got, before)
	}
	v := mustPut(t, m, "alpha", "four")
	before[v.Ref] = entry{Content: "four", State: keymanager.Active, Holds: []string{}}
	if got := look(t, m); !reflect.DeepEqual(got, before) {
		t.Errorf("after the next put: %v, want %v", got, before)
	}
	wantTidy(t, dir, sealer, before)
}

// TestGolden opens a state that version 1 wrote: a change of format shows here.
func TestGolden(t *testing.T) {
	r := &record{
		ID: "alpha", Kind: "passphrase", Labels: map[string]string{"machine": "m"}, Generation: 3,
		Versions: []*version{{
			Number: 1, State: keymanager.Active, Created: hold("").Since,
			History: []keymanager.Transition{{State: keymanager.Active, At: hold("").Since, Reason: "r"}},
			Holds:   []keymanager.Hold{hold("p")},
		}},
	}
	kek := envelope.NewSecret(slices.Repeat([]byte{7}, 32))
	k := newKeys(kek)
	const want = `{"id":"alpha","kind":"passphrase","labels":{"machine":"m"},"generation":3,"versions":[{"version":1,"state":"active",` +
		`"created":"2026-01-02T03:04:05Z","history":[{"state":"active","at":"2026-01-02T03:04:05Z","reason":"r"}],` +
		`"holds":[{"repository":"r","machine":"m","point":"p","installer":"i","since":"2026-01-02T03:04:05Z"}]}]}`
	sealed, err := encodeRecord(k, k.nameOf("alpha"), r)
	must(t, err)
	body, err := openFrame(kindRecord, k.record, []byte(contextRecord+k.nameOf("alpha")), sealed)
	must(t, err)
	if string(body) != want {
		t.Errorf("record is\n%s\nwant\n%s", body, want)
	}
	parsed, err := parseRecord([]byte(want))
	must(t, err)
	if !reflect.DeepEqual(parsed, r) {
		t.Errorf("parsed %+v", parsed)
	}
	if got := fmt.Sprintf("%s %x", k.nameOf("alpha"), k.wrap.Expose()); got != goldenKeys {
		t.Errorf("derived %s", got)
	}
}

// goldenKeys was computed apart, with Python's hmac and hashlib.
const goldenKeys = "f81e32605d4381aeb006fc5ec5f44957 27364f0901e4092041c4301bb240f116be4610012511d9593372aec660b98e4d"
