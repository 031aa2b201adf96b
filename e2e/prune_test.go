package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/image"
)

// clocked is an installation whose clock the test sets: the server, in this
// process, and the commands that speak to it.
type clocked struct {
	*provetest.Env
	server *server.Server
}

func newClocked(t *testing.T) *clocked {
	w := &clocked{Env: provetest.New(t)}
	log, err := audit.Open(t.TempDir(), w.Custodian, envelope.KeySet{w.Custodian.Public()})
	w.Must(err)
	_, err = log.Append(t.Context(), audit.Event{Time: w.Now(), Actor: "uid:0", Action: "init", Outcome: audit.Done})
	w.Must(err)
	custodian := filepath.Join(t.TempDir(), "custodian.key")
	w.Must(envelope.WriteSigningKeyFile(custodian, w.Custodian))
	w.server = server.New(server.Deps{
		Catalog:    func(context.Context) (*catalog.Catalog, error) { return w.Catalog, nil },
		Repository: func(context.Context) (*repository.Repository, error) { return w.Repo, nil },
		Manager:    func(context.Context) (keymanager.Manager, error) { return w.Manager, nil },
		Custodian:  func() (envelope.SigningKey, error) { return envelope.ReadSigningKeyFile(custodian) }, // it is wiped after use
		Rebuild: func(_ context.Context, fill func(*catalog.Catalog) error) error {
			c := w.OpenCatalog("rebuilt.db")
			if err := fill(c); err != nil {
				return err
			}
			w.Catalog, w.Env.Deps.Catalog = c, c
			return nil
		},
		Prover: w.Env.Deps.Prover, Recipients: w.Env.Deps.Recipients, Audit: log,
		OpenSource: func(context.Context, string, source.Options) (source.Disk, error) { return nil, source.ErrNotFound },
		OpenTarget: func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
			return image.Opener{}.Open(ctx, spec, size, o)
		},
		Formats: w.Env.Deps.Formats, Locks: job.NewLocks(""), Installation: w.Env.Deps.Installation,
		Repositories: onePlace{w}, Software: "lockstep test", Actor: "uid:0", Now: w.Now,
	})
	t.Cleanup(func() { _ = w.server.Shutdown(context.Background()) })
	return w
}

// onePlace is an installation with one repository.
type onePlace struct{ w *clocked }

func (p onePlace) List() []server.Place {
	return []server.Place{{Name: "primary", ID: p.w.Repo.ID(), URL: "mem:", TrustRoot: p.w.Repo.Trust().Root, Primary: true, Local: true}}
}

func (p onePlace) Open(context.Context, string) (*repository.Repository, error) { return p.w.Repo, nil }

func (onePlace) Add(context.Context, server.NewPlace) (server.AddedPlace, error) {
	return server.AddedPlace{}, errors.New("not here")
}

func (onePlace) Promote(context.Context, string) error { return errors.New("not here") }
func (onePlace) Remove(context.Context, string) error  { return errors.New("not here") }

