package prover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/custody/prover"
	"github.com/lockstep-backup/lockstep/custody/prover/provertest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/keymanager/embedded"
)

const (
	repoID    = "11111111111111111111111111111111"
	machineID = "22222222222222222222222222222222"
	pointID   = "33333333333333333333333333333333"
	rootHex   = "4444"

	childEnv = "LOCKSTEP_PROVER_TEST_CHILD"
)

// TestMain lets the test's binary be the prover's process, as the program is.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	memory, _ := strconv.ParseInt(os.Getenv(childEnv+"_MEMORY"), 10, 64)
	if err := prover.Harden(memory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	deps, err := depsOf(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := prover.Serve(context.Background(), os.Stdin, os.Stdout, deps); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// depsOf opens what a prover needs from a folder: key manager, key, recipients.
func depsOf(dir string) (prover.Deps, error) {
	key, err := envelope.ReadSigningKeyFile(filepath.Join(dir, "prover.key"))
	if err != nil {
		return prover.Deps{}, err
	}
	return prover.Deps{
		Manager: func(context.Context) (keymanager.Manager, error) {
			m, err := embedded.Open(filepath.Join(dir, "keys"), embedded.KeyFile(filepath.Join(dir, "kek")), embedded.Options{})
			if err != nil {
				return nil, err
			}
			return m, nil
		},
		Formats: []diskcrypt.Format{luks.Format{}},
		Key:     key, MACKey: envelope.NewSecret(bytes.Repeat([]byte{7}, 32)),
		Recipients: func(context.Context) ([]string, error) {
			b, err := os.ReadFile(filepath.Join(dir, "recipients"))
			return strings.Fields(string(b)), err
		},
		Software: "lockstep test",
	}, nil
}

// installation is a folder with a key manager and keys.
type installation struct {
	dir      string
	manager  keymanager.Manager
	key      envelope.SigningKey
	identity envelope.Secret
	to       string
}

func install(t *testing.T) *installation {
	t.Helper()
	in := &installation{dir: t.TempDir()}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sealer := embedded.GenerateKeyFile(filepath.Join(in.dir, "kek"))
	check(embedded.Init(filepath.Join(in.dir, "keys"), sealer))
	m, err := embedded.Open(filepath.Join(in.dir, "keys"), embedded.KeyFile(filepath.Join(in.dir, "kek")), embedded.Options{})
	check(err)
	in.manager = m
	in.key, err = envelope.GenerateSigningKey(envelope.RoleProver)
	check(err)
	check(envelope.WriteSigningKeyFile(filepath.Join(in.dir, "prover.key"), in.key))
	in.identity, in.to, err = envelope.GenerateIdentity()
	check(err)
	check(os.WriteFile(filepath.Join(in.dir, "recipients"), []byte(in.to+"\n"), 0o600))
	return in
}

func (in *installation) put(t *testing.T, secret string) keymanager.Ref {
	t.Helper()
	v, err := in.manager.Put(context.Background(), keymanager.Put{
		Kind: string(diskcrypt.KindPassphrase), State: keymanager.Active, Secret: envelope.NewSecret([]byte(secret)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v.Ref
}

func (in *installation) deps(t *testing.T) prover.Deps {
	t.Helper()
	d, err := depsOf(in.dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// process returns a client whose child is a process, and the pid of the newest.
func (in *installation) process(t *testing.T, env ...string) (*prover.Client, func() int, *bytes.Buffer) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var cmd *exec.Cmd
	stderr := &bytes.Buffer{}
	c := prover.New(func() (*exec.Cmd, error) {
		mu.Lock()
		defer mu.Unlock()
		cmd = exec.Command(exe)
		cmd.Env = append(os.Environ(), append(env, childEnv+"="+in.dir)...)
		cmd.Stderr = stderr
		return cmd, nil
	}, nil)
	t.Cleanup(func() { _ = c.Close() })
	return c, func() int {
		mu.Lock()
		defer mu.Unlock()
		return cmd.Process.Pid
	}, stderr
}

// memory is a device in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

const (
	passphrase = "correct horse battery staple"
	plaintext  = "PLAINTEXT-MARKER-OF-THE-VOLUME"
)

// encrypted makes a LUKS2 disk with an ext4 superblock in it.
func encrypted(t *testing.T, kdf luksformat.KDF, passphrases ...string) memory {
	t.Helper()
	dev := make(memory, 2<<20)
	v, err := luksformat.Format(dev, int64(len(dev)), luksformat.Options{KeyslotsSize: 4 * 258048})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, p := range passphrases {
		if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte(p)), kdf); err != nil {
			t.Fatal(err)
		}
	}
	w, err := v.Payload(dev, int64(len(dev)))
	if err != nil {
		t.Fatal(err)
	}
	fs := make([]byte, 8192)
	copy(fs[512:], plaintext)
	super := fs[1024:]
	super[0x38], super[0x39] = 0x53, 0xef              // magic
	super[0x04], super[0x18], super[0x00] = 64, 2, 16  // blocks, 4 KiB blocks, inodes
	super[0x20], super[0x28] = 64, 16                  // per group
	super[0x4c], super[0x58], super[0x60] = 1, 0, 0x40 // dynamic revision, extents
	super[0x59] = 1
	copy(super[0x78:], "Payroll")
	if _, err := w.WriteAt(fs, 0); err != nil {
		t.Fatal(err)
	}
	return dev
}

// points is a recovery point of disks in memory.
type points struct {
	disks map[string]memory
	reads int
	after func(n int) // called before each read
}

func (p *points) ReadAt(disk, _ string, header bool, b []byte, off int64) (int, error) {
	p.reads++
	if p.after != nil {
		p.after(p.reads)
	}
	if header {
		disk += ".header"
	}
	return p.disks[disk].ReadAt(b, off)
}

func inspected(t *testing.T, dev memory) diskcrypt.Volume {
	t.Helper()
	v, err := luks.Format{}.Inspect(context.Background(), diskcrypt.Place{Data: dev, Size: int64(len(dev))})
	if err != nil {
		t.Fatal(err)
	}
	v.ID, v.Range = "disk", disk.Range{Length: int64(len(dev))}
	return *v
}

func request(v diskcrypt.Volume, refs ...keymanager.Ref) custody.Request {
	r := custody.Request{
		Repository: repoID, Machine: machineID, Point: pointID,
		Volumes: []custody.VolumeRequest{{Disk: "vda", ContentRoot: rootHex, Volume: v}},
	}
	for _, ref := range refs {
		r.Volumes[0].Candidates = append(r.Volumes[0].Candidates, custody.CandidateRequest{Secret: ref, Kind: diskcrypt.KindPassphrase})
	}
	return r
}

func expected(v diskcrypt.Volume) custody.ExpectedPoint {
	return custody.ExpectedPoint{
		Repository: repoID, Machine: machineID, Point: pointID,
		Disks: []custody.ExpectedDisk{{ID: "vda", ContentRoot: rootHex, Volumes: []diskcrypt.Volume{v}}},
	}
}

func TestProve(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, "another", passphrase)
	v := inspected(t, dev)
	wrong, right := in.put(t, "wrong"), in.put(t, passphrase)
	keys := custody.TrustKeys{in.key.Public()}
	process, _, _ := in.process(t)
	for name, c := range map[string]custody.Prover{"in process": provertest.Start(t, in.deps(t)), "process": process} {
		t.Run(name, func(t *testing.T) {
			out, err := c.Try(context.Background(), request(v, wrong, right), &points{disks: map[string]memory{"vda": dev}})
			if err != nil {
				t.Fatal(err)
			}
			o := out.Volumes[0]
			if len(o.Attempts) != 2 || o.Attempts[0].Tried != custody.Refused || o.Attempts[1].Tried != custody.Opens {
				t.Fatalf("attempts %+v %s", o.Attempts, o.Error)
			}
			p, _, err := custody.VerifyProof(o.Proof, keys, expected(v))
			if err != nil {
				t.Fatal(err)
			}
			if p.Secret != right || p.Class != "ext4" || p.Protectors[0].ID != "slot-1" ||
				p.Protectors[0].Fingerprint != v.Protectors[1].Fingerprint || p.Epoch != v.Epoch || len(p.VKProof) != 32 {
				t.Errorf("proof %+v", p)
			}
			for _, leak := range []string{passphrase, plaintext, "Payroll"} {
				if bytes.Contains(o.Proof, []byte(leak)) || strings.Contains(fmt.Sprintf("%+v", out), leak) {
					t.Errorf("%q got out", leak)
				}
			}
			// The same header of another recovery point: no key derivation, but its own bytes.
			other := bytes.Clone(dev)
			reads := &points{disks: map[string]memory{"vda": other}}
			r := request(v, right)
			r.Point = "55555555555555555555555555555555"
			out, err = c.Try(context.Background(), r, reads)
			if err != nil || !out.Volumes[0].Attempts[0].Reused || reads.reads == 0 {
				t.Fatalf("%+v %v", out, err)
			}
			// One whose header is another now does not pass by the cache.
			other[100] ^= 1
			other[16384+100] ^= 1
			out, err = c.Try(context.Background(), r, reads)
			if err != nil || out.Volumes[0].Error == "" || out.Volumes[0].Proof != nil {
				t.Fatalf("changed header: %+v %v", out, err)
			}
			// One whose first sector cannot be read does not either.
			reads.disks["vda"] = bytes.Clone(dev)[:32<<10+4*258048+1000]
			out, err = c.Try(context.Background(), r, reads)
			if err != nil || out.Volumes[0].Proof != nil {
				t.Fatalf("cut off: %+v %v", out, err)
			}
		})
	}
}

func TestAllProtectorsAndInline(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase, "x", passphrase)
	v := inspected(t, dev)
	c := provertest.Start(t, in.deps(t))
	r := request(v)
	r.Point, r.AllProtectors, r.InlineKind, r.Inline = "", true, diskcrypt.KindPassphrase, envelope.NewSecret([]byte(passphrase))
	out, err := c.Try(context.Background(), r, &points{disks: map[string]memory{"vda": dev}})
	if err != nil {
		t.Fatal(err)
	}
	o := out.Volumes[0]
	if a, ok := o.Opened(); !ok || !a.Inline || fmt.Sprint(a.Protectors) != "[slot-0 slot-2]" || o.Proof != nil {
		t.Errorf("%+v", o)
	}
}

func TestManagerAway(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	v := inspected(t, dev)
	deps := in.deps(t)
	ref := in.put(t, passphrase)
	open := deps.Manager
	away := true
	deps.Manager = func(ctx context.Context) (keymanager.Manager, error) {
		if away {
			return nil, errors.New("connection refused by 10.0.0.1")
		}
		return open(ctx)
	}
	c := provertest.Start(t, deps)
	pts := &points{disks: map[string]memory{"vda": dev}}
	out, err := c.Try(context.Background(), request(v, ref), pts)
	if err != nil {
		t.Fatal(err)
	}
	if a := out.Volumes[0].Attempts[0]; a.Tried != custody.Stopped || a.Why != keymanager.ErrUnavailable.Error() {
		t.Errorf("%+v", a)
	}
	_, err = c.Package(context.Background(), custody.PackageRequest{Cover: cover(ref), Recipients: []string{in.to}}, pts)
	if !errors.Is(err, custody.ErrManager) {
		t.Errorf("package: %v", err)
	}
	away = false
	if out, err = c.Try(context.Background(), request(v, ref), pts); err != nil || out.Volumes[0].Proof == nil {
		t.Errorf("it is back: %+v %v", out, err)
	}
}

func cover(ref keymanager.Ref) custody.KeyCover {
	return custody.KeyCover{
		Repository: repoID, Machine: machineID, Point: pointID, Disks: map[string]string{"vda": rootHex},
		Secrets: []custody.PackageSecret{{Disk: "vda", Volume: "disk", Kind: diskcrypt.KindPassphrase, Secret: ref}},
	}
}

func TestPackage(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	v := inspected(t, dev)
	ref := in.put(t, passphrase)
	c := provertest.Start(t, in.deps(t))
	keys := custody.TrustKeys{in.key.Public()}
	pts := &points{disks: map[string]memory{"vda": dev}}
	r := custody.PackageRequest{
		Cover: cover(ref), Recipients: []string{in.to},
		Headers: []custody.HeaderRequest{{Disk: "vda", Volume: v, Ranges: v.HeaderRanges}},
	}
	out, err := c.Package(context.Background(), r, pts)
	if err != nil || len(out.Key) != 1 || len(out.Headers) != 1 || len(out.Problems) != 0 {
		t.Fatalf("%+v %v", out, err)
	}
	k, err := custody.OpenKeyPackage(out.Key[0].Raw, in.identity, keys)
	if err != nil || string(k.Bytes[0].Expose()) != passphrase {
		t.Fatal(err)
	}
	h, err := custody.OpenHeaderPackage(out.Headers[0].Raw, in.identity, keys)
	if err != nil || !bytes.Equal(h.Bytes, dev[:len(h.Bytes)]) || h.Cover.HeaderDigest != v.HeaderDigest {
		t.Fatal(err)
	}
	// A recipient that is not one of the installation's own gets nothing.
	_, thief, _ := envelope.GenerateIdentity()
	r.Recipients = []string{thief}
	if out, err := c.Package(context.Background(), r, pts); err == nil || len(out.Key) > 0 {
		t.Error("sealed to a stranger")
	}
	// A header that is not the recorded one is not sealed.
	r.Recipients, r.Cover.Secrets = []string{in.to}, nil
	r.Headers[0].Volume.HeaderDigest = "sha256:other"
	out, err = c.Package(context.Background(), r, pts)
	if err != nil || len(out.Headers) != 0 || len(out.Problems) != 1 {
		t.Errorf("another header: %+v %v", out, err)
	}
}

func TestChildDies(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	v := inspected(t, dev)
	ref := in.put(t, passphrase)
	c, pid, _ := in.process(t)
	pts := &points{disks: map[string]memory{"vda": dev}}
	pts.after = func(n int) {
		if n == 3 {
			p, err := os.FindProcess(pid())
			if err != nil {
				t.Error(err)
				return
			}
			_ = p.Kill()
		}
	}
	out, err := c.Try(context.Background(), request(v, ref), pts)
	if !errors.Is(err, custody.ErrProverDied) || len(out.Volumes) != 0 {
		t.Fatalf("killed child: %+v %v", out, err)
	}
	first := pid()
	pts.after = nil
	out, err = c.Try(context.Background(), request(v, ref), pts)
	if err != nil || out.Volumes[0].Proof == nil || pid() == first {
		t.Fatalf("a new child: %+v %v", out, err)
	}
	if out.Seconds <= 0 || out.PeakRSS <= 0 {
		t.Errorf("cost is not reported: %v s, %d bytes", out.Seconds, out.PeakRSS)
	}
}

// A header that asks for more memory than the process may have: the limit
// refuses it where it is set, and the process dies where it is not.
func TestMemory(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{Type: "argon2id", Time: 1, MemoryKiB: 320 << 10, Lanes: 1}, passphrase)
	v := inspected(t, dev)
	ref := in.put(t, passphrase)
	pts := &points{disks: map[string]memory{"vda": dev}}

	deps := in.deps(t)
	deps.Limits.KDFMemory = 64 << 20
	out, err := provertest.Start(t, deps).Try(context.Background(), request(v, ref), pts)
	if err != nil || out.Volumes[0].Attempts[0].Tried != custody.Stopped || out.Volumes[0].Attempts[0].Why == "" {
		t.Fatalf("limit: %+v %v", out, err)
	}

	c, _, stderr := in.process(t, childEnv+"_MEMORY="+strconv.Itoa(16<<20))
	_, err = c.Try(context.Background(), request(v, ref), pts)
	if !errors.Is(err, custody.ErrProverDied) {
		t.Fatalf("out of memory: %v", err)
	}
	if strings.Contains(stderr.String(), passphrase) {
		t.Error("the crash report holds the secret")
	}
}

func TestHardened(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	c, pid, _ := in.process(t)
	pts := &points{disks: map[string]memory{"vda": dev}}
	if _, err := os.Stat("/proc/self/limits"); err != nil {
		t.Skip("no /proc")
	}
	pts.after = func(n int) {
		if n != 1 {
			return
		}
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid()))
		if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
			t.Errorf("core dumps are not forbidden: %v", err)
		}
		info, err := os.Stat(fmt.Sprintf("/proc/%d/mem", pid()))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("memory: %v", err)
		}
	}
	if _, err := c.Try(context.Background(), request(inspected(t, dev), in.put(t, "x")), pts); err != nil {
		t.Fatal(err)
	}
}

