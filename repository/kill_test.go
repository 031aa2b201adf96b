package repository_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

const killChild = "LOCKSTEP_TEST_KILL_CHILD" // set: this process is the one to be killed

func TestMain(m *testing.M) {
	if os.Getenv(killChild) != "" {
		if err := victim(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// marks tells the parent what the victim is about to do, and waits until it may.
type marks struct {
	mu  sync.Mutex
	out *os.File
	in  *bufio.Reader
}

func (m *marks) say(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := fmt.Fprintf(m.out, format+"\n", args...); err != nil {
		os.Exit(3) // the parent is gone
	}
	if _, err := m.in.ReadByte(); err != nil {
		os.Exit(3)
	}
}

// markedStore marks the phases of a backup around each durable step.
type markedStore struct {
	store.Store
	m *marks
}

func phaseOf(key string) string {
	switch kind := kindOf(key); kind {
	case "seg":
		return "segment"
	case "headers-a", "headers-b":
		return "header"
	case "points":
		return "manifest"
	case "side":
		return "sidecar"
	default:
		return kind
	}
}

func (s markedStore) Put(ctx context.Context, key string, p []byte) error {
	s.m.say("phase %s before", phaseOf(key))
	err := s.Store.Put(ctx, key, p)
	s.m.say("phase %s after", phaseOf(key))
	return err
}

func (s markedStore) Create(ctx context.Context, key string) (store.Writer, error) {
	s.m.say("phase %s create", phaseOf(key))
	w, err := s.Store.Create(ctx, key)
	return markedWriter{w, s.m, phaseOf(key)}, err
}

type markedWriter struct {
	store.Writer
	m     *marks
	phase string
}

func (w markedWriter) Commit() error {
	w.m.say("phase %s before", w.phase)
	err := w.Writer.Commit()
	w.m.say("phase %s after", w.phase)
	return err
}

// generation is what the victim's disk holds after its nth change.
func generation(n int) []byte {
	p := noise(77, 5*65536+300)
	for i := range n + 1 {
		at := (i * 37 % 80) * 4096
		copy(p[at:], noise(uint64(1000+i), 4096))
	}
	return p
}

// victim makes, restores and removes recovery points until it is killed.
func victim() error {
	ctx := ctxBackground
	m := &marks{out: os.NewFile(3, "marks"), in: bufio.NewReader(os.Stdin)}
	var folder, mid string
	var gen, run int
	if _, err := fmt.Sscan(os.Getenv(killChild), &folder, &mid, &gen, &run); err != nil {
		return err
	}
	identity, err := envelope.ReadSecretFile(folder+"/identity", false, nil)
	if err != nil {
		return err
	}
	dir, err := localdir.Open(folder+"/repo", localdir.Options{Trace: func(op, _ string) {
		if op == "link" || op == "sync folder" || op == "unlink" {
			m.say("step %s", strings.ReplaceAll(op, " ", "-"))
		}
	}})
	if err != nil {
		return err
	}
	writer, err := envelope.ReadSigningKeyFile(folder + "/writer.key")
	if err != nil {
		return err
	}
	r, err := repository.Open(ctx, markedStore{dir, m}, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: identity}, Writer: &writer,
	})
	if err != nil {
		return err
	}
	for rounds := range 12 {
		id := fmt.Sprintf("%08x%08x%016x", gen, run, rounds)
		m.say("begin %s", id)
		w, err := r.Begin(ctx, mid, repository.BeginOptions{PointID: id})
		if err != nil {
			return err
		}
		p := generation(gen)
		dd, err := w.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: &memDisk{p: p}})
		if err != nil {
			return err
		}
		m.say("reused %d", dd.Stats.Reused)
		if err := w.FinishMaps(); err != nil {
			return err
		}
		rd, err := w.OpenDisk(ctx, dd)
		if err != nil {
			return err
		}
		hid, err := w.PutHeader(ctx, []disk.Range{{Offset: 0, Length: 512}, {Offset: int64(gen%80) * 4096, Length: 16}}, 1<<20, rd)
		if err != nil {
			return err
		}
		dd.Headers = []repository.HeaderRef{{Volume: "v", ID: hid}}
		point, err := w.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{dd}})
		if err != nil {
			return err
		}
		m.say("point %s", id)
		key, err := r.PutSidecar(ctx, mid, id, repository.SidecarProof, []byte(id))
		if err != nil {
			return err
		}
		m.say("side %s", key)
		m.say("phase restore before")
		got, err := readPoint(r, point)
		if err != nil || !bytes.Equal(got, p) {
			return errors.Join(errors.New("restored otherwise"), err)
		}
		points, err := r.Points(ctx, mid)
		if err != nil {
			return err
		}
		if len(points) > 6 {
			m.say("dying %s", points[0].ID)
			if err := r.Delete(ctx, mid, points[0].ID, "test"); err != nil {
				return err
			}
			m.say("deleted %s", points[0].ID)
		}
		gen++
	}
	return nil
}

