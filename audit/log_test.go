package audit

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// key signs and verifies as "key:<first byte of the seed>".
type key struct{ seed byte }

func (k key) private() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{k.seed}, 32))
}
func (k key) id() string { return fmt.Sprintf("key:%d", k.seed) }

func (k key) Sign(message []byte) (string, []byte, error) {
	return k.id(), ed25519.Sign(k.private(), message), nil
}

func (k key) VerifySignature(id string, message, sig []byte) error {
	if id != k.id() || !ed25519.Verify(k.private().Public().(ed25519.PublicKey), message, sig) {
		return errors.New("signature is not of the trusted key")
	}
	return nil
}

var testKey = key{1}

func openLog(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir, testKey, testKey)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func event(i int) Event {
	return Event{
		Time:  time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC),
		Actor: "uid:0", Action: "backup.commit", Object: fmt.Sprintf("machine-%d", i), Outcome: Done,
		Reason: "line\nbreak \u2028 <&>", Detail: map[string]string{"n": fmt.Sprint(i)},
	}
}

func appendEvents(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		index, err := l.Append(t.Context(), event(i))
		if err != nil || index != int64(i) {
			t.Fatalf("append %d: %d, %v", i, index, err)
		}
	}
}

func verify(t testing.TB, l *Log, known ...Checkpoint) Report {
	t.Helper()
	r, err := l.Verify(t.Context(), known...)
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	return r
}

func kinds(r Report) string {
	var out []string
	for _, p := range r.Problems {
		out = append(out, string(p.Kind))
	}
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(out))), " ")
}

func actions(t testing.TB, l *Log, from int64) (out []string) {
	t.Helper()
	if err := l.List(t.Context(), from, func(_ int64, e Event) error {
		out = append(out, e.Action+" "+e.Object)
		return nil
	}); err != nil {
		t.Fatalf("list: %v", err)
	}
	return out
}

func TestAppendListVerify(t *testing.T) {
	l := openLog(t, filepath.Join(t.TempDir(), "data", "audit"))
	if r := verify(t, l); r.Entries != 0 || len(r.Problems) != 0 || r.Root != emptyRoot() {
		t.Errorf("empty: %+v", r)
	}
	if h, err := l.Head(t.Context()); err != nil || h.Size != 0 {
		t.Errorf("head of the empty log: %+v, %v", h, err)
	}
	appendEvents(t, l, 0, 20)
	index, err := l.Append(t.Context(), event(20), event(21), event(22))
	if err != nil || index != 20 {
		t.Errorf("batch: %d, %v", index, err)
	}
	r := verify(t, l)
	if r.Entries != 23 || r.Signed != 23 || r.Checkpoints != 21 || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
	var seen []int64
	if err := l.List(t.Context(), 15, func(i int64, e Event) error {
		seen = append(seen, i)
		want, _ := json.Marshal(event(int(i)))
		if got, _ := json.Marshal(e); !bytes.Equal(got, want) {
			t.Errorf("event %d: %s, want %s", i, got, want)
		}
		return nil
	}); err != nil || !slices.Equal(seen, []int64{15, 16, 17, 18, 19, 20, 21, 22}) {
		t.Errorf("listed %v, %v", seen, err)
	}
	stop := errors.New("stop")
	if err := l.List(t.Context(), 0, func(int64, Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("list: %v", err)
	}
	head, err := l.Head(t.Context())
	if err != nil || head.Size != 23 || head.Root != r.Root {
		t.Errorf("head %+v, %v", head, err)
	}
}

// tlog's own tree over the same lines must have the same root.
func TestRootsAreTlogs(t *testing.T) {
	l := openLog(t, t.TempDir())
	var f frontier
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range indexes {
			out = append(out, hashes[i])
		}
		return out, nil
	})
	for i := range 70 {
		appendEvents(t, l, i, i+1)
		raw, err := os.ReadFile(l.path(eventsFile))
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
		stored, err := tlog.StoredHashes(int64(i), lines[i], reader)
		if err != nil {
			t.Fatal(err)
		}
		if got := f.add(tlog.RecordHash(lines[i])); !slices.Equal(got, stored) {
			t.Fatalf("entry %d: stored hashes differ", i)
		}
		hashes = append(hashes, stored...)
		want, err := tlog.TreeHash(int64(i+1), reader)
		if err != nil {
			t.Fatal(err)
		}
		head, err := l.Head(t.Context())
		if err != nil || head.Root != want || f.root() != want {
			t.Errorf("%d entries: root %v, frontier %v, want %v, %v", i+1, head.Root, f.root(), want, err)
		}
	}
}

