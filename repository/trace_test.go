package repository_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

var update = flag.Bool("update", false, "write golden files anew")

// tracer notes every step of writing on a local store, in its order, with
// names that are the same each time.
type tracer struct {
	mu    sync.Mutex
	lines []string
	names map[string]string
}

var (
	tracedIDs     = regexp.MustCompile(`[0-9a-f]{32}`)
	tracedObject  = regexp.MustCompile(`^((?:seg|map)/ID\d+/[0-9a-f]{8}/)[0-9a-f]{8}(-[0-9a-f]{8})?$`)
	tracedSidecar = regexp.MustCompile(`proof-[0-9a-f]{16}$`)
)

func (tr *tracer) name(of, format string) string {
	if tr.names == nil {
		tr.names = map[string]string{}
	}
	if tr.names[of] == "" {
		tr.names[of] = fmt.Sprintf(format, len(tr.names)+1)
	}
	return tr.names[of]
}

func (tr *tracer) note(op, name string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if strings.HasPrefix(name, "~tmp/") {
		name = tr.name(name, "~tmp/%d")
	}
	name = tracedIDs.ReplaceAllStringFunc(name, func(id string) string { return tr.name(id, "ID%d") })
	if m := tracedObject.FindStringSubmatch(name); m != nil {
		name = m[1] + "RANDOM"
		if m[2] != "" {
			name += "-REPLICA"
		}
	}
	name = tracedSidecar.ReplaceAllString(name, "proof-RANDOM")
	line := op + " " + name
	if n := len(tr.lines); n > 0 && op == "write" && tr.lines[n-1] == line {
		return // how many writes it takes is not the point
	}
	tr.lines = append(tr.lines, line)
}

// section begins another part of the trace.
func (tr *tracer) section(name string) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lines = append(tr.lines, "", "# "+name)
}

func (tr *tracer) store(t *testing.T) *localdir.Store {
	t.Helper()
	st, err := localdir.Create(t.TempDir(), localdir.Options{Buffered: true, Trace: tr.note})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// golden compares the trace with a file in testdata, which -update writes.
func (tr *tracer) golden(t *testing.T, name string) {
	t.Helper()
	got := strings.Join(tr.lines, "\n") + "\n"
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the trace is\n%s\nwant\n%s", got, want)
	}
}

// TestTraceOfACommit holds every step of writing that one backup makes on a
// local store, in its order: a forgotten fsync or a log entry in the wrong
// place shows as a difference.
func TestTraceOfACommit(t *testing.T) {
	tr := &tracer{}
	f := newFixture(t, tr.store(t), repository.SealingAESGCM)
	s := &sample{fixture: f}
	disks := []namedDisk{{"vda", &memDisk{p: noise(1, 100000)}}}
	tr.section("first backup")
	s.backupAll(t, disks)
	tr.section("backup of a changed page")
	copy(disks[0].disk.p[8192:], noise(2, 4096))
	p := s.backupAll(t, disks)
	tr.section("sidecar")
	if _, err := f.repo.PutSidecar(t.Context(), f.machine.ID, p.ID, repository.SidecarProof, []byte("x")); err != nil {
		t.Fatal(err)
	}
	tr.section("delete")
	if err := f.repo.Delete(t.Context(), f.machine.ID, p.ID, "test"); err != nil {
		t.Fatal(err)
	}
	tr.golden(t, "commit.trace")
	for _, wrong := range append(orderlyTrace(tr.lines), logLast(tr.lines)...) {
		t.Error(wrong)
	}
}