// blow says when to kill: at the nth time that the phase comes to the mark. A
// racing one is dealt after the victim was let go on.
type blow struct {
	phase, mark string
	nth         int
	racing      bool
}

func (b blow) String() string { return fmt.Sprintf("%s/%s", b.phase, b.mark) }

// TestKill kills real processes at every phase of a backup and in a restore.
func TestKill(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("hands a pipe to the child as file 3")
	}
	dir := t.TempDir()
	st, err := localdir.Create(dir+"/repo", localdir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	f := newFixture(t, st, repository.SealingAESGCM)
	if err := envelope.WriteSigningKeyFile(dir+"/writer.key", f.writer); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/identity", f.identity.Expose(), 0o600); err != nil {
		t.Fatal(err)
	}
	var blows []blow
	for _, phase := range []string{"segment", "map", "header", "manifest", "log", "sidecar"} {
		for _, mark := range []string{"before", "link", "sync-folder", "unlink", "after"} {
			blows = append(blows, blow{phase, mark, 1, false})
		}
		for n := 1; n <= 3; n++ {
			blows = append(blows, blow{phase, "before", n, true}, blow{phase, "link", n, true})
		}
	}
	blows = append(blows, blow{"segment", "create", 1, false}, blow{"map", "create", 2, true}, blow{"restore", "before", 1, false}, blow{"restore", "before", 3, true}, blow{"log", "after", 3, true})
	k := &killing{fixture: f, dir: dir, gens: map[string]int{}, acked: map[string]bool{}, deleted: map[string]bool{}, sides: map[string]string{}}
	hits := map[string]int{}
	for run, b := range blows {
		if !k.strike(t, run, b) {
			t.Fatalf("%s: the victim never came to it for the %d. time", b, b.nth)
		}
		hits[b.phase]++
		if err := k.check(t); err != nil {
			t.Fatalf("after %s: %v", b, err)
		}
	}
	lines := []string{}
	for phase, n := range hits {
		lines = append(lines, fmt.Sprintf("%-9s %2d %s", phase, n, strings.Repeat("#", n)))
	}
	sort.Strings(lines)
	t.Logf("%d kills, %d recovery points acknowledged, %d bytes resumed:\n%s", len(blows), len(k.acked), k.reused, strings.Join(lines, "\n"))
	for _, phase := range []string{"segment", "map", "header", "manifest", "log", "sidecar", "restore"} {
		if hits[phase] == 0 {
			t.Errorf("phase %s was never hit", phase)
		}
	}
	if len(blows) < 40 {
		t.Errorf("only %d kills", len(blows))
	}
	if k.reused == 0 {
		t.Error("no attempt went on from what an earlier one had stored")
	}
	if n, err := st.CleanTemp(ctxBackground, 0); err != nil || n == 0 {
		t.Errorf("%d temporary files were left by %d kills, %v", n, len(blows), err)
	}
}

type killing struct {
	*fixture
	dir     string
	gen     int
	gens    map[string]int // generation of every recovery point that was begun
	acked   map[string]bool
	deleted map[string]bool
	dying   string
	sides   map[string]string // key → point
	reused  int64
}

