package command_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cmd/lockstep-recover/command"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/kit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

const (
	diskSize      = 8 << 20
	oldPassphrase = "correct horse battery staple, the old one"
	newPassphrase = "correct horse battery staple, the new one"
	linuxData     = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
)

// memory is a disk in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) NextData(off int64) (disk.Range, error) {
	if off >= m.Size() {
		return disk.Range{}, io.EOF
	}
	return disk.Range{Offset: off, Length: m.Size() - off}, nil
}

// section is a partition of it.
type section struct {
	memory
	disk.Range
}

func (s section) ReadAt(p []byte, off int64) (int, error) {
	return io.NewSectionReader(s.memory, s.Offset, s.Length).ReadAt(p, off)
}

func (s section) WriteAt(p []byte, off int64) (int, error) { return s.memory.WriteAt(p, s.Offset+off) }

// fixture is a repository with two recovery points of one machine: the older
// is proven and packaged, of the newer nobody escrowed the secret.
type fixture struct {
	dir, repo, kit, identity string // paths
	old, new                 repository.Point
	oldImage                 []byte
	repository               *repository.Repository
	machine                  repository.Machine
	prover, custodian        envelope.SigningKey
	recipient, id, root      string
	keys                     []envelope.PublicKey
}

var ctx = context.Background()

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	f.repo, f.kit, f.identity = filepath.Join(f.dir, "repo"), filepath.Join(f.dir, "kit.txt"), filepath.Join(f.dir, "identity.txt")
	st, err := localdir.Create(f.repo, localdir.Options{})
	check(t, err)
	t.Cleanup(func() { _ = st.Close() })
	writer, err := envelope.GenerateSigningKey(envelope.RoleWriter)
	check(t, err)
	f.prover, err = envelope.GenerateSigningKey(envelope.RoleProver)
	check(t, err)
	f.custodian, err = envelope.GenerateSigningKey(envelope.RoleCustodian)
	check(t, err)
	identity, recipient, err := envelope.GenerateIdentity()
	check(t, err)
	f.recipient = recipient
	f.keys = []envelope.PublicKey{writer.Public(), f.prover.Public(), f.custodian.Public()}
	f.id, f.root, err = repository.Create(ctx, st, repository.CreateOptions{
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: recipient, Role: repository.RoleRecovery}},
		Writer:  writer.Public(), Prover: f.prover.Public(), Custodian: f.custodian,
	})
	check(t, err)
	f.repository, err = repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: identity}, Writer: &writer})
	check(t, err)
	t.Cleanup(func() { _ = f.repository.Close() })
	f.machine, err = f.repository.CreateMachine(ctx, "", "web01")
	check(t, err)
	check(t, kit.Write(f.kit, kit.Kit{
		Identity: identity, Recipients: []string{recipient}, Repository: f.id, Locations: []string{f.repo},
		TrustRoot: f.root, Keys: f.keys, Created: time.Now(),
	}))
	check(t, os.WriteFile(f.identity, identity.Expose(), 0o600))

	m := make(memory, diskSize)
	parts := []disk.Partition{
		{Range: disk.Range{Offset: 1 << 20, Length: 1 << 20}, Type: linuxData, GUID: "11111111-2222-3333-4444-555555555555", Name: "boot"},
		{Range: disk.Range{Offset: 2 << 20, Length: 4 << 20}, Type: linuxData, GUID: "11111111-2222-3333-4444-666666666666", Name: "root"},
	}
	check(t, disk.WriteGPT(m, diskSize, 512, "AAAAAAAA-2222-3333-4444-555555555555", parts))
	copy(m[1<<20:], "nothing secret about this partition")
	p2 := section{m, parts[1].Range}
	v, err := luksformat.Format(p2, p2.Length, luksformat.Options{KeyslotsSize: 2 * 258048})
	check(t, err)
	defer v.Close()
	slot, err := v.AddKey(ctx, envelope.NewSecret([]byte(oldPassphrase)), luksformat.KDF{})
	check(t, err)
	payload, err := v.Payload(nil, 0)
	check(t, err)
	content := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	clear(content[:2048])
	content[1024+56], content[1024+57] = 0x53, 0xef // an ext2 superblock's magic
	_, err = payload.WriteAt(content, 0)
	check(t, err)
	f.oldImage = bytes.Clone(m)
	var mf *repository.Manifest
	f.old, mf = f.backup(t, m)
	f.escrow(t, f.old, mf, oldPassphrase)
	_, err = v.ChangeKey(ctx, slot, envelope.NewSecret([]byte(newPassphrase)), luksformat.KDF{})
	check(t, err)
	f.new, _ = f.backup(t, m)
	return f
}

