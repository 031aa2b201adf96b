package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// phases are where a kill may hit, and what of the data directory shows it.
var phases = []struct{ name, under string }{
	{"segment", "repository/seg"},
	{"map", "repository/map"},
	{"header", "repository/headers-a"},
	{"manifest", "repository/points"},
	{"log", "repository/log"},
	{"sidecar", "repository/side"},
	{"key store", "keymanager"},
	{"catalog", "catalog.db"},
	{"audit", "audit"},
	{"target", "targets"},
}

// phaseOf names the phase of an event, "" = none. Objects are written in ~tmp and
// linked to their place, so a name that appears is the end of its writing.
func phaseOf(e event) string {
	for _, p := range phases {
		if !e.gone && strings.Contains(e.path, "/"+p.under) {
			return p.name
		}
	}
	return ""
}

// watch sees what processes do below folders, with inotify.
type watch struct {
	tb   testing.TB
	fd   int
	dirs map[int32]string
}

func newWatch(tb testing.TB, roots ...string) *watch {
	tb.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	w := &watch{tb, fd, map[int32]string{}}
	tb.Cleanup(w.close)
	for _, r := range roots {
		w.add(r)
	}
	return w
}

func (w *watch) close() {
	if w.fd >= 0 {
		_ = unix.Close(w.fd)
		w.fd = -1
	}
}

func (w *watch) add(root string) {
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil // it may be gone again
		}
		id, err := unix.InotifyAddWatch(w.fd, p, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ONLYDIR)
		if err == nil {
			w.dirs[int32(id)] = p
		}
		return nil
	})
}

// event is that something at a path was made, written or removed.
type event struct {
	path string
	gone bool
}

// next returns the events that are there, and none after wait.
func (w *watch) next(wait time.Duration) []event {
	poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int(wait.Milliseconds())); n == 0 || err != nil {
		return nil
	}
	var buf [64 << 10]byte
	n, err := unix.Read(w.fd, buf[:])
	if err != nil || n <= 0 {
		return nil
	}
	var events []event
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		id := int32(binary.NativeEndian.Uint32(b[0:]))
		mask := binary.NativeEndian.Uint32(b[4:])
		size := int(binary.NativeEndian.Uint32(b[12:]))
		name := string(bytes.TrimRight(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], "\x00"))
		b = b[unix.SizeofInotifyEvent+size:]
		path := filepath.Join(w.dirs[id], name)
		if mask&unix.IN_ISDIR != 0 && mask&unix.IN_CREATE != 0 {
			w.add(path)
		}
		events = append(events, event{path, mask&unix.IN_DELETE != 0})
	}
	return events
}

// killer kills lockstep processes in chosen phases and keeps account.
type killer struct {
	*host
	rand      *rand.Rand
	phaseOf   func(event) string
	watched   []string // folders
	histogram map[string]int
	kills     int
	spared    int // runs that ended before the event came

	disk    string
	sums    map[string]string // recovery point → SHA-256 of the disk as it was
	current string            // SHA-256 of the disk as it is
	secrets map[string]string // acknowledged SECRET@VERSION → passphrase
	server  *exec.Cmd
}