// TestTraceOfAReclaim holds every step of writing that reclaim makes: what it
// is about to do is durable before it, replicas are before their originals go.
func TestTraceOfAReclaim(t *testing.T) {
	tr := &tracer{}
	f := newFixture(t, tr.store(t), repository.SealingAESGCM)
	d := noise(1, 16*65536)
	first, _ := f.backup(t, &memDisk{p: d}, repository.BeginOptions{})
	copy(d, noise(2, 12*65536))
	f.backup(t, &memDisk{p: d}, repository.BeginOptions{})
	if err := f.repo.Delete(t.Context(), f.machine.ID, first.ID, "test"); err != nil {
		t.Fatal(err)
	}
	tr.lines = nil
	tr.section("reclaim")
	f.reclaim(t, repository.ReclaimOptions{})
	tr.section("reclaim again")
	f.reclaim(t, repository.ReclaimOptions{})
	tr.golden(t, "reclaim.trace")
	for _, wrong := range append(orderlyTrace(tr.lines), replicaFirst(tr.lines)...) {
		t.Error(wrong)
	}
	// The rules see a sync that is not made, and an original that goes early.
	for i, line := range tr.lines {
		if strings.HasPrefix(line, "sync") && !strings.HasPrefix(tr.lines[i-1], "mkdir") {
			without := slices.Delete(slices.Clone(tr.lines), i, i+1)
			if len(orderlyTrace(without))+len(replicaFirst(without)) == 0 {
				t.Errorf("nobody misses line %d: %s", i, line)
			}
		}
		if strings.HasPrefix(line, "unlink seg/") {
			early := slices.Delete(slices.Clone(tr.lines), i, i+1)
			if len(replicaFirst(slices.Insert(early, 2, line))) == 0 {
				t.Errorf("nobody minds that %s comes first", line)
			}
		}
	}
}

// replicaFirst wants the ledger to be there before anything goes, and the
// replica before the segment it stands for. (The map object is dead as a whole.)
func replicaFirst(lines []string) (wrong []string) {
	gone := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "unlink ") && !strings.HasPrefix(l, "unlink ~tmp/") })
	first := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "unlink seg/") })
	replica := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "link ") && strings.HasSuffix(l, "-REPLICA") })
	ledger := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "link ledger/") })
	if first < 0 || replica < 0 || ledger < 0 {
		return []string{fmt.Sprintf("no deletion, no replica or no ledger: lines %d, %d, %d", first, replica, ledger)}
	}
	if ledger+1 >= gone {
		wrong = append(wrong, "something goes before the ledger is durable")
	}
	if replica+1 >= first {
		wrong = append(wrong, "an original goes before its replica is durable")
	}
	return wrong
}

// orderlyTrace checks a trace by rule, whatever the golden file says: nothing
// is linked that was not synced, and the names of what is linked and of what is
// deleted are synced at once.
func orderlyTrace(lines []string) (wrong []string) {
	synced := 0
	for i, line := range lines {
		op, name, _ := strings.Cut(line, " ")
		next := ""
		if i+1 < len(lines) {
			next = lines[i+1]
		}
		switch op {
		case "sync":
			if !strings.HasPrefix(name, "folder") {
				synced++
			}
		case "link":
			before := lines[i-1]
			if !strings.HasPrefix(before, "sync") {
				wrong = append(wrong, fmt.Sprintf("line %d: %s is linked after %q", i, name, before))
			}
			exists := strings.HasPrefix(next, "unlink ~tmp") // an equal header is there already
			if !exists && next != "sync folder "+filepath.ToSlash(filepath.Dir(name)) || exists && !strings.HasPrefix(name, "headers-") {
				wrong = append(wrong, fmt.Sprintf("line %d: the folder of %s is not synced", i, name))
			}
			if synced--; synced < 0 {
				wrong = append(wrong, fmt.Sprintf("line %d: %s is linked without a sync", i, name))
			}
		case "unlink":
			if !strings.HasPrefix(name, "~tmp/") && next != "sync folder "+filepath.ToSlash(filepath.Dir(name)) {
				wrong = append(wrong, fmt.Sprintf("line %d: the folder of %s, which goes, is not synced", i, name))
			}
		}
	}
	return wrong
}

// logLast wants the log entry of the first backup behind all else.
func logLast(lines []string) (wrong []string) {
	_, after, _ := strings.Cut(strings.Join(lines, "\n"), "# first backup")
	part, _, _ := strings.Cut(after, "#")
	log := strings.Index(part, "link log/")
	for _, before := range []string{"link seg/", "link map/", "link headers-a/", "link headers-b/", "link points/"} {
		if at := strings.LastIndex(part, before); at < 0 || at > log {
			wrong = append(wrong, before+"… does not come before the log entry")
		}
	}
	return wrong
}