// backup makes a recovery point.
func (f *fixture) backup(t *testing.T, m memory) (repository.Point, *repository.Manifest) {
	t.Helper()
	w, err := f.repository.Begin(ctx, f.machine.ID, repository.BeginOptions{})
	check(t, err)
	d, err := w.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: m})
	check(t, err)
	check(t, w.FinishMaps())
	report, err := diskcrypt.Find(ctx, m, diskSize, diskcrypt.FindOptions{Formats: []diskcrypt.Format{luks.Format{}}})
	check(t, err)
	if len(report.Volumes) != 1 || report.Volumes[0].ID != "p2" {
		t.Fatalf("volumes %+v", report.Volumes)
	}
	v := report.Volumes[0]
	size := int64(0)
	for _, r := range v.HeaderRanges {
		size = max(size, r.End())
	}
	id, err := w.PutHeader(ctx, v.HeaderEssential, size, io.NewSectionReader(m, v.Range.Offset, v.Range.Length))
	check(t, err)
	d.Headers = []repository.HeaderRef{{Volume: "p2", ID: id}}
	d.Inspection, err = json.Marshal(report)
	check(t, err)
	mf := &repository.Manifest{Time: time.Now().UTC().Truncate(time.Millisecond), Disks: []repository.Disk{d}, Consistency: "crash"}
	p, err := w.Commit(ctx, mf)
	check(t, err)
	return p, mf
}

// escrow stores a proof, a key package and a header package.
func (f *fixture) escrow(t *testing.T, p repository.Point, mf *repository.Manifest, passphrase string) {
	t.Helper()
	var report diskcrypt.Report
	check(t, json.Unmarshal(mf.Disks[0].Inspection, &report))
	v := report.Volumes[0]
	ref := keymanager.Ref{ID: "secret-of-web01", Version: 1}
	put := func(point, kind string, raw []byte, err error) {
		t.Helper()
		check(t, err)
		_, err = f.repository.PutSidecar(ctx, f.machine.ID, point, kind, raw)
		check(t, err)
	}
	root := mf.Disks[0].ContentRoot
	raw, err := custody.SignProof(custody.Proof{
		Repository: f.id, Machine: f.machine.ID, Point: p.ID, Disk: "vda", ContentRoot: root, Volume: v.ID, Type: v.Type,
		HeaderDigest: v.HeaderDigest, Secret: ref, Kind: diskcrypt.KindPassphrase,
		Protectors: []custody.ProofProtector{{ID: "slot-0", Fingerprint: v.Protectors[0].Fingerprint}},
		KeyCheck:   "luks2-digest-0", Class: "ext2", Time: time.Now(), Software: "test",
	}, f.prover)
	put(p.ID, repository.SidecarProof, raw, err)
	raw, err = custody.SealKeyPackage(custody.KeyCover{
		Repository: f.id, Machine: f.machine.ID, Point: p.ID, Disks: map[string]string{"vda": root},
		Secrets:    []custody.PackageSecret{{Disk: "vda", Volume: v.ID, Kind: diskcrypt.KindPassphrase, Secret: ref}},
		Headers:    []custody.PackageHeader{{Disk: "vda", Volume: v.ID, Type: v.Type, HeaderDigest: v.HeaderDigest}},
		Recipients: []string{f.recipient}, Time: time.Now(), Software: "test",
	}, []envelope.Secret{envelope.NewSecret([]byte(passphrase))}, f.prover)
	put(p.ID, repository.SidecarKeyPackage, raw, err)
	d, err := f.repository.OpenDisk(ctx, f.machine.ID, mf.Disks[0])
	check(t, err)
	var header []byte
	for _, r := range v.HeaderEssential {
		b := make([]byte, r.Length)
		_, err := d.ReadAt(b, v.Range.Offset+r.Offset)
		check(t, err)
		header = append(header, b...)
	}
	raw, err = custody.SealHeaderPackage(custody.HeaderCover{
		Repository: f.id, Machine: f.machine.ID, HeaderDigest: v.HeaderDigest, Type: v.Type, Size: v.Range.Length,
		Ranges: v.HeaderEssential, Recipients: []string{f.recipient}, Time: time.Now(), Software: "test",
	}, header, f.prover)
	put(repository.MachineSidecars, repository.SidecarHeaderPackage, raw, err)
}