// stuck is a format whose key derivation does not end.
type stuck struct {
	luks.Format
	release chan struct{}
}

func (s stuck) Open(context.Context, diskcrypt.Place, diskcrypt.Kind, envelope.Secret, diskcrypt.Limits) (diskcrypt.Opened, error) {
	<-s.release
	return nil, diskcrypt.ErrWrongSecret
}

func TestAttemptRunsOn(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	ref := in.put(t, passphrase)
	deps := in.deps(t)
	s := stuck{release: make(chan struct{})}
	defer close(s.release)
	deps.Formats = []diskcrypt.Format{s}
	deps.Timeout, deps.Grace = time.Millisecond, time.Millisecond
	starts := 0
	c := prover.NewDialer(func() (*prover.Conn, error) { starts++; return provertest.Dial(deps), nil }, nil)
	r := request(inspected(t, dev), ref)
	r.Volumes = append(r.Volumes, r.Volumes[0])
	for range 2 {
		out, err := c.Try(context.Background(), r, &points{disks: map[string]memory{"vda": dev}})
		if err != nil {
			t.Fatal(err)
		}
		if a := out.Volumes[0].Attempts[0]; a.Tried != custody.Stopped || out.Volumes[1].Error == "" {
			t.Errorf("%+v", out)
		}
	}
	if starts != 2 {
		t.Errorf("%d children, want one for each request", starts)
	}
}