// strike starts a victim, follows its marks, and kills it. It reports whether
// the mark came.
func (k *killing) strike(t *testing.T, run int, b blow) bool {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	marksR, marksW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer marksR.Close()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d", killChild, k.dir, k.machine.ID, k.gen, run))
	cmd.ExtraFiles = []*os.File{marksW}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	acks, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = marksW.Close()
	phase, seen, killed := "", 0, false
	lines := bufio.NewScanner(marksR)
	for lines.Scan() { // to the end, for what was acknowledged before the kill counts
		what, rest, _ := strings.Cut(lines.Text(), " ")
		mark := rest
		switch what {
		case "phase":
			phase, mark, _ = strings.Cut(rest, " ")
		case "step":
		default:
			k.note(t, what, rest)
			mark = ""
		}
		if killed {
			continue
		}
		if phase == b.phase && mark == b.mark {
			seen++
		}
		if seen == b.nth && !b.racing {
			killed = true
			_ = cmd.Process.Kill()
			continue
		}
		if _, err := acks.Write([]byte{'.'}); err != nil {
			break
		}
		if seen == b.nth {
			killed = true
			_ = cmd.Process.Kill()
		}
	}
	err = cmd.Wait()
	if !killed {
		t.Logf("the victim ended with %v: %s", err, stderr.String())
	}
	return killed
}

func (k *killing) note(t *testing.T, what, rest string) {
	t.Helper()
	switch what {
	case "begin":
		if _, err := fmt.Sscanf(rest[:8], "%x", &k.gen); err != nil {
			t.Fatal(err)
		}
		k.gens[rest] = k.gen
	case "point":
		k.acked[rest] = true
		k.gen = k.gens[rest] + 1
	case "side":
		k.sides[rest] = strings.Split(rest, "/")[2]
	case "dying":
		k.dying = rest
	case "deleted":
		k.deleted[rest] = true
	case "reused":
		var n int64
		if _, err := fmt.Sscan(rest, &n); err != nil {
			t.Fatal(err)
		}
		k.reused += n
	default:
		t.Fatalf("the victim says %s %s", what, rest)
	}
}

// check opens the repository as the next process would.
func (k *killing) check(t *testing.T) error {
	r := k.open(t)
	defer r.Close()
	points, err := r.Points(ctxBackground, k.machine.ID)
	if err != nil {
		return err
	}
	listed, found := map[string]bool{}, map[string]bool{}
	for i, p := range points {
		listed[p.ID] = true
		gen, ok := k.gens[p.ID]
		if !ok || k.deleted[p.ID] {
			return fmt.Errorf("recovery point %s is listed", p.ID)
		}
		got, err := readPoint(r, p)
		if err != nil || !bytes.Equal(got, generation(gen)) {
			return errors.Join(fmt.Errorf("recovery point %d of %d, %s, is not what was backed up", i, len(points), p.ID), err)
		}
		m, err := r.Manifest(ctxBackground, p)
		if err != nil {
			return err
		}
		if err := r.CheckHeader(ctxBackground, k.machine.ID, m.Disks[0].Headers[0].ID); err != nil {
			return err
		}
		ss, err := r.Sidecars(ctxBackground, k.machine.ID, p.ID)
		if err != nil {
			return err
		}
		for _, s := range ss {
			if string(s.Raw) != p.ID {
				return fmt.Errorf("sidecar %s is not what was stored", s.Key)
			}
			found[s.Key] = true
		}
	}
	for key, point := range k.sides {
		if listed[point] && !found[key] {
			return fmt.Errorf("sidecar %s was acknowledged and is gone", key)
		}
	}
	for id := range k.acked {
		if !listed[id] && !k.deleted[id] && id != k.dying {
			return fmt.Errorf("recovery point %s was acknowledged and is not listed", id)
		}
	}
	if k.dying != "" && !listed[k.dying] {
		k.deleted[k.dying] = true
	}
	return nil
}