func TestAppendSyncsOnceBetweenEventsAndCheckpoint(t *testing.T) {
	l := openLog(t, t.TempDir())
	var steps []string
	l.step = func(s string) { steps = append(steps, s) }
	l.sync = func(f *os.File) error {
		steps = append(steps, "fsync "+filepath.Base(f.Name()))
		return f.Sync()
	}
	want := []string{"write events", "sync events", "fsync events.jsonl", "write checkpoint"}
	for _, batch := range [][]Event{{event(0)}, {event(1), event(2)}} {
		steps = nil
		if _, err := l.Append(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(steps, want) {
			t.Errorf("steps %q, want %q", steps, want)
		}
	}
}

func TestFailedSyncLeavesNoTrace(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 3)
	l.sync = func(*os.File) error { return os.ErrInvalid }
	if _, err := l.Append(t.Context(), event(3)); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("append: %v", err)
	}
	if r := verify(t, l); r.Entries != 3 || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
	l.sync = (*os.File).Sync
	appendEvents(t, l, 3, 5)
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	ok := event(0)
	for name, e := range map[string]Event{
		"no action":     {Actor: "a", Outcome: Done},
		"no actor":      {Action: "a", Outcome: Done},
		"odd outcome":   {Actor: "a", Action: "a", Outcome: "maybe"},
		"far too large": {Actor: "a", Action: "a", Outcome: Done, Reason: strings.Repeat("x", maxEventLine)},
	} {
		if _, err := l.Append(t.Context(), ok, e); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.Append(t.Context()); !errors.Is(err, ErrEvent) {
		t.Errorf("no event: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Append(ctx, ok); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if r := verify(t, l); r.Entries != 0 {
		t.Errorf("%d entries after refusals", r.Entries)
	}
	reader, err := Open(dir, nil, testKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Append(t.Context(), ok); !errors.Is(err, ErrReadOnly) {
		t.Errorf("append without a signer: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "absent"), nil, testKey); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open of nothing: %v", err)
	}
}

// files is a log as bytes, to be damaged.
type files struct{ events, checkpoints, hashes []byte }

func readFiles(t testing.TB, l *Log) (f files) {
	t.Helper()
	for name, to := range map[string]*[]byte{eventsFile: &f.events, checkpointsFile: &f.checkpoints, hashesFile: &f.hashes} {
		b, err := os.ReadFile(l.path(name))
		if err != nil {
			t.Fatal(err)
		}
		*to = b
	}
	return f
}

func (f files) write(t testing.TB, l *Log) {
	t.Helper()
	for name, b := range map[string][]byte{eventsFile: f.events, checkpointsFile: f.checkpoints, hashesFile: f.hashes} {
		if err := os.WriteFile(l.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func editLines(b []byte, change func(lines [][]byte) [][]byte) []byte {
	lines := change(bytes.SplitAfter(bytes.Clone(b), []byte("\n")))
	return bytes.Join(lines, nil)
}

func sub(b []byte, old, new string) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }

func TestTampering(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 10)
	whole := readFiles(t, l)
	head, err := l.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.TempDir(), key{2}, key{2})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := other.Append(t.Context(), event(i)); err != nil {
			t.Fatal(err)
		}
	}
	strangers := readFiles(t, other)
	longer := openLog(t, t.TempDir())
	appendEvents(t, longer, 5, 5)
	if _, err := longer.Append(t.Context(), event(90), event(91)); err != nil {
		t.Fatal(err)
	}
	lastLineOf := func(b []byte) int { return bytes.LastIndexByte(b[:len(b)-1], '\n') + 1 }

	for _, c := range []struct {
		name   string
		change func(f *files)
		known  []Checkpoint
		want   string
		refuse bool // Append must refuse
	}{
		{"nothing", func(*files) {}, []Checkpoint{head}, "", false},
		{"an entry edited", func(f *files) { f.events = sub(f.events, "machine-4", "machine-5") }, nil, "edited hashes", false},
		{"an entry edited in its spelling only", func(f *files) { f.events = sub(f.events, `"object":"machine-4"`, `"object":"machine\u002d4"`) }, nil, "edited hashes", false},
		{"the last entry edited", func(f *files) { f.events = sub(f.events, "machine-9", "machine-8") }, nil, "edited hashes", false},
		{"an entry and its hashes edited", func(f *files) {
			f.events = sub(f.events, "machine-4", "machine-5")
			f.hashes = nil
		}, nil, "edited hashes", true},
		{"an entry removed", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { return slices.Delete(l, 4, 5) })
		}, nil, "edited hashes misplaced truncated", true},
		{"the first entry removed", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { return l[1:] })
		}, nil, "edited hashes misplaced truncated", true},
		{"two entries swapped", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l })
		}, nil, "edited hashes misplaced", false},
		{"an entry put in", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { return slices.Insert(l, 4, l[4]) })
		}, nil, "edited hashes misplaced", false},
		{"the last entries cut off", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { return l[:7] })
		}, nil, "hashes truncated", true},
		{"all entries cut off", func(f *files) { f.events = nil }, nil, "hashes truncated", true},
		{"cut within the last line", func(f *files) { f.events = f.events[:len(f.events)-3] }, nil, "hashes torn truncated", true},
		{"entries and checkpoints cut off alike", func(f *files) {
			f.events = editLines(f.events, func(l [][]byte) [][]byte { return l[:7] })
			f.checkpoints = editLines(f.checkpoints, func(l [][]byte) [][]byte { return l[:7] })
			f.hashes = f.hashes[:tlog.StoredHashCount(7)*tlog.HashSize]
		}, []Checkpoint{head}, "truncated", false},
		{"another log by the same key", func(f *files) {
			*f = readFiles(t, longer)
		}, []Checkpoint{head}, "truncated", false},
		{"checkpoint edited", func(f *files) { f.checkpoints = sub(f.checkpoints, `"size":4,`, `"size":3,`) }, nil, "signature", false},
		{"checkpoint's time edited", func(f *files) { f.checkpoints = sub(f.checkpoints, `"time":"20`, `"time":"19`) }, nil, "signature", false},
		{"checkpoint removed", func(f *files) {
			f.checkpoints = editLines(f.checkpoints, func(l [][]byte) [][]byte { return slices.Delete(l, 4, 5) })
		}, nil, "", false}, // the later ones cover what it covered
		{"checkpoints swapped", func(f *files) {
			f.checkpoints = editLines(f.checkpoints, func(l [][]byte) [][]byte { l[3], l[4] = l[4], l[3]; return l })
		}, nil, "disorder", false},
		{"last checkpoint removed", func(f *files) { f.checkpoints = f.checkpoints[:lastLineOf(f.checkpoints)] }, nil, "unsigned", false},
		{"all checkpoints removed", func(f *files) { f.checkpoints = nil }, nil, "unsigned", false},
		{"checkpoint garbled", func(f *files) { f.checkpoints = sub(f.checkpoints, `{`, `[`) }, nil, "malformed", false},
		{"all by a stranger's key", func(f *files) { *f = strangers }, nil, "signature unsigned", true},
		{"an entry garbled", func(f *files) { f.events = sub(f.events, `{"v":1,"n":5`, `["v":1,"n":5`) }, nil, "edited hashes malformed", false},
		{"an entry of a later version", func(f *files) { f.events = sub(f.events, `{"v":1,"n":5`, `{"v":2,"n":5`) }, nil, "edited hashes malformed", false},
		{"an endless line", func(f *files) {
			f.events = append(append(f.events, bytes.Repeat([]byte("x"), 3*maxEventLine)...), '\n')
		}, nil, "hashes malformed unsigned", true},
		{"stored hashes removed", func(f *files) { f.hashes = nil }, nil, "hashes", false},
		{"a stored hash changed", func(f *files) { f.hashes[100] ^= 1 }, nil, "hashes", false},
		{"stored hashes appended", func(f *files) { f.hashes = append(f.hashes, 1) }, nil, "hashes", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := files{bytes.Clone(whole.events), bytes.Clone(whole.checkpoints), bytes.Clone(whole.hashes)}
			c.change(&f)
			f.write(t, l)
			r := verify(t, l, c.known...)
			if got := kinds(r); got != c.want {
				t.Errorf("problems %q, want %q: %+v", got, c.want, r.Problems)
			}
			_, err := l.Append(t.Context(), event(10))
			if errors.Is(err, ErrTampered) != c.refuse || err != nil && !c.refuse {
				t.Errorf("append: %v, refusal wanted: %v", err, c.refuse)
			}
			for _, p := range r.Problems {
				if !p.AfterCrash() && kinds(verify(t, l, c.known...)) == "" {
					t.Errorf("an append has hidden: %+v", p)
				}
			}
		})
	}
}

