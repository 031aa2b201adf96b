package embedded

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"testing"

	"github.com/lockstep-backup/lockstep/keymanager"
)

// The environment that makes TestKillChild the child of TestKill.
const (
	childDir  = "LOCKSTEP_TEST_KILL_DIR"
	childKey  = "LOCKSTEP_TEST_KILL_KEY"
	childSeed = "LOCKSTEP_TEST_KILL_SEED"
	childName = "LOCKSTEP_TEST_KILL_NAME"
)

// op is one call of a child. It is printed twice: before, and once it returned.
type op struct {
	Done    bool
	Kind    string
	Ref     keymanager.Ref
	Content string
	State   keymanager.State
	Point   string
}

// apply says what the op makes of a version.
func (o op) apply(e entry) entry {
	e.Holds = slices.Clone(e.Holds)
	switch o.Kind {
	case "put":
		return entry{Content: o.Content, State: o.State, Holds: []string{}}
	case "state":
		e.State = o.State
	case "hold":
		if !slices.Contains(e.Holds, o.Point) {
			e.Holds = append(e.Holds, o.Point)
			slices.Sort(e.Holds)
		}
	case "unhold":
		e.Holds = slices.DeleteFunc(e.Holds, func(p string) bool { return p == o.Point })
	case "destroy":
		e.Content, e.State = "", keymanager.Destroyed
	}
	return e
}

// call does it with a manager; what the state forbids is no op.
func (o op) call(t testing.TB, m *Manager) error {
	switch o.Kind {
	case "put":
		p := request(o.Ref.ID, o.Content)
		p.State = o.State
		v, err := m.Put(t.Context(), p)
		if err == nil && v.Ref != o.Ref {
			return fmt.Errorf("put gave %s, want %s", v.Ref, o.Ref)
		}
		return err
	case "state":
		return m.SetState(t.Context(), o.Ref, o.State, "kill test")
	case "hold":
		return m.Hold(t.Context(), o.Ref, hold(o.Point))
	case "unhold":
		return m.Unhold(t.Context(), o.Ref, hold(o.Point))
	}
	return m.Destroy(t.Context(), o.Ref, "kill test")
}

// choose draws an op that the state allows. Each child has secrets of its own.
func choose(r *rand.Rand, name string, seen map[keymanager.Ref]entry) op {
	id := name + "-" + strconv.Itoa(r.IntN(3))
	next := 1
	var live []keymanager.Ref
	for ref, e := range seen {
		if ref.ID != id {
			continue
		}
		next = max(next, ref.Version+1)
		if e.State != keymanager.Destroyed {
			live = append(live, ref)
		}
	}
	slices.SortFunc(live, func(a, b keymanager.Ref) int { return a.Version - b.Version })
	if len(live) == 0 || len(live) < 4 && r.IntN(3) == 0 {
		content := fmt.Sprintf("content of %s, %d", id, r.Uint64())
		return op{Kind: "put", Ref: keymanager.Ref{ID: id, Version: next}, Content: content, State: keymanager.PreActive}
	}
	ref := live[r.IntN(len(live))]
	e := seen[ref]
	switch k := r.IntN(8); {
	case k < 2:
		for _, s := range []keymanager.State{keymanager.Active, keymanager.Disabled, keymanager.Deactivated} {
			if s != e.State && keymanager.CheckTransition(ref, e.State, s, "r") == nil && r.IntN(2) == 0 {
				return op{Kind: "state", Ref: ref, State: s}
			}
		}
		return op{Kind: "hold", Ref: ref, Point: "p0"}
	case k < 4:
		return op{Kind: "hold", Ref: ref, Point: "p" + strconv.Itoa(r.IntN(5))}
	case len(e.Holds) > 0:
		return op{Kind: "unhold", Ref: ref, Point: e.Holds[0]}
	default:
		return op{Kind: "destroy", Ref: ref}
	}
}

// TestKillChild is what TestKill kills.
func TestKillChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child of TestKill")
	}
	seed, err := strconv.ParseUint(os.Getenv(childSeed), 10, 64)
	must(t, err)
	r := rand.New(rand.NewPCG(seed, 1))
	m := mustOpen(t, dir, KeyFile(os.Getenv(childKey)))
	seen := look(t, m)
	out := json.NewEncoder(os.Stdout)
	for {
		o := choose(r, os.Getenv(childName), seen)
		must(t, out.Encode(o))
		must(t, o.call(t, m))
		seen[o.Ref] = o.apply(seen[o.Ref])
		o.Done = true
		must(t, out.Encode(o))
	}
}