// killAt runs a command and kills victim, a process group, at the n-th event
// of a phase, or where none is named after the delay. It returns the phase that
// was hit, "" where the command ended by itself.
func (k *killer) killAt(phase string, n int, delay time.Duration, args ...string) string {
	k.tb.Helper()
	w := newWatch(k.tb, k.watched...)
	defer w.close()
	cmd := k.command(args...)
	if err := cmd.Start(); err != nil {
		k.tb.Fatal(err)
	}
	started := time.Now()
	victim := cmd
	if k.server != nil {
		victim = k.server
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	seen, last, killed := 0, "start", false
	account := func(events []event) bool {
		for _, e := range events {
			if ph := k.phaseOf(e); ph != "" {
				last = ph
				if ph == phase {
					seen++
				}
			}
		}
		return seen >= n
	}
	wait := 20 * time.Millisecond
	if phase == "" {
		wait = time.Millisecond
	}
	for running := true; running && !killed; {
		hit := account(w.next(wait))
		if phase == "" {
			hit = time.Since(started) >= delay
		}
		select {
		case <-ended:
			running = false
			continue
		default:
		}
		if !hit {
			continue
		}
		for until := time.Now().Add(delay); phase != "" && time.Now().Before(until); { // spins: shorter than a sleep can be
		}
		if err := syscall.Kill(-victim.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			k.tb.Fatal(err)
		}
		killed = true
	}
	if killed {
		if victim != cmd {
			_ = victim.Wait()
		} else {
			<-ended
		}
		// What was done before the end came shows where it hit.
		for events := w.next(0); len(events) > 0; events = w.next(0) {
			account(events)
		}
		if victim != cmd {
			k.startServer() // the command looks for it again
		}
	}
	<-ended
	if !killed || victim == cmd && cmd.ProcessState.ExitCode() != -1 {
		k.spared++
		return ""
	}
	k.kills++
	k.histogram[last]++
	return last
}

func (k *killer) startServer() {
	k.tb.Helper()
	cmd := k.command("serve", "--allow-source", k.dir, "--allow-target", k.dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	ready, err := startReady(cmd)
	if err != nil || !ready {
		k.tb.Fatalf("start the server: %v", err)
	}
	k.server = cmd
}

type listed struct {
	ID     string   `json:"id"`
	State  string   `json:"state"`
	OnlyIn []string `json:"only_in"`
	Disks  []struct {
		ID   string `json:"id"`
		Root string `json:"content_root"`
		Size int64  `json:"size_bytes"`
	} `json:"disks"`
}

// check wants everything that was listed or acknowledged before to be there.
func (k *killer) check(when string) {
	k.tb.Helper()
	var points []listed
	k.ask(&points, []int{0}, "point", "list", "web01")
	there := map[string]bool{}
	for _, p := range points {
		there[p.ID] = true
		if _, known := k.sums[p.ID]; !known {
			k.sums[p.ID] = k.current // committed, though nobody lived to say so
		}
	}
	for id := range k.sums {
		if !there[id] {
			k.tb.Fatalf("%s: recovery point %s was listed and is gone", when, id)
		}
	}
	var secrets []struct {
		ID       string `json:"id"`
		Versions []struct {
			Version int    `json:"version"`
			State   string `json:"state"`
		} `json:"versions"`
	}
	k.ask(&secrets, []int{0}, "secret", "list")
	have := map[string]string{}
	for _, s := range secrets {
		for _, v := range s.Versions {
			have[fmt.Sprintf("%s@%d", s.ID, v.Version)] = v.State
		}
	}
	for ref := range k.secrets {
		if have[ref] == "" || have[ref] == "destroyed" {
			k.tb.Fatalf("%s: secret %s was acknowledged and is gone", when, ref)
		}
	}
	var report struct{ Problems []string }
	k.ask(&report, []int{0, 6}, "audit", "verify")
	for _, p := range report.Problems {
		// What was being written when the kill came waits for the next writer.
		if strings.Contains(when, "next run") || !strings.Contains(p, "a crash alone explains this") {
			k.tb.Fatalf("%s: the audit log is not accepted: %s", when, p)
		}
	}
}

// compareWithRepository wants the recovery points of the catalog to be those
// that a reader of the repository finds without it.
func (k *killer) compareWithRepository() {
	k.tb.Helper()
	var points []listed
	k.ask(&points, []int{0}, "point", "list", "web01")
	var found struct {
		Machines []struct {
			Points []struct {
				ID      string
				Damaged bool
				Volumes []struct{ Access string }
			}
		}
		Problems []string
	}
	r := k.recover(0, "list", "-o", "json", "--repository", k.path("data", "repository"), "--identity", k.kit)
	if err := json.Unmarshal([]byte(r.stdout), &found); err != nil || len(found.Machines) != 1 || len(found.Problems) != 0 {
		k.tb.Fatalf("%v: %v", err, r)
	}
	inLog := map[string]bool{}
	for _, p := range found.Machines[0].Points {
		inLog[p.ID] = true
		for _, v := range p.Volumes {
			// Its proof and its key package are in the repository, too.
			if p.Damaged || v.Access != "ready" {
				k.tb.Errorf("recovery point %s with the kit alone: damaged %v, volume %s", p.ID, p.Damaged, v.Access)
			}
		}
	}
	inCatalog := map[string]bool{}
	for _, p := range points {
		inCatalog[p.ID] = true
	}
	for id := range k.sums {
		if !inLog[id] || !inCatalog[id] {
			k.tb.Errorf("recovery point %s: in the repository %v, in the catalog %v", id, inLog[id], inCatalog[id])
		}
	}
	if len(inLog) != len(k.sums) || len(inCatalog) != len(k.sums) {
		k.tb.Errorf("%d recovery points are known, %d in the repository, %d in the catalog", len(k.sums), len(inLog), len(inCatalog))
	}
}

// restoreOne restores a recovery point and compares it with what the disk was.
func (k *killer) restoreOne(id string) {
	k.tb.Helper()
	target := k.path("targets", "check.img")
	_ = os.Remove(target)
	r := k.run("", "restore", id, "--disk", "vda="+target)
	if r.exit != 0 && r.exit != 3 {
		k.tb.Fatalf("%v", r)
	}
	if got := sum(k.tb, target); got != k.sums[id] {
		k.tb.Fatalf("recovery point %s is restored as %s, was %s", id, got, k.sums[id])
	}
	if err := os.Remove(target); err != nil {
		k.tb.Fatal(err)
	}
}

func newKiller(t *testing.T, seed uint64, server bool) *killer {
	k := &killer{
		host: initialised(t), rand: rand.New(rand.NewPCG(seed, 9)), phaseOf: phaseOf, histogram: map[string]int{},
		sums: map[string]string{}, secrets: map[string]string{},
	}
	if err := os.Mkdir(k.path("targets"), 0o700); err != nil {
		t.Fatal(err)
	}
	k.watched = []string{k.data, k.path("targets")}
	k.disk = k.path("disk.img")
	if err := makeDisk(k.disk, 12*mib, "passphrase-0"); err != nil {
		t.Fatal(err)
	}
	k.current = sum(t, k.disk)
	if server {
		k.startServer()
	}
	t.Cleanup(func() {
		if k.server != nil {
			_ = syscall.Kill(-k.server.Process.Pid, syscall.SIGKILL)
			_ = k.server.Wait()
		}
	})
	k.do(0, "machine", "add", "web01", "--disk", "vda="+k.disk)
	k.addSecret("passphrase-0")
	k.do(0, "backup", "web01")
	k.check("at first")
	return k
}

// addSecret escrows a passphrase, and remembers it as acknowledged.
func (k *killer) addSecret(phrase string) {
	k.tb.Helper()
	var added struct {
		Secret  string
		Version int
	}
	k.ask(&added, []int{0}, "secret", "add", "web01", "--kind", "passphrase", "--file", k.write("secret", phrase))
	k.secrets[fmt.Sprintf("%s@%d", added.Secret, added.Version)] = phrase
}

// TestKill kills real processes, in the middle of backups, of taking a secret
// into custody and of restores, at moments that are steered to every phase.
func TestKill(t *testing.T) {
	for _, c := range []struct {
		name   string
		server bool
		rounds int
	}{{"process", false, 1}, {"server", true, 1}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if soak() {
				c.rounds *= 6
			}
			killLoop(t, c.server, c.rounds)
		})
	}
}

