package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/kit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

func TestInitMakesEverythingOnce(t *testing.T) {
	w := newWorld(t)
	r := asked[cli.InitResult](w, 0, "", "init", "--kit", w.path("kit.txt"))
	if r.DataDir != w.data || r.KitFile != w.path("kit.txt") || !strings.HasPrefix(r.Recipient, "age1") || len(r.KeyPlaces) < 4 {
		t.Fatalf("result: %+v", r)
	}
	w.private()
	for _, name := range []string{
		"lockstep.json", "keys/writer.key", "keys/prover.key", "keys/custodian.key", "keys/repository.identity", "keys/kek.key",
		"keymanager", "repository/config", "catalog.db", "audit", "run/locks",
	} {
		if _, err := os.Stat(filepath.Join(w.data, name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dataDir(w.data).pending()); err == nil {
		t.Error("the plan of init is left over")
	}
	k := w.kit()
	c, err := dataDir(w.data).load()
	if err != nil || k.Repository != c.Repository.ID || k.TrustRoot != c.Repository.TrustRoot || len(k.Keys) != 3 {
		t.Fatalf("kit %+v, configuration %+v, %v", k, c, err)
	}
	// The recovery identity is in the kit and nowhere else.
	w.nowhere(k.Identity.Expose())
	if holders := w.holders(r.Repository); !slices.Equal(holders, []string{"host", "key-manager", "recovery"}) {
		t.Errorf("holders: %q", holders)
	}
	if _, stderr := w.want(7, "", "init", "--kit", w.path("kit2.txt")); !strings.Contains(stderr, "already") {
		t.Errorf("init again says %s", stderr)
	}
	if got := w.kit(); got.Repository != k.Repository {
		t.Error("init again changed the kit")
	}
}

func (w *world) kit() kit.Kit {
	w.t.Helper()
	k, err := kit.Read(w.path("kit.txt"))
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

// nowhere wants bytes not to be in the data directory.
func (w *world) nowhere(secret []byte) {
	w.t.Helper()
	out, err := exec.Command("grep", "-rlF", "--", strings.TrimSpace(string(secret)), w.data).Output()
	if err == nil {
		w.t.Errorf("a secret is in %s", out)
	}
}

func (w *world) holders(location string) []string {
	w.t.Helper()
	st, err := localdir.Open(location, localdir.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer st.Close()
	all, err := repository.ListHolders(context.Background(), st)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, h := range all {
		names = append(names, h.Name)
	}
	slices.Sort(names)
	return names
}

func TestInitVariants(t *testing.T) {
	_, mine, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := envelope.GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]struct {
		args    func(w *world) []string
		holders []string
		sealing string
	}{
		"elsewhere": {
			func(w *world) []string { return []string{"--repository", "file://" + w.path("repo")} },
			[]string{"host", "key-manager", "recovery"},
			repository.SealingAESGCM,
		},
		"unsealed": {
			func(*world) []string { return []string{"--unsealed"} },
			[]string{"host", "key-manager", "recovery"},
			repository.SealingNone,
		},
		"passphrases": {
			func(w *world) []string {
				return []string{"--passphrase-file", w.secretFile("of the repository\n"), "--key-manager-passphrase-file", w.secretFile("of the repository\n")}
			},
			[]string{"host", "key-manager", "passphrase", "recovery"},
			repository.SealingAESGCM,
		},
		"key file and recipients": {
			func(w *world) []string {
				return []string{"--key-manager-key-file", w.secretFile(strings.Repeat("k", 64)), "--recipient", mine, "--recipient", other}
			},
			[]string{"host", "key-manager", "recovery", "recovery-2"},
			repository.SealingAESGCM,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := asked[cli.InitResult](w, 0, "", append([]string{"init", "--kit", w.path("kit.txt")}, k.args(w)...)...)
			if got := w.holders(r.Repository); !slices.Equal(got, k.holders) {
				t.Errorf("holders %q, want %q", got, k.holders)
			}
			image := w.encrypted("web01.img", oldPassphrase)
			w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
			w.add(oldPassphrase)
			w.backup(api.StateProven)
			if name == "key file and recipients" {
				if got := w.kit(); got.Identity.Len() != 0 || !slices.Equal(got.Recipients, []string{mine, other}) {
					t.Errorf("kit: %+v", got)
				}
			}
			e, err := openEngine(dataDir(w.data), newLogger(os.Stderr))
			if err != nil {
				t.Fatal(err)
			}
			defer e.close()
			repo, err := e.openRepository(context.Background())
			if err != nil || repo.Sealing() != k.sealing {
				t.Errorf("sealing: %v", err)
			}
		})
	}
}

func TestInitRefuses(t *testing.T) {
	for name, k := range map[string]struct {
		prepare func(w *world) []string
		exit    int
		says    string
	}{
		"a kit that is there": {func(w *world) []string {
			w.secretFile("x")
			return []string{"--kit", w.path("secret")}
		}, 7, "exists"},
		"no folder for the kit": {func(w *world) []string { return []string{"--kit", w.path("no/kit.txt")} }, 2, "folder"},
		"a repository that is there": {func(w *world) []string {
			o := newWorld(w.t)
			o.ok("", "init", "--kit", o.path("kit.txt"))
			return []string{"--repository", filepath.Join(o.data, "repository")}
		}, 7, "repository"},
		"another kind of store": {func(*world) []string { return []string{"--repository", "ftp://bucket"} }, 2, "not available"},
		"a bad recipient":       {func(*world) []string { return []string{"--recipient", "age1nonsense"} }, 2, "recipient"},
		"what is left of a data directory": {func(w *world) []string {
			if err := os.MkdirAll(dataDir(w.data).keys(), 0o700); err != nil {
				w.t.Fatal(err)
			}
			return nil
		}, 7, "keys"},
		"a folder that others may enter": {func(w *world) []string {
			if err := os.MkdirAll(filepath.Join(w.data, "mine"), 0o700); err != nil {
				w.t.Fatal(err)
			}
			if err := os.Chmod(w.data, 0o755); err != nil {
				w.t.Fatal(err)
			}
			return nil
		}, 1, "others"},
		"a short key file": {func(w *world) []string { return []string{"--key-manager-key-file", w.secretFile("short")} }, 1, "too few bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			args := append([]string{"init"}, k.prepare(w)...)
			if !slices.Contains(args, "--kit") {
				args = append(args, "--kit", w.path("kit.txt"))
			}
			code, out, errs := w.run("", args...)
			if code != k.exit || !strings.Contains(errs, k.says) {
				t.Fatalf("exit %d, want %d and %q\n%s%s", code, k.exit, k.says, out, errs)
			}
			if _, err := os.Stat(dataDir(w.data).config()); err == nil {
				t.Error("it made a data directory all the same")
			}
		})
	}
}

// TestInterruptedInitGoesOn stops init before each of its steps.
func TestInterruptedInitGoesOn(t *testing.T) {
	for stop := range 8 {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(context.Background())
		i := initialiser{options: cli.InitOptions{DataDir: w.data, KitFile: w.path("kit.txt")}, dir: dataDir(w.data)}
		i.before = func(step int) {
			if step == stop {
				cancel()
			}
		}
		err := i.run(ctx)
		cancel()
		if stop < 7 && err == nil {
			t.Fatalf("step %d: it was not interrupted", stop)
		}
		if stop < 7 {
			var identity envelope.Secret
			if _, err := os.Stat(w.path("kit.txt")); err == nil {
				if identity, err = (&initialiser{plan: plan{KitFile: w.path("kit.txt")}}).readKit(); err != nil {
					t.Fatal(err)
				}
			}
			// Other options are another installation.
			w.want(7, "", "init", "--kit", w.path("kit.txt"), "--unsealed")
			w.ok("", "init")
			if k := w.kit(); identity.Len() > 0 && strings.TrimSpace(string(k.Identity.Expose())) != strings.TrimSpace(string(identity.Expose())) {
				t.Errorf("step %d: the kit has another identity than the one that things were sealed to", stop)
			}
		}
		image := w.encrypted("web01.img", oldPassphrase)
		w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
		w.add(oldPassphrase)
		w.backup(api.StateProven)
		w.ok("", "audit", "verify")
		w.nowhere(w.kit().Identity.Expose())
	}
}

// TestKilledInitGoesOn kills init at many moments.
func TestKilledInitGoesOn(t *testing.T) {
	took := time.Duration(0)
	for n := range 8 {
		w := newWorld(t)
		cmd := w.program("init", "--kit", w.path("kit.txt"))
		begin := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			timer := time.AfterFunc(took*time.Duration(n)/8, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait()
			timer.Stop()
		} else if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		} else {
			took = time.Since(begin)
		}
		if _, err := os.Stat(dataDir(w.data).config()); err != nil {
			w.ok("", "init", "--kit", w.path("kit.txt"))
		}
		if _, err := os.Stat(dataDir(w.data).pending()); err == nil {
			// Killed behind the last step: it is initialised, and says so.
			w.want(7, "", "init")
		}
		k := w.kit()
		c, err := dataDir(w.data).load()
		if err != nil || k.Repository != c.Repository.ID {
			t.Fatalf("after %d/8: %v", n, err)
		}
		w.ok("", "status")
	}
}

func TestConfigOfAnotherVersionIsRefused(t *testing.T) {
	w := started(t)
	c, err := dataDir(w.data).load()
	if err != nil {
		t.Fatal(err)
	}
	c.Version = 2
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dataDir(w.data).config(), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr := w.want(1, "", "status"); !strings.Contains(stderr, "version 2") {
		t.Errorf("it says %s", stderr)
	}
	if _, stderr := newWorld(t).want(1, "", "status"); !strings.Contains(stderr, "lockstep init") {
		t.Errorf("without a data directory it says %s", stderr)
	}
}