func TestEditedEntryIsNamed(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 10)
	f := readFiles(t, l)
	f.events = sub(f.events, "machine-4", "machine-5")
	f.write(t, l)
	r := verify(t, l)
	if r.Signed != 4 || r.Problems[0].Index != 4 || !strings.Contains(fmt.Sprint(r.Problems), "from 4 to 4 was changed") {
		t.Errorf("report %+v", r)
	}
}

// Whatever a crash can leave, the next append repairs, and says so.
func TestCrashes(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 7)
	before := readFiles(t, l)
	appendEvents(t, l, 7, 8)
	after := readFiles(t, l)
	tail := len(after.events) - len(before.events)
	for cut := 1; cut <= tail; cut++ {
		// The event in part or whole, nothing else.
		files{after.events[:len(before.events)+cut], before.checkpoints, before.hashes}.write(t, l)
		want, entries := "torn", int64(9)
		if cut == tail {
			want, entries = "hashes unsigned", 10
		}
		if got := kinds(verify(t, l)); got != want {
			t.Fatalf("cut %d: problems %q, want %q", cut, got, want)
		}
		index, err := l.Append(t.Context(), event(99))
		if err != nil || index != entries-1 {
			t.Fatalf("cut %d: append: %d, %v", cut, index, err)
		}
		if r := verify(t, l); r.Entries != entries || len(r.Problems) != 0 {
			t.Fatalf("cut %d: %+v", cut, r)
		}
		if got := actions(t, l, index-1); got[0] != ActionRepair+" audit" || got[1] != "backup.commit machine-99" {
			t.Fatalf("cut %d: %q", cut, got)
		}
	}
	// Checkpoint in part; hashes in part, or as zeroes.
	for cut := len(before.checkpoints); cut < len(after.checkpoints); cut++ {
		files{after.events, after.checkpoints[:cut], after.hashes}.write(t, l)
		if _, err := l.Append(t.Context(), event(99)); err != nil {
			t.Fatalf("checkpoint cut to %d: %v", cut, err)
		}
		if r := verify(t, l); r.Entries != 10 || len(r.Problems) != 0 {
			t.Fatalf("checkpoint cut to %d: %+v", cut, r)
		}
	}
	for cut := 0; cut < len(after.hashes); cut += 16 {
		for _, fill := range []int{0, len(after.hashes) - cut} {
			hashes := append(bytes.Clone(after.hashes[:cut]), make([]byte, fill)...)
			files{after.events, after.checkpoints, hashes}.write(t, l)
			if _, err := l.Append(t.Context(), event(99)); err != nil {
				t.Fatalf("hashes cut to %d: %v", cut, err)
			}
			r := verify(t, l)
			if r.Entries != 9 || slices.ContainsFunc(r.Problems, func(p Problem) bool { return p.Kind != Hashes }) {
				t.Fatalf("hashes cut to %d: %+v", cut, r)
			}
		}
	}
	// Zeroes behind the checkpoints, as a file system may leave them.
	files{after.events, append(bytes.Clone(after.checkpoints), make([]byte, 100)...), after.hashes}.write(t, l)
	if _, err := l.Append(t.Context(), event(99)); err != nil {
		t.Errorf("zeroes behind the checkpoints: %v", err)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 1)
	f := readFiles(t, l)
	f.checkpoints = bytes.Repeat([]byte("x\n"), 1000)
	f.write(t, l)
	if r := verify(t, l); len(r.Problems) != maxProblems || r.More != 1000-maxProblems+1 {
		t.Errorf("%d problems and %d more", len(r.Problems), r.More)
	}
}