// run runs the command; no output may hold a passphrase or the identity.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = command.Main(ctx, command.Env{Args: args, Stdout: &out, Stderr: &errs, Version: "test"})
	if !strings.Contains(strings.Join(args, " "), "--to -") {
		for _, s := range []string{oldPassphrase, newPassphrase, "AGE-SECRET-KEY-1"} {
			if strings.Contains(out.String()+errs.String(), s) {
				t.Errorf("%v shows %q", args, s)
			}
		}
	}
	return status, out.String(), errs.String()
}

func (f *fixture) run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	return run(t, append(args, "--repository", f.repo, "--identity", f.kit)...)
}

// tree is the state of a folder: names, modes, sizes, times, contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	check(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, p, info.Mode(), info.Size(), info.ModTime())
		if !d.IsDir() {
			b, err := os.ReadFile(p)
			h.Write(b)
			return err
		}
		return nil
	}))
	return fmt.Sprintf("%x", h.Sum(nil))
}

func want(t *testing.T, got, status int, stdout, stderr string) {
	t.Helper()
	if got != status {
		t.Fatalf("exit status %d, want %d\n%s\n%s", got, status, stdout, stderr)
	}
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

func TestRecover(t *testing.T) {
	f := newFixture(t)
	before := tree(t, f.repo)
	status, out, errs := f.run(t, "list")
	want(t, status, 0, out, errs)
	contains(t, out, "web01", f.old.ID[:12], f.new.ID[:12], "vda/p2 luks2", "ready: passphrase secret-of-web01@1", "ext2 inside", "locked: there is no key package")

	// The time as the list shows it, without a fraction, names a recovery point.
	m, err := f.repository.Manifest(t.Context(), f.new)
	check(t, err)
	status, out, errs = f.run(t, "open-check", "web01@"+m.Time.UTC().Format(time.RFC3339))
	if status == 1 {
		t.Fatalf("a time from the list finds nothing: %s%s", out, errs)
	}

	status, out, errs = f.run(t, "list", "-o", "json")
	want(t, status, 0, out, errs)
	var list struct {
		Repository string
		Pinned     bool
		Machines   []struct {
			Name   string
			Points []struct {
				ID      string
				Opens   bool
				Volumes []struct{ Access string }
			}
		}
	}
	check(t, json.Unmarshal([]byte(out), &list))
	if !list.Pinned || list.Repository != f.id || len(list.Machines) != 1 || len(list.Machines[0].Points) != 2 {
		t.Fatalf("%+v", list)
	}
	newest, oldest := list.Machines[0].Points[0], list.Machines[0].Points[1]
	if newest.ID != f.new.ID || newest.Opens || oldest.ID != f.old.ID || !oldest.Opens {
		t.Errorf("%+v", list)
	}

	status, out, errs = f.run(t, "open-check", f.old.ID[:12])
	want(t, status, 0, out, errs)
	contains(t, out, "vda/p2 opens: luks2 with passphrase secret-of-web01@1, slot-0; ext2 inside")
	status, out, errs = f.run(t, "open-check", "web01@latest")
	want(t, status, api.ExitNotProven, out, errs)
	contains(t, out, "DOES NOT OPEN")

	image := filepath.Join(f.dir, "restored.img")
	status, out, errs = f.run(t, "restore", f.old.ID, "--disk", "vda="+image)
	want(t, status, 0, out, errs)
	got, err := os.ReadFile(image)
	check(t, err)
	if !bytes.Equal(got, f.oldImage) {
		t.Error("the restored disk differs")
	}
	status, out, errs = f.run(t, "restore", f.old.ID, "--disk", "vda="+image)
	want(t, status, api.ExitTarget, out, errs)
	status, out, errs = f.run(t, "restore", f.new.ID, "--disk", "vda="+image, "--force", "-o", "json")
	want(t, status, api.ExitNotProven, out, errs)
	var restored struct {
		Opens bool
		Disks []struct{ Disk string }
	}
	check(t, json.Unmarshal([]byte(out), &restored))
	if restored.Opens || len(restored.Disks) != 1 {
		t.Errorf("%+v", restored)
	}

	folder := filepath.Join(f.dir, "secrets")
	status, out, errs = f.run(t, "secrets", f.old.ID, "--to", folder)
	want(t, status, 0, out, errs)
	file := filepath.Join(folder, "vda-p2.passphrase")
	contains(t, out, file, "cryptsetup open --key-file "+file)
	b, err := os.ReadFile(file)
	check(t, err)
	info, err := os.Stat(file)
	check(t, err)
	if string(b) != oldPassphrase || info.Mode().Perm() != 0o600 {
		t.Errorf("secret file has mode %v, content right: %v", info.Mode(), string(b) == oldPassphrase)
	}
	status, out, errs = f.run(t, "secrets", f.old.ID, "--to", folder)
	want(t, status, api.ExitTarget, out, errs)
	status, out, errs = f.run(t, "secrets", f.old.ID, "--to", file)
	want(t, status, api.ExitTarget, out, errs)
	status, out, errs = f.run(t, "secrets", f.new.ID, "--to", filepath.Join(f.dir, "none"))
	want(t, status, api.ExitNotProven, out, errs)
	if _, err := os.Stat(filepath.Join(f.dir, "none")); err == nil {
		t.Error("a folder was made for no secret")
	}
	status, out, errs = f.run(t, "secrets", f.old.ID, "--to", "-")
	want(t, status, 0, out, errs)
	if out != oldPassphrase || errs != "" {
		t.Errorf("standard output has %d bytes, standard error %q", len(out), errs)
	}

	header := filepath.Join(f.dir, "header")
	status, out, errs = f.run(t, "header", "web01@latest/vda/p2", "--to", header)
	want(t, status, 0, out, errs)
	contains(t, out, "read from the disk")
	status, out, errs = f.run(t, "header", "web01@latest/vda/p2", "--to", header)
	want(t, status, api.ExitTarget, out, errs)

	status, out, errs = f.run(t, "verify")
	want(t, status, 0, out, errs)
	contains(t, out, "2 recovery points", "1 key packages opened", "no damage found")
	// The place in the kit is the default.
	status, out, errs = run(t, "list", "--identity", f.kit)
	want(t, status, 0, out, errs)
	if tree(t, f.repo) != before {
		t.Error("the repository was changed")
	}
}

func TestPins(t *testing.T) {
	f := newFixture(t)
	other := newFixture(t)
	write := func(name string, change func(*kit.Kit)) string {
		k, err := kit.Read(f.kit)
		check(t, err)
		change(&k)
		path := filepath.Join(f.dir, name)
		check(t, kit.Write(path, k))
		return path
	}
	unknown, err := envelope.GenerateSigningKey(envelope.RoleProver)
	check(t, err)
	damaged := filepath.Join(f.dir, "damaged")
	text, err := os.ReadFile(f.kit)
	check(t, err)
	check(t, os.WriteFile(damaged, bytes.Replace(text, []byte("#: repository "), []byte("#: repository 0"), 1), 0o600))
	for name, c := range map[string]struct {
		args   []string
		status int
		says   string
	}{
		"bare identity":        {[]string{"--identity", f.identity}, api.ExitUsage, "--unpinned"},
		"bare, unpinned":       {[]string{"--identity", f.identity, "--unpinned"}, 0, "nothing is pinned"},
		"no identity":          {nil, api.ExitUsage, "--identity is missing"},
		"another kit":          {[]string{"--identity", other.kit}, api.ExitRefused, "trust log begins otherwise"},
		"another identity":     {[]string{"--identity", other.identity, "--unpinned"}, api.ExitWrongSecret, "no key opens the repository"},
		"pins stay with flag":  {[]string{"--identity", write("root", func(k *kit.Kit) { k.TrustRoot = "sha256:" + strings.Repeat("0", 64) }), "--unpinned"}, api.ExitRefused, "pins"},
		"another id":           {[]string{"--identity", write("id", func(k *kit.Kit) { k.Repository = strings.Repeat("0", 32) })}, api.ExitRefused, "its id is"},
		"unknown key":          {[]string{"--identity", write("key", func(k *kit.Kit) { k.Keys = append(k.Keys, unknown.Public()) })}, api.ExitRefused, "lacks the prover key"},
		"damaged kit":          {[]string{"--identity", damaged}, api.ExitFailed, "damaged"},
		"kit without identity": {[]string{"--identity", write("pins", func(k *kit.Kit) { k.Identity = envelope.Secret{} })}, api.ExitFailed, "your own identity file"},
		"kit and identity":     {[]string{"--identity", filepath.Join(f.dir, "pins2"), "--identity", f.identity}, 0, ""},
		"two kits":             {[]string{"--identity", other.kit, "--identity", f.kit}, 0, ""},
		"no repository there":  {[]string{"--identity", f.kit, "--repository", f.dir}, api.ExitFailed, "config"},
		"no folder there":      {[]string{"--identity", f.kit, "--repository", filepath.Join(f.dir, "x")}, api.ExitFailed, "config"},
		"other kind of store":  {[]string{"--identity", f.kit, "--repository", "ftp://bucket"}, api.ExitUsage, "not available"},
	} {
		if name == "kit and identity" {
			write("pins2", func(k *kit.Kit) { k.Identity = envelope.Secret{} })
		}
		t.Run(name, func(t *testing.T) {
			args := append([]string{"list", "--repository", f.repo}, c.args...)
			status, out, errs := run(t, args...)
			want(t, status, c.status, out, errs)
			contains(t, errs, c.says)
			if status != 0 {
				_, out, _ = run(t, append(args, "-o", "json")...)
				var problem api.Error
				check(t, json.Unmarshal([]byte(out), &problem))
				if problem.Exit != status {
					t.Errorf("document says %d", problem.Exit)
				}
			}
		})
	}
}

// A package or proof by a key that the trust log does not have is not believed.
func TestForeignStatements(t *testing.T) {
	f := newFixture(t)
	real := f.prover
	var err error
	f.prover, err = envelope.GenerateSigningKey(envelope.RoleProver)
	check(t, err)
	mf, err := f.repository.Manifest(ctx, f.new)
	check(t, err)
	f.escrow(t, f.new, mf, newPassphrase)
	status, out, errs := f.run(t, "open-check", f.new.ID)
	want(t, status, api.ExitNotProven, out, errs)
	contains(t, errs, "does not count", "no valid signature")
	status, out, errs = f.run(t, "verify")
	want(t, status, api.ExitDamaged, out, errs)

	f.prover = real
	f.escrow(t, f.new, mf, "not the passphrase")
	status, out, errs = f.run(t, "open-check", f.new.ID)
	want(t, status, api.ExitWrongSecret, out, errs)
}

// objects lists the store's files below a folder.
func (f *fixture) objects(t *testing.T, folder string) (out []string) {
	t.Helper()
	check(t, filepath.WalkDir(filepath.Join(f.repo, folder), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, p)
		}
		return err
	}))
	if len(out) == 0 {
		t.Fatalf("nothing below %s", folder)
	}
	return out
}