func TestCancel(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	ctx, cancel := context.WithCancel(context.Background())
	c, _, _ := in.process(t)
	pts := &points{disks: map[string]memory{"vda": dev}, after: func(n int) {
		if n == 2 {
			cancel()
		}
	}}
	if _, err := c.Try(ctx, request(inspected(t, dev), in.put(t, passphrase)), pts); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// Nothing that crosses the pipe from the child, and nothing it writes beside
// it, holds a secret or plaintext.
func TestNothingSecretCrossesThePipe(t *testing.T) {
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	v := inspected(t, dev)
	ref := in.put(t, passphrase)
	vol, err := luksformat.Attach(context.Background(), dev, int64(len(dev)), envelope.NewSecret([]byte(passphrase)))
	if err != nil {
		t.Fatal(err)
	}
	volumeKey := vol.VolumeKey()
	var seen bytes.Buffer
	c := prover.NewDialer(func() (*prover.Conn, error) {
		conn := provertest.Dial(in.deps(t))
		conn.Out = io.TeeReader(conn.Out, &seen)
		return conn, nil
	}, nil)
	pts := &points{disks: map[string]memory{"vda": dev}}
	if out, err := c.Try(context.Background(), request(v, ref), pts); err != nil || out.Volumes[0].Proof == nil {
		t.Fatal(err)
	}
	r := custody.PackageRequest{Cover: cover(ref), Recipients: []string{in.to}}
	if _, err := c.Package(context.Background(), r, pts); err != nil {
		t.Fatal(err)
	}
	bad := request(v)
	bad.Point, bad.InlineKind, bad.Inline = "", diskcrypt.KindPassphrase, envelope.NewSecret([]byte("INLINE-SECRET-THAT-IS-WRONG"))
	if _, err := c.Try(context.Background(), bad, pts); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string][]byte{
		"passphrase": []byte(passphrase), "passphrase in base64": []byte("Y29ycmVjdCBob3JzZSBiYXR0ZXJ5"),
		"inline": []byte("INLINE-SECRET"), "plaintext": []byte(plaintext), "label": []byte("Payroll"),
		"volume key": volumeKey.Expose()[:16], "identity": in.identity.Expose(),
	} {
		if bytes.Contains(seen.Bytes(), s) {
			t.Errorf("%s crossed the pipe", name)
		}
	}
}
