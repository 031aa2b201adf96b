package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

// soak says that there is time: .ci/soak sets it.
func soak() bool { return os.Getenv("LOCKSTEP_SOAK") != "" }

// essential are the phases of each operation of the cycle that a kill must hit.
var essential = map[string][]string{
	"backup": {"segment", "map", "manifest", "log", "sidecar", "catalog", "audit"},
	"copy":   {"offsite segment", "offsite map", "offsite manifest", "offsite log", "offsite sidecar"},
	"prune":  {"log", "ledger", "replica", "delete segment", "delete manifest", "catalog", "audit"},
}

var operations = []string{"backup", "copy", "prune"}

// cyclePhase names the phase of an event: which repository, what kind of
// object, and whether it comes or goes.
func cyclePhase(e event) string {
	name := phaseOf(event{path: strings.Replace(e.path, "/offsite/", "/repository/", 1)})
	under := strings.Contains(e.path, "/repository/") || strings.Contains(e.path, "/offsite/")
	switch {
	case strings.Contains(e.path, "/repository/ledger") && !e.gone:
		return "ledger"
	case name == "" || e.gone && !under:
		return ""
	case (name == "segment" || name == "map") && strings.Contains(filepath.Base(e.path), "-") && !e.gone:
		name = "replica"
	}
	if strings.Contains(e.path, "/offsite/") {
		name = "offsite " + name
	}
	if e.gone {
		name = "delete " + name
	}
	return name
}

// cycle is a machine that is backed up, copied to a second repository and
// pruned, each of it killed and run again.
type cycle struct {
	*killer
	identity envelope.Secret
	needs    map[string]int // recovery point → version of the secret that opens it
	version  int            // that opens the disk as it is
	phrase   string
	kept     [2]map[string]bool // what each repository listed when it was last looked at
	needing  map[string]bool    // listed by the repository that backups write to, or elsewhere with a proof
	took     map[string]time.Duration
	step     int
}

const keepLast = 2

var cyclePlaces = [2]string{"data/repository", "offsite"}

func newCycle(t *testing.T, seed uint64) *cycle {
	k := &killer{
		host: initialised(t), rand: rand.New(rand.NewPCG(seed, 11)), phaseOf: cyclePhase, histogram: map[string]int{},
		sums: map[string]string{}, secrets: map[string]string{},
	}
	c := &cycle{killer: k, needs: map[string]int{}, phrase: "passphrase-0", kept: [2]map[string]bool{{}, {}}, took: map[string]time.Duration{}}
	k.watched = []string{k.data, k.path("offsite")}
	k.disk = k.path("disk.img")
	if err := makeDisk(k.disk, 8*mib, c.phrase); err != nil {
		t.Fatal(err)
	}
	k.do(0, "machine", "add", "web01", "--disk", "vda="+k.disk)
	k.do(0, "repository", "add", "offsite", k.path("offsite"), "--kit", k.path("offsite.kit"))
	k.do(0, "policy", "set", "web01", "--keep-last", strconv.Itoa(keepLast))
	c.escrow()
	var err error
	if c.identity, err = envelope.ReadSecretFile(k.kit, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.identity.Wipe)
	for range keepLast {
		c.change()
		c.perform("backup")
		c.perform("copy")
	}
	return c
}

func (c *cycle) escrow() {
	c.tb.Helper()
	c.addSecret(c.phrase)
	c.version = len(c.secrets)
}

// change writes a good part of the disk anew, and now and then its passphrase.
func (c *cycle) change() {
	c.tb.Helper()
	c.step++
	if err := scribble(c.disk, uint64(c.step), 300); err != nil {
		c.tb.Fatal(err)
	}
	if c.step%4 == 0 {
		next := fmt.Sprintf("passphrase-%d", c.step)
		if err := changePassphrase(c.disk, c.phrase, next); err != nil {
			c.tb.Fatal(err)
		}
		c.phrase = next
		c.escrow()
	}
	c.current = sum(c.tb, c.disk)
}

func arguments(operation string) []string {
	return map[string][]string{
		"backup": {"backup", "web01"},
		"copy":   {"repository", "copy", "web01", "--to", "offsite"},
		"prune":  {"prune", "web01"},
	}[operation]
}