// spoil flips a bit of every 64 bytes but the first 4 KiB and the last 64 KiB.
func spoil(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	for i := 4096; i < len(b)-(64<<10); i += 64 {
		b[i] ^= 1
	}
	check(t, os.Chmod(path, 0o600))
	check(t, os.WriteFile(path, b, 0o600))
}

func TestDamage(t *testing.T) {
	f := newFixture(t)
	original := filepath.Join(f.dir, "header-0")
	status, out, errs := f.run(t, "header", f.old.ID+"/vda/p2", "--to", original)
	want(t, status, 0, out, errs)
	for _, p := range f.objects(t, "seg") {
		spoil(t, p)
	}
	image := filepath.Join(f.dir, "image")
	status, out, errs = f.run(t, "restore", f.old.ID, "--disk", "vda="+image)
	want(t, status, api.ExitDamaged, out, errs)
	if _, err := os.Stat(image); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a damaged restore left a file")
	}
	status, out, errs = f.run(t, "open-check", f.old.ID)
	want(t, status, api.ExitDamaged, out, errs)
	status, out, errs = f.run(t, "verify")
	want(t, status, api.ExitDamaged, out, errs)
	contains(t, out, f.old.ID)
	// The secrets are not on the disks, and the header has copies.
	status, out, errs = f.run(t, "secrets", f.old.ID, "--to", filepath.Join(f.dir, "secrets"))
	want(t, status, 0, out, errs)
	same := func(name, from string) {
		t.Helper()
		path := filepath.Join(f.dir, name)
		status, out, errs := f.run(t, "header", f.old.ID+"/vda/p2", "--to", path)
		want(t, status, 0, out, errs)
		contains(t, out, from)
		v, err := inspectFile(path)
		check(t, err)
		w, err := inspectFile(original)
		check(t, err)
		if v.HeaderDigest != w.HeaderDigest {
			t.Errorf("the header from %s differs", from)
		}
		opens, err := luks.Format{}.OpensAll(ctx, placeOf(path), diskcrypt.KindPassphrase, envelope.NewSecret([]byte(oldPassphrase)), diskcrypt.Limits{})
		if err != nil || len(opens) != 1 {
			t.Errorf("the header from %s does not open: %v", from, err)
		}
	}
	same("header-1", "the header copy")
	check(t, os.RemoveAll(filepath.Join(f.repo, "headers-a")))
	same("header-2", "the header copy")
	check(t, os.RemoveAll(filepath.Join(f.repo, "headers-b")))
	same("header-3", "the header package")
}