// moment is an operation and a phase that it passes through with at least so
// many events.
type moment struct {
	operation, phase string
	events           int
}

var moments = []moment{
	{"backup", "segment", 1},
	{"backup", "map", 1},
	{"backup", "header", 1},
	{"backup", "manifest", 1},
	{"backup", "log", 1},
	{"backup", "sidecar", 2},
	{"backup", "catalog", 10},
	{"backup", "audit", 2},
	{"secret", "key store", 4},
	{"secret", "sidecar", 2},
	{"secret", "catalog", 4},
	{"secret", "audit", 2},
	{"restore", "target", 3},
	{"restore", "audit", 1},
}

func killLoop(t *testing.T, server bool, rounds int) {
	k := newKiller(t, 42, server)
	phrase := 0
	if testing.Short() {
		rounds = 1
	}
	step := 0
	kill := func(m moment, round int) {
		step++
		when := fmt.Sprintf("kill %d, %s in %s", step, m.operation, m.phase)
		// At once in every other round, and at the first event: so that each phase is hit.
		n, delay := 1, time.Duration(0)
		if round%2 == 1 {
			n, delay = 1+k.rand.IntN(m.events), time.Duration(k.rand.IntN(1500))*time.Microsecond
		}
		switch m.operation {
		case "backup":
			seed := uint64(step)
			if err := scribble(k.disk, seed, 40); err != nil {
				t.Fatal(err)
			}
			if m.phase == "header" || m.phase == "sidecar" { // a header of its own is tried and copied again
				phrase++
				if err := changePassphrase(k.disk, fmt.Sprintf("passphrase-%d", phrase-1), fmt.Sprintf("passphrase-%d", phrase)); err != nil {
					t.Fatal(err)
				}
				if m.phase == "sidecar" {
					k.addSecret(fmt.Sprintf("passphrase-%d", phrase))
				}
			}
			k.current = sum(t, k.disk)
			k.killAt(m.phase, n, delay, "backup", "web01")
			k.check(when)
			// The next run goes on from there.
			var p listed
			k.ask(&p, []int{0, 3}, "backup", "web01")
			if p.State == "unrecoverable" {
				k.addSecret(fmt.Sprintf("passphrase-%d", phrase))
			}
			k.check(when + ", and the next run")
		case "secret":
			phrase++
			if err := changePassphrase(k.disk, fmt.Sprintf("passphrase-%d", phrase-1), fmt.Sprintf("passphrase-%d", phrase)); err != nil {
				t.Fatal(err)
			}
			k.current = sum(t, k.disk)
			var p listed
			k.ask(&p, []int{3}, "backup", "web01")
			k.check(when + ", before")
			file := k.write("secret", fmt.Sprintf("passphrase-%d", phrase))
			k.killAt(m.phase, n, delay, "secret", "add", "web01", "--kind", "passphrase", "--file", file)
			k.check(when)
			k.addSecret(fmt.Sprintf("passphrase-%d", phrase))
			k.check(when + ", and the next run")
			var shown listed
			k.ask(&shown, []int{0}, "point", "show", p.ID)
			if shown.State != "proven" {
				t.Fatalf("%s: the recovery point is %s with its secret in custody", when, shown.State)
			}
		case "restore":
			ids := slices.Sorted(maps.Keys(k.sums))
			id := ids[k.rand.IntN(len(ids))]
			target := k.path("targets", "killed.img")
			k.killAt(m.phase, n, delay, "restore", id, "--disk", "vda="+target)
			k.check(when)
			if r := k.run("", "restore", id, "--disk", "vda="+target, "--force"); r.exit != 0 && r.exit != 3 {
				t.Fatalf("%s, and again: %v", when, r)
			}
			if got := sum(t, target); got != k.sums[id] {
				t.Fatalf("%s: restored again as %s, was %s", when, got, k.sums[id])
			}
			if err := os.Remove(target); err != nil {
				t.Fatal(err)
			}
			k.restoreOne(ids[k.rand.IntN(len(ids))])
		}
	}
	for round := range rounds {
		for _, m := range moments {
			kill(m, round)
		}
	}
	for extra := range 8 {
		for _, m := range moments {
			if k.histogram[m.phase] == 0 {
				kill(m, 2*extra)
			}
		}
	}

	// At the end one more backup brings up to date whatever was left over, and
	// the points that are listed are those that the repository has by itself.
	var newest listed
	k.ask(&newest, []int{0}, "backup", "web01")
	k.sums[newest.ID] = k.current
	k.check("at the end, and the next run")
	k.compareWithRepository()

	// Everything restores, and what holds is held.
	for _, id := range slices.Sorted(maps.Keys(k.sums)) {
		k.restoreOne(id)
	}
	k.do(0, "verify")
	var points []listed
	k.ask(&points, []int{0}, "point", "list", "web01")
	if len(points) != len(k.sums) {
		t.Errorf("%d recovery points listed, %d known", len(points), len(k.sums))
	}
	for _, p := range points {
		if p.State != "proven" {
			t.Errorf("recovery point %s is %s with all secrets in custody", p.ID, p.State)
		}
	}
	held := map[string]bool{}
	var secrets []struct {
		Versions []struct{ Holds []struct{ Point string } }
	}
	k.ask(&secrets, []int{0}, "secret", "list")
	for _, s := range secrets {
		for _, v := range s.Versions {
			for _, h := range v.Holds {
				held[h.Point] = true
			}
		}
	}
	for id := range k.sums {
		if !held[id] {
			t.Errorf("recovery point %s is proven and holds no secret", id)
		}
	}
	k.do(0, "audit", "verify")

	var lines []string
	for _, p := range phases {
		lines = append(lines, fmt.Sprintf("  %-10s %3d %s", p.name, k.histogram[p.name], strings.Repeat("#", k.histogram[p.name])))
		if k.histogram[p.name] == 0 && !testing.Short() {
			t.Errorf("no kill hit the phase %q", p.name)
		}
	}
	if want := rounds * len(moments) * 3 / 4; k.kills < want {
		t.Errorf("%d kills, at least %d wanted", k.kills, want)
	}
	fmt.Printf("%s: %d kills (%d runs ended before theirs), %d recovery points, phases hit:\n%s\n",
		t.Name(), k.kills, k.spared, len(k.sums), strings.Join(lines, "\n"))
}