func TestGoroutinesAppend(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for g := range 8 {
		l := openLog(t, dir)
		wg.Go(func() {
			for i := range 10 {
				if _, err := l.Append(t.Context(), event(100*g+i)); err != nil {
					t.Errorf("append: %v", err)
				}
				if i == 5 {
					if r, err := l.Verify(t.Context()); err != nil || len(r.Problems) != 0 {
						t.Errorf("verify beside appends: %+v, %v", r, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if r := verify(t, openLog(t, dir)); r.Entries != 80 || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
}

const childDir = "LOCKSTEP_AUDIT_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		l, err := Open(dir, testKey, testKey)
		for i := 0; err == nil && i < 25; i++ {
			_, err = l.Append(context.Background(), event(i))
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestProcessesAppend(t *testing.T) {
	dir := t.TempDir()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			cmd := exec.Command(program)
			cmd.Env = append(os.Environ(), childDir+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("child: %v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if r := verify(t, openLog(t, dir)); r.Entries != 100 || r.Checkpoints != 100 || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
}

func TestVerifyOfACopyWithoutLock(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 3)
	if err := os.Remove(l.path(lockFile)); err != nil {
		t.Fatal(err)
	}
	copied, err := Open(l.dir, nil, testKey)
	if err != nil {
		t.Fatal(err)
	}
	if r := verify(t, copied); r.Entries != 3 || len(r.Problems) != 0 {
		t.Errorf("report %+v", r)
	}
}

func FuzzAuditRead(f *testing.F) {
	dir := f.TempDir()
	l := openLog(f, dir)
	for i := range 4 {
		if _, err := l.Append(context.Background(), event(i)); err != nil {
			f.Fatal(err)
		}
	}
	whole := readFiles(f, l)
	f.Add(whole.events, whole.checkpoints, whole.hashes)
	f.Add(whole.events[:len(whole.events)/2], whole.checkpoints, whole.hashes)
	f.Add([]byte("{}\n\n"), []byte(`{"size":9223372036854775807,"bytes":1}`+"\n"), []byte{})
	f.Add([]byte{}, []byte("null\n"), []byte{1})
	l.sync = func(*os.File) error { return nil }
	f.Fuzz(func(t *testing.T, events, checkpoints, hashes []byte) {
		files{events, checkpoints, hashes}.write(t, l)
		r, err := l.Verify(t.Context())
		if err != nil {
			t.Fatalf("verify: %v", err)
		}
		if len(r.Problems) == 0 && !bytes.HasPrefix(whole.events, events) {
			t.Errorf("no problem found in %q", events)
		}
		_ = l.List(t.Context(), 0, func(int64, Event) error { return nil })
		if _, err := l.Append(t.Context(), event(9)); err == nil {
			if r, err := l.Verify(t.Context()); err != nil || r.Entries == 0 {
				t.Errorf("after an append: %+v, %v", r, err)
			}
		}
	})
}

func TestContinues(t *testing.T) {
	l := openLog(t, t.TempDir())
	appendEvents(t, l, 0, 5)
	head, err := l.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	other := head
	other.Root[0] ^= 1
	longer := head
	longer.Size = 9
	for _, c := range []struct {
		name string
		c    Checkpoint
		want bool
	}{{"nothing", Checkpoint{}, true}, {"the head", head, true}, {"another root", other, false}, {"more than there is", longer, false}} {
		if got, err := l.Continues(t.Context(), c.c); err != nil || got != c.want {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
	appendEvents(t, l, 5, 23)
	if got, err := l.Continues(t.Context(), head); err != nil || !got {
		t.Errorf("a longer log: %v, %v", got, err)
	}
}