func placeOf(path string) diskcrypt.Place {
	b, _ := os.ReadFile(path)
	return diskcrypt.Place{Data: bytes.NewReader(nil), Size: 4 << 20, Header: bytes.NewReader(b), HeadSize: int64(len(b))}
}

func inspectFile(path string) (*diskcrypt.Volume, error) {
	return luks.Format{}.Inspect(ctx, placeOf(path))
}

// Other recovery points stay restorable beside damaged ones, and damage is said.
func TestDamagedManifest(t *testing.T) {
	f := newFixture(t)
	for _, p := range f.objects(t, "points") {
		if strings.Contains(p, f.new.ID) {
			b, err := os.ReadFile(p)
			check(t, err)
			b[len(b)/2] ^= 1
			check(t, os.Chmod(p, 0o600))
			check(t, os.WriteFile(p, b, 0o600))
		}
	}
	status, out, errs := f.run(t, "list")
	want(t, status, api.ExitDamaged, out, errs)
	contains(t, out, "damaged: its manifest cannot be read", "ready")
	status, out, errs = f.run(t, "restore", "web01@latest", "--disk", "vda="+filepath.Join(f.dir, "a"))
	want(t, status, api.ExitDamaged, out, errs)
	status, out, errs = f.run(t, "restore", f.old.ID, "--disk", "vda="+filepath.Join(f.dir, "b"))
	want(t, status, 0, out, errs)
}