// run runs a command that ends with an exit status.
func (w *clocked) run(code int, args ...string) (stdout, stderr string) {
	w.T.Helper()
	var out, errs bytes.Buffer
	got := cli.Main(context.Background(), cli.Env{
		Args: args, Stdout: &out, Stderr: &errs,
		Connect: func(context.Context, cli.Connection) (*api.Client, func() error, error) {
			return api.NewHandler(w.server), nil, nil
		},
	})
	if got != code {
		w.T.Fatalf("lockstep %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func answered[T any](w *clocked, code int, args ...string) T {
	w.T.Helper()
	out, _ := w.run(code, append([]string{"-o", "json"}, args...)...)
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		w.T.Fatalf("lockstep %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

func (w *clocked) listed() (ids []string) {
	w.T.Helper()
	points := answered[[]api.Point](w, 0, "point", "list", "web01")
	for _, p := range slices.Backward(points) {
		ids = append(ids, p.ID)
	}
	return ids
}

// held is how many recovery points hold a version of the machine's secret.
func (w *clocked) held(version int) int {
	w.T.Helper()
	s := answered[api.Secret](w, 0, "secret", "show", "web01")
	for _, v := range s.Versions {
		if v.Version == version {
			return len(v.Holds)
		}
	}
	w.T.Fatalf("there is no version %d", version)
	return 0
}

// TestPruneStory: a machine that was backed up every six hours for ten days,
// with its passphrase changed on the way, is pruned by its policy.
func TestPruneStory(t *testing.T) {
	w := newClocked(t)
	dev := w.Encrypted("old")
	m := w.Machine("web01", map[string]*provetest.Device{"vda": dev})
	if _, err := w.Add(m, "old"); err != nil && !errors.Is(err, catalog.ErrNotFound) {
		t.Fatal(err)
	}
	// In Berlin summer time ends on 25 October: that day has five of them.
	start := time.Date(2026, 10, 20, 22, 0, 0, 0, time.UTC)
	var ids []string
	var disks [][]byte
	for i := range 40 {
		w.Clock = start.Add(time.Duration(i) * 6 * time.Hour)
		if i == 12 {
			w.Rotate(dev, "old", "new")
			if _, err := w.Add(m, "new"); err != nil {
				t.Fatal(err)
			}
		}
		_, err := dev.WriteAt(fmt.Appendf(nil, "%04d", i), dev.Size()-4096)
		w.Must(err)
		id, res := w.Backup(m)
		if res.Verdict.State != "proven" {
			t.Fatalf("recovery point %d is %s: %v", i, res.Verdict.State, res.Problems)
		}
		ids = append(ids, id)
		disks = append(disks, bytes.Clone(dev.Bytes))
	}
	if a, b := w.held(1), w.held(2); a != 12 || b != 28 {
		t.Fatalf("%d and %d holds", a, b)
	}

	w.run(0, "point", "pin", ids[3], "--reason", "before the move")
	w.run(0, "point", "tag", ids[5], "release=9")
	w.run(0, "point", "tag", ids[6], "release=9")
	w.run(0, "point", "untag", ids[6], "release")
	w.run(0, "point", "hold", ids[7], "--case", "CASE-12", "--reason", "asked for")
	w.run(0, "policy", "set", "--default", "--keep-last", "1")
	w.run(0, "policy", "set", "web01", "--keep-last", "0", "--daily", "7", "--within", "12h", "--keep-tag", "release", "--timezone", "Europe/Berlin")
	w.run(2, "policy", "set", "web01", "--timezone", "Europe/Berlni")

	// The days of Berlin end at indexes 3, 7, 11, 15, 20 (25 October), 24, 28, 32,
	// 36; 39 is the newest, on the 30th.
	days := []string{"2026-10-25", "2026-10-26", "2026-10-27", "2026-10-28", "2026-10-29", "2026-10-30"}
	out, _ := w.run(0, "prune", "web01", "--dry-run")
	plan := answered[api.PruneResult](w, 0, "prune", "web01", "--dry-run").Machines[0]
	if len(plan.Points) != 40 || plan.Origin != api.PolicyOwn {
		t.Fatalf("the plan has %d recovery points, by the policy of %s", len(plan.Points), plan.Origin)
	}
	why := map[string]string{}
	for _, p := range plan.Points {
		why[p.Point] = strings.Join(p.Reasons, "; ")
		if p.Keep != strings.Contains(out, why[p.Point]) && !strings.Contains(out, why[p.Point]) {
			t.Errorf("the table does not say of %s: %s", p.Point, why[p.Point])
		}
	}
	for i, words := range map[int]string{
		39: "newest; daily 1 of 7 (2026-10-30)", 3: "pinned by uid:0 (before the move)", 5: "tagged release=9", 7: "legal hold CASE-12 (asked for)",
		6: "daily: 2026-10-22 is beyond 7; older than 12 hours", 19: "daily: 2026-10-25 is kept by " + ids[20][:12] + "; older than 12 hours", 38: "within 12 hours",
	} {
		if !strings.Contains(why[ids[i]], words) {
			t.Errorf("recovery point %d: %q, want %q", i, why[ids[i]], words)
		}
	}
	for n, day := range days {
		if !strings.Contains(out, fmt.Sprintf("daily %d of 7 (%s)", len(days)-n, day)) {
			t.Errorf("no recovery point of %s", day)
		}
	}
	if got := w.listed(); !slices.Equal(got, ids) {
		t.Fatal("the dry run deleted something")
	}
	w.run(4, "secret", "destroy", "web01@1")

	done := answered[api.PruneResult](w, 0, "prune", "web01").Machines[0]
	var want []string
	for _, i := range []int{3, 5, 7, 15, 20, 24, 28, 32, 36, 38, 39} {
		want = append(want, ids[i])
	}
	if got := w.listed(); !slices.Equal(got, want) || done.Deleted != 40-len(want) || done.ReleasedHolds != done.Deleted || done.Kept != len(want) {
		t.Fatalf("left %v, want %v; %+v", got, want, done)
	}
	if done.FreedObjects == 0 || done.FreedBytes == 0 {
		t.Errorf("nothing was reclaimed: %+v", done)
	}
	if w.held(1)+w.held(2) != len(want) || w.held(1) != 3 {
		t.Errorf("holds %d and %d of %d", w.held(1), w.held(2), len(want))
	}
	w.run(4, "secret", "destroy", "web01@1")
	w.run(4, "point", "delete", ids[3])
	w.run(4, "point", "delete", ids[7])

	// What is kept restores byte for byte.
	for _, i := range []int{3, 20, 39} {
		to := filepath.Join(t.TempDir(), "restored.img")
		w.run(0, "restore", ids[i], "--disk", "vda="+to)
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, disks[i]) {
			t.Errorf("recovery point %d restores as something else: %v", i, err)
		}
	}

	// Without the catalog, pins, tags, legal holds and the policy come back from
	// the repository, and nothing more is pruned than before.
	w.Env.Repo = w.OpenRepo()
	w.Env.Deps.Repo = w.Env.Repo
	w.run(0, "catalog", "rebuild")
	if v := answered[api.PolicyView](w, 0, "policy", "show", "web01"); v.Origin != api.PolicyOwn || v.Policy.Retention.Daily != 7 || v.Policy.Retention.Within != "12h" {
		t.Errorf("policy after the rebuild: %+v", v)
	}
	if m := answered[api.PruneResult](w, 0, "prune", "web01").Machines[0]; m.Deleted != 0 {
		t.Errorf("pruned by a policy that came back: %+v", m)
	}
	out, _ = w.run(0, "point", "show", ids[3])
	if !strings.Contains(out, "before the move (by uid:0") {
		t.Errorf("no pin after the rebuild:\n%s", out)
	}
	out, _ = w.run(0, "point", "list", "web01")
	for _, s := range []string{"[pinned]", "[release=9]", "[held: CASE-12]"} {
		if !strings.Contains(out, s) {
			t.Errorf("no %s in\n%s", s, out)
		}
	}

	// Let go, they go, and with them what the old passphrase was kept for.
	w.run(0, "point", "unpin", ids[3])
	w.run(4, "point", "unpin", ids[3])
	w.run(0, "point", "untag", ids[5], "release")
	w.run(0, "point", "unhold", ids[7], "--case", "CASE-12", "--reason", "closed")
	w.run(0, "policy", "unset", "web01")
	w.run(0, "policy", "set", "web01", "--keep-last", "2")
	w.Clock = w.Clock.AddDate(0, 3, 0)
	_, refused := w.run(4, "prune", "web01")
	if !strings.Contains(refused, "--clock-is-right") {
		t.Errorf("refused without a way on:\n%s", refused)
	}
	w.run(0, "prune", "--clock-is-right")
	if got := w.listed(); !slices.Equal(got, ids[38:]) {
		t.Errorf("left %v", got)
	}
	w.run(0, "secret", "destroy", "web01@1", "--reason", "nothing needs it")
	w.run(4, "secret", "destroy", "web01@2")
	w.run(0, "audit", "verify")
	log, _ := w.run(0, "audit", "list")
	for _, action := range []string{"policy.set", "point.pin", "point.untag", "point.hold", "point.unhold", "machine.prune", "point.delete"} {
		if !strings.Contains(log, action) {
			t.Errorf("%s is not in the audit log", action)
		}
	}
}