// perform runs an operation to its end, and compares catalog and repositories.
func (c *cycle) perform(operation string) {
	c.tb.Helper()
	started := time.Now()
	c.do(0, arguments(operation)...)
	c.took[operation] = time.Since(started)
	c.look(operation, operation == "prune", false)
	var points []listed
	c.ask(&points, []int{0}, "point", "list", "web01")
	there := map[string]bool{}
	for _, p := range points {
		if len(p.OnlyIn) > 0 { // pruned where backups go, and still in the copy
			if !c.kept[1][p.ID] {
				c.tb.Fatalf("after %s the catalog lists %s in %v, and it is not there", operation, p.ID, p.OnlyIn)
			}
			continue
		}
		there[p.ID] = true
		if p.State != "proven" {
			c.tb.Errorf("%s: recovery point %s is %s with all secrets in custody", operation, p.ID, p.State)
		}
	}
	if !maps.Equal(there, c.kept[0]) {
		c.tb.Fatalf("after %s the catalog lists %v, the repository %v", operation, slices.Sorted(maps.Keys(there)), slices.Sorted(maps.Keys(c.kept[0])))
	}
	switch operation {
	case "backup":
		newest := ""
		for id := range there {
			if c.sums[id] == c.current {
				newest = id
			}
		}
		if newest == "" {
			c.tb.Fatal("a backup was made and is not listed")
		}
	case "prune":
		if len(there) != keepLast {
			c.tb.Fatalf("pruned, %d recovery points are listed", len(there))
		}
	case "copy":
		for id := range there {
			if !c.kept[1][id] {
				c.tb.Fatalf("copied, recovery point %s is not there", id)
			}
		}
	}
}

// kill kills an operation at an event or, without a phase, at random, and wants
// all to be well; then the operation is run again.
func (c *cycle) kill(operation, phase string, n int, delay time.Duration) (hit string) {
	c.tb.Helper()
	hit = c.killAt(phase, n, delay, arguments(operation)...)
	when := fmt.Sprintf("%s killed at %q for %q", operation, hit, phase)
	c.look(when, operation == "prune", true)
	// What any recovery point needs stays, whatever the catalog heard of it, in
	// whichever repository it is listed and whether it was proven yet.
	needed := map[int]bool{}
	for id := range c.needing {
		needed[c.needs[id]] = true
	}
	for version := range needed {
		if r := c.run("", "secret", "destroy", fmt.Sprintf("web01@%d", version), "--reason", "test"); r.exit != 4 {
			c.tb.Fatalf("%s: a secret that recovery points need: %v", when, r)
		}
	}
	c.perform(operation)
	return hit
}

// look reads both repositories without the program: every recovery point that
// they list is what was backed up, and none went but those that were to go.
func (c *cycle) look(when string, pruning, read bool) {
	c.tb.Helper()
	c.needing = map[string]bool{}
	for i, place := range cyclePlaces {
		points, digests := c.readAll(when, place, read)
		there := map[string]bool{}
		for _, id := range points {
			there[id] = true
			if _, known := c.sums[id]; !known {
				c.sums[id], c.needs[id] = c.current, c.version // committed, though nobody lived to say so
			}
			if got := digests[id]; read && got != "" && got != c.sums[id] {
				c.tb.Fatalf("%s: recovery point %s in %s has the digest %s, want %s", when, id, place, got, c.sums[id])
			}
		}
		gone := 0
		for id := range c.kept[i] {
			if !there[id] {
				gone++
			}
		}
		if gone > 0 && (!pruning || i == 1 || len(c.kept[i])-gone < keepLast) {
			c.tb.Fatalf("%s: %d of %d recovery points are gone from %s", when, gone, len(c.kept[i]), place)
		}
		c.kept[i] = there
	}
}