// A header that is not on its disk is read from its copies, or its package.
func TestDetachedHeader(t *testing.T) {
	f := newFixture(t)
	header, data := make(memory, 2<<20), make(memory, 1<<20)
	vol, err := luksformat.Format(header, header.Size(), luksformat.Options{KeyslotsSize: 258048, DataOffset: -1})
	check(t, err)
	defer vol.Close()
	_, err = vol.AddKey(ctx, envelope.NewSecret([]byte(oldPassphrase)), luksformat.KDF{})
	check(t, err)
	payload, err := vol.Payload(data, data.Size())
	check(t, err)
	_, err = payload.WriteAt([]byte("plaintext"), 0)
	check(t, err)

	w, err := f.repository.Begin(ctx, f.machine.ID, repository.BeginOptions{})
	check(t, err)
	d, err := w.WriteDisk(ctx, repository.DiskInput{ID: "vdb", Source: data})
	check(t, err)
	check(t, w.FinishMaps())
	report, err := diskcrypt.Find(ctx, data, data.Size(), diskcrypt.FindOptions{
		Formats:  []diskcrypt.Format{luks.Format{}},
		Detached: map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: header, Size: header.Size()}},
	})
	check(t, err)
	v := report.Volumes[0]
	id, err := w.PutHeader(ctx, v.HeaderEssential, header.Size(), header)
	check(t, err)
	d.Headers = []repository.HeaderRef{{Volume: v.ID, ID: id}}
	d.Inspection, err = json.Marshal(report)
	check(t, err)
	p, err := w.Commit(ctx, &repository.Manifest{Time: time.Now().UTC(), Disks: []repository.Disk{d}})
	check(t, err)

	put := func(point, kind string, raw []byte, err error) {
		t.Helper()
		check(t, err)
		_, err = f.repository.PutSidecar(ctx, f.machine.ID, point, kind, raw)
		check(t, err)
	}
	raw, err := custody.SealKeyPackage(custody.KeyCover{
		Repository: f.id, Machine: f.machine.ID, Point: p.ID, Disks: map[string]string{"vdb": d.ContentRoot},
		Secrets:    []custody.PackageSecret{{Disk: "vdb", Volume: v.ID, Kind: diskcrypt.KindPassphrase, Secret: keymanager.Ref{ID: "secret-of-vdb", Version: 3}}},
		Recipients: []string{f.recipient}, Time: time.Now(), Software: "test",
	}, []envelope.Secret{envelope.NewSecret([]byte(oldPassphrase))}, f.prover)
	put(p.ID, repository.SidecarKeyPackage, raw, err)
	var stored []byte
	for _, r := range v.HeaderEssential {
		stored = append(stored, header[r.Offset:r.End()]...)
	}
	raw, err = custody.SealHeaderPackage(custody.HeaderCover{
		Repository: f.id, Machine: f.machine.ID, HeaderDigest: v.HeaderDigest, Type: v.Type, Detached: true, Size: header.Size(),
		Ranges: v.HeaderEssential, Recipients: []string{f.recipient}, Time: time.Now(), Software: "test",
	}, stored, f.prover)
	put(repository.MachineSidecars, repository.SidecarHeaderPackage, raw, err)

	opens := func(from string) {
		t.Helper()
		status, out, errs := f.run(t, "open-check", p.ID)
		want(t, status, 0, out, errs)
		contains(t, out, "vdb/disk opens", from)
	}
	status, out, errs := f.run(t, "list")
	want(t, status, 0, out, errs)
	contains(t, out, "untested: passphrase secret-of-vdb@3")
	opens("header copy")
	check(t, os.RemoveAll(filepath.Join(f.repo, "headers-a")))
	check(t, os.RemoveAll(filepath.Join(f.repo, "headers-b")))
	opens("header package")
	file := filepath.Join(f.dir, "detached")
	status, out, errs = f.run(t, "header", p.ID+"/vdb/disk", "--to", file)
	want(t, status, 0, out, errs)
	got, err := inspectFile(file)
	check(t, err)
	if got.HeaderDigest != v.HeaderDigest {
		t.Error("the exported header differs")
	}
	status, out, errs = f.run(t, "secrets", p.ID, "--to", filepath.Join(f.dir, "secrets"))
	want(t, status, 0, out, errs)
	contains(t, out, "--header HEADER", "lockstep-recover header")
}