// TestKill lets two processes work on one directory, kills both at a moment
// that nobody chose, and compares with what they had acknowledged.
func TestKill(t *testing.T) {
	dir, _ := newDir(t)
	key := filepath.Join(dir, "..", "..", "keys", "kek.key")
	model := map[keymanager.Ref]entry{}
	phases := map[string]int{}
	known := map[string]bool{} // what earlier kills left, and nobody swept yet
	acknowledged := 0
	// Few kills fall between two files: go on until one did.
	for round := 0; round < 50 || phases["between files"] == 0 && round < 500; round++ {
		pending, done := killRound(t, dir, key, round)
		for _, o := range done {
			model[o.Ref] = o.apply(model[o.Ref])
		}
		acknowledged += len(done)
		phases[phase(t, dir, key, pending, known)]++
		// Without Open's help: readers must cope on their own.
		h, kek, err := readKEK(dir, KeyFile(key))
		must(t, err)
		m := newManager(dir, h.KEK, newKeys(kek), Options{})
		got := look(t, m)
		must(t, m.Close())
		for _, o := range pending {
			if after := o.apply(model[o.Ref]); reflect.DeepEqual(got[o.Ref], after) {
				model[o.Ref] = after
			}
		}
		if !reflect.DeepEqual(got, model) {
			for ref := range maps.Keys(model) {
				if !reflect.DeepEqual(got[ref], model[ref]) {
					t.Errorf("%s is %+v, want %+v", ref, got[ref], model[ref])
				}
			}
			t.Fatalf("after kill %d: %d versions, want %d; under way were %+v", round, len(got), len(model), pending)
		}
	}
	t.Logf("%d calls were acknowledged, %d versions; moments of the kills: %v", acknowledged, len(model), phases)
	if acknowledged < 50 || phases["between files"] == 0 {
		t.Errorf("the kills hit too little: %v", phases)
	}
}

// killRound returns the ops that were under way, and those acknowledged, in order.
func killRound(t *testing.T, dir, key string, round int) (pending, done []op) {
	t.Helper()
	type line struct {
		child int
		op    op
		err   error
	}
	lines := make(chan line)
	children := []string{"a", "b"}
	var running []*exec.Cmd
	for i, name := range children {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKillChild$", "-test.v=false")
		cmd.Env = append(os.Environ(), childDir+"="+dir, childKey+"="+key,
			childSeed+"="+strconv.Itoa(round), childName+"="+name)
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		cmd.Stderr = os.Stderr
		must(t, cmd.Start())
		running = append(running, cmd)
		go func() {
			in := bufio.NewScanner(stdout)
			for in.Scan() {
				var o op
				err := json.Unmarshal(in.Bytes(), &o)
				if err != nil {
					err = fmt.Errorf("child says %q", in.Text())
				}
				lines <- line{i, o, err}
			}
			lines <- line{i, op{}, os.ErrProcessDone}
		}()
	}
	left := 4 + rand.IntN(40)
	under := make([]*op, len(children))
	for ended := 0; ended < len(children); {
		l := <-lines
		switch {
		case errors.Is(l.err, os.ErrProcessDone):
			ended++
			continue
		case l.err != nil:
			t.Error(l.err)
		case l.op.Done:
			done = append(done, l.op)
			under[l.child] = nil
		default:
			under[l.child] = &l.op
		}
		if left--; left == 0 {
			for range rand.IntN(2000) { // anywhere in the calls, not only where a line was printed
				runtime.Gosched()
			}
			for _, cmd := range running {
				must(t, cmd.Process.Kill())
			}
		}
	}
	for _, cmd := range running {
		_ = cmd.Wait() // it was killed
	}
	if left > 0 {
		t.Fatal("the children ended by themselves")
	}
	for _, o := range under {
		if o != nil {
			pending = append(pending, *o)
		}
	}
	return pending, done
}

// phase names what a kill interrupted, by what it left.
func phase(t *testing.T, dir, key string, pending []op, known map[string]bool) string {
	t.Helper()
	inside := false
	for _, path := range stateFiles(t, dir) {
		if isRemains(filepath.Base(path)) && !known[path] {
			inside, known[path] = true, true
		}
	}
	if inside {
		return "inside a file"
	}
	h, kek, err := readKEK(dir, KeyFile(key))
	must(t, err)
	m := newManager(dir, h.KEK, newKeys(kek), Options{})
	defer m.Close()
	tx, end, err := m.begin(t.Context(), false)
	must(t, err)
	defer end()
	names, err := tx.names()
	must(t, err)
	for _, name := range names {
		l, err := tx.load(name)
		must(t, err)
		if l.record == nil || l.adopted || l.record.Generation != tx.index.Records[name] || len(tx.index.Wiping) > 0 {
			return "between files"
		}
	}
	if len(pending) > 0 {
		return "before or after the files"
	}
	return "between calls"
}