// readAll gives the recovery points in the log's order and, of most, the digest
// of the disk.
func (c *cycle) readAll(when, place string, read bool) (ids []string, digests map[string]string) {
	c.tb.Helper()
	ctx := context.Background()
	fail := func(err error) {
		c.tb.Helper()
		if err != nil {
			c.tb.Fatalf("%s: %s: %v", when, place, err)
		}
	}
	st, err := localdir.Open(c.path(place), localdir.Options{})
	fail(err)
	defer st.Close()
	r, err := repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: c.identity}})
	fail(err)
	defer r.Close()
	machines, err := r.Machines(ctx)
	fail(err)
	digests = map[string]string{}
	for _, m := range machines {
		points, err := r.Points(ctx, m.ID)
		fail(err)
		for i, p := range points {
			ids = append(ids, p.ID)
			sidecars, err := r.Sidecars(ctx, m.ID, p.ID)
			fail(err)
			if place == cyclePlaces[0] || slices.ContainsFunc(sidecars, func(s repository.Sidecar) bool { return s.Kind == repository.SidecarProof }) {
				c.needing[p.ID] = true
			}
			if !read || i+6 < len(points) && c.rand.IntN(4) > 0 {
				continue // many old ones: some each time
			}
			manifest, err := r.Manifest(ctx, p)
			fail(err)
			d, err := r.OpenDisk(ctx, p.Machine, manifest.Disks[0])
			fail(err)
			content := make([]byte, d.Size())
			if n, err := d.ReadAt(content, 0); n != len(content) {
				c.tb.Fatalf("%s: %s: recovery point %s: %v", when, place, p.ID, err)
			}
			digest := sha256.Sum256(content)
			digests[p.ID] = hex.EncodeToString(digest[:])
		}
	}
	return ids, digests
}

// TestKillCycle kills real processes in the middle of backup, copy and prune,
// steered to every phase and at random.
func TestKillCycle(t *testing.T) {
	const hosts = 4
	cycles := 5 // of each host: 60 kills
	if soak() {
		cycles = 42 // over 500
	}
	if testing.Short() {
		cycles = 1
	}
	var mu sync.Mutex
	hits := map[string]map[string]int{}
	kills, spared := 0, 0
	t.Run("hosts", func(t *testing.T) {
		for host := range hosts {
			t.Run(strconv.Itoa(host), func(t *testing.T) {
				t.Parallel()
				c := newCycle(t, uint64(host))
				strike := func(operation string, nth int, all bool) {
					phases := essential[operation]
					phase, n, delay := phases[nth%len(phases)], 1, time.Duration(0)
					mu.Lock()
					for _, p := range phases { // what nobody hit yet goes first
						if all && hits[operation][p] == 0 {
							phase = p
						}
					}
					mu.Unlock()
					switch {
					case all:
					case nth%3 == 2:
						phase, delay = "", time.Duration(c.rand.Int64N(int64(c.took[operation])))
					case nth%3 == 1:
						n, delay = 1+c.rand.IntN(2), time.Duration(c.rand.IntN(1500))*time.Microsecond
					}
					hit := c.kill(operation, phase, n, delay)
					mu.Lock()
					defer mu.Unlock()
					if hits[operation] == nil {
						hits[operation] = map[string]int{}
					}
					if hit != "" {
						hits[operation][hit]++
					}
				}
				missing := func() bool {
					mu.Lock()
					defer mu.Unlock()
					for operation, phases := range essential {
						for _, p := range phases {
							if hits[operation][p] == 0 {
								return true
							}
						}
					}
					return false
				}
				for i := range cycles {
					c.change()
					for _, operation := range operations {
						strike(operation, i+host*3, i+1 == cycles)
					}
				}
				for range 10 {
					if testing.Short() || host > 0 || !missing() {
						break
					}
					c.change()
					for _, operation := range operations {
						strike(operation, 0, true)
					}
				}
				c.do(0, "verify")
				c.do(0, "audit", "verify")
				mu.Lock()
				defer mu.Unlock()
				kills, spared = kills+c.kills, spared+c.spared
			})
		}
	})
	var lines []string
	for _, operation := range operations {
		total := 0
		for phase, n := range hits[operation] {
			total += n
			lines = append(lines, fmt.Sprintf("%-7s %-18s %3d %s", operation, phase, n, strings.Repeat("#", n)))
		}
		if total == 0 {
			t.Errorf("%s was never hit", operation)
		}
		for _, phase := range essential[operation] {
			if hits[operation][phase] == 0 && !testing.Short() {
				t.Errorf("no kill of %s hit the phase %q", operation, phase)
			}
		}
	}
	slices.Sort(lines)
	t.Logf("%d kills (%d runs ended before theirs), phases hit:\n%s", kills, spared, strings.Join(lines, "\n"))
	if want := hosts * cycles * len(operations) * 3 / 4; kills < want {
		t.Errorf("%d kills, at least %d wanted", kills, want)
	}
}