// A log entry that cannot be read may have been the newest recovery point.
func TestDamagedLog(t *testing.T) {
	f := newFixture(t)
	entries := f.objects(t, "log")
	newest := entries[len(entries)-1]
	b, err := os.ReadFile(newest)
	check(t, err)
	b[len(b)/2] ^= 1
	check(t, os.Chmod(newest, 0o600))
	check(t, os.WriteFile(newest, b, 0o600))
	status, out, errs := f.run(t, "open-check", "web01@latest")
	want(t, status, api.ExitDamaged, out, errs)
	contains(t, out, "vda/p2 opens")
	contains(t, errs, "warning: ")
}

func TestUsage(t *testing.T) {
	f := newFixture(t)
	for name, c := range map[string]struct {
		args   []string
		status int
	}{
		"nothing":              {nil, 2},
		"unknown command":      {[]string{"frobnicate"}, 2},
		"unknown flag":         {[]string{"list", "--frobnicate"}, 2},
		"bad output":           {[]string{"list", "-o", "xml"}, 2},
		"no point":             {[]string{"restore"}, 2},
		"no disk":              {[]string{"restore", f.old.ID}, 2},
		"malformed disk":       {[]string{"restore", f.old.ID, "--disk", "vda"}, 2},
		"no such disk":         {[]string{"restore", f.old.ID, "--disk", "vdz=" + filepath.Join(f.dir, "x")}, 1},
		"no such point":        {[]string{"open-check", "ffff"}, 1},
		"no such machine":      {[]string{"open-check", "db01@latest"}, 1},
		"before the first":     {[]string{"open-check", "web01@2001-01-01T00:00:00Z"}, 1},
		"not a time":           {[]string{"open-check", "web01@yesterday"}, 1},
		"at a time":            {[]string{"open-check", "web01@2999-01-01T00:00:00Z"}, 3},
		"no target":            {[]string{"secrets", f.old.ID}, 2},
		"secret as json":       {[]string{"secrets", f.old.ID, "--to", "-", "-o", "json"}, 2},
		"no such volume":       {[]string{"secrets", f.old.ID, "--to", filepath.Join(f.dir, "y"), "--volume", "vda/p9"}, 1},
		"header of what":       {[]string{"header", f.old.ID, "--to", filepath.Join(f.dir, "h")}, 2},
		"header of no volume":  {[]string{"header", f.old.ID + "/vda/p1", "--to", filepath.Join(f.dir, "h")}, 1},
		"target named twice":   {[]string{"restore", f.old.ID, "--disk", "vda=" + f.dir + "/q", "--disk", "vda=" + f.dir + "/r"}, 7},
		"target is a folder":   {[]string{"restore", f.old.ID, "--disk", "vda=" + f.dir}, 7},
		"version":              {[]string{"version"}, 0},
		"help of a command":    {[]string{"restore", "--help"}, 0},
		"help names no secret": {[]string{"--help"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			status, out, errs := f.run(t, c.args...)
			want(t, status, c.status, out, errs)
			if status != 0 && status != 3 && !strings.Contains(errs, "lockstep-recover: ") {
				t.Errorf("standard error: %q", errs)
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	f := newFixture(t)
	stopped, stop := context.WithCancel(ctx)
	stop()
	var errs bytes.Buffer
	status := command.Main(stopped, command.Env{Args: []string{"verify", "--repository", f.repo, "--identity", f.kit}, Stderr: &errs})
	if status != api.ExitInterrupted || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("exit status %d, %q", status, errs.String())
	}
}
