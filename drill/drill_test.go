package drill_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/export/exporttest"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/unlock"
)

const mib = 1 << 20

// ext4 is a file system with so many files of 10,000 bytes.
func ext4(t *testing.T, files int) []byte {
	t.Helper()
	tree := t.TempDir()
	for i := range files {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprintf("secret-name-%d", i)), bytes.Repeat([]byte{byte(i)}, 10000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(file, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(judge.Tool(t, "mkfs.ext4"), "-q", "-b", "4096", "-d", tree, file).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

// encrypted is a LUKS volume over a whole disk with plain in it.
func encrypted(t *testing.T, plain []byte) []byte {
	t.Helper()
	m := make(memory, len(plain)+4*mib)
	v, err := luksformat.Format(m, int64(len(m)), luksformat.Options{KeyslotsSize: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.AddKey(t.Context(), envelope.NewSecret([]byte("open sesame")), luksformat.KDF{}); err != nil {
		t.Fatal(err)
	}
	w, err := v.Payload(nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(plain, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

// keys are one secret for everything, under the name of a version in custody.
func keys(secret string) unlock.Keys {
	return func(context.Context, string, diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			if secret != "" {
				yield(unlock.Key{Name: "s-1@2", Kind: diskcrypt.KindPassphrase, Secret: envelope.CopySecret([]byte(secret))}, nil)
			}
		}
	}
}

// checker is a tool that finds what it is told to.
type checker struct {
	drill.Finding
	err   error
	wrote bool
}

func (c *checker) Check(_ context.Context, _ string, on *drill.Scratch) (drill.Finding, error) {
	_, err := on.WriteAt([]byte("a tool's own"), 0)
	c.wrote = err == nil
	return c.Finding, c.err
}

type booter struct {
	drill.Finding
	err   error
	disks []string
}

func (b *booter) Boot(_ context.Context, disks []drill.BootDisk) (drill.Finding, error) {
	for _, d := range disks {
		b.disks = append(b.disks, d.ID)
		if _, err := d.WriteAt([]byte("the guest's own"), 512); err != nil {
			return b.Finding, err
		}
	}
	return b.Finding, b.err
}

func hold(t *testing.T, req drill.Request, disks ...exporttest.Disk) custody.Drill {
	t.Helper()
	now := time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	req.Point = exporttest.Point(t, disks...)
	req.Started, req.Unlock = now, unlock.Options{Formats: []diskcrypt.Format{luks.Format{}}}
	req.Now = func() time.Time { now = now.Add(time.Second); return now }
	req.Secret = func(key string) *keymanager.Ref {
		if key != "s-1@2" {
			return nil
		}
		return &keymanager.Ref{ID: "s-1", Version: 2}
	}
	req.Reason, req.Actor, req.Host, req.Software = "test", "uid:0", "here", "lockstep test"
	d, err := drill.Run(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Check(); err != nil {
		t.Errorf("the report is malformed: %v", err)
	}
	for _, s := range d.Steps {
		t.Logf("%-10s %s/%s %-8s %s", s.Kind, s.Disk, s.Object, s.Outcome, s.Detail)
		if strings.Contains(s.Detail, "secret-name") {
			t.Error("the report names a file of the guest")
		}
	}
	return d
}

// of are the outcomes of steps of a kind.
func of(d custody.Drill, kind string) (out []string) {
	for _, s := range d.Steps {
		if s.Kind == kind {
			out = append(out, s.Outcome)
		}
	}
	return out
}

func TestDrill(t *testing.T) {
	fs := ext4(t, 30)
	locked := encrypted(t, fs)
	damaged := bytes.Clone(fs)
	// The content of one file, found by its bytes, becomes unreachable: its inode's
	// extents point behind the end.
	corrupt(t, damaged)
	pass := custody.DrillPassed
	finding := func(outcome string) drill.Finding { return drill.Finding{Outcome: outcome, Detail: "told"} }
	for _, k := range []struct {
		name    string
		content []byte
		secret  string
		req     drill.Request
		outcome string
		want    map[string][]string
	}{
		{
			"everything", locked, "open sesame",
			drill.Request{Check: &checker{Finding: finding(pass)}, Boot: &booter{Finding: finding(pass)}, Sample: drill.Sample{Files: 10, Bytes: mib}},
			pass,
			map[string][]string{custody.DrillUnlock: {pass}, custody.DrillFileSystem: {pass}, custody.DrillCheck: {pass}, custody.DrillSample: {pass}, custody.DrillBoot: {pass}},
		},
		{"no secret", locked, "", drill.Request{}, custody.DrillIncomplete, map[string][]string{custody.DrillUnlock: {custody.DrillSkipped}, custody.DrillSample: nil}},
		{"wrong secret", locked, "wrong", drill.Request{}, custody.DrillFailed, map[string][]string{custody.DrillUnlock: {custody.DrillFailed}}},
		{
			"not needed", locked, "",
			drill.Request{NotNeeded: func(disk, volume string) string { return disk + "/" + volume + " is scratch" }},
			custody.DrillIncomplete,
			map[string][]string{custody.DrillUnlock: {custody.DrillWarned}},
		},
		{"plain", fs, "", drill.Request{Sample: drill.Sample{Files: 5, Bytes: mib}}, pass, map[string][]string{custody.DrillUnlock: nil, custody.DrillSample: {pass}, custody.DrillCheck: nil}},
		{"nothing is read", fs, "", drill.Request{}, custody.DrillIncomplete, map[string][]string{custody.DrillSample: {custody.DrillSkipped}}},
		{"no tool", fs, "", drill.Request{Sample: drill.Sample{Files: 5, Bytes: mib}, Check: &checker{err: drill.ErrNoTool}}, pass, map[string][]string{custody.DrillCheck: {custody.DrillSkipped}}},
		{"the tool finds damage", fs, "", drill.Request{Sample: drill.Sample{Files: 5, Bytes: mib}, Check: &checker{Finding: finding(custody.DrillFailed)}}, custody.DrillFailed, map[string][]string{custody.DrillCheck: {custody.DrillFailed}}},
		{"the tool cannot be run", fs, "", drill.Request{Check: &checker{err: errors.New("it died")}}, custody.DrillFailed, map[string][]string{custody.DrillCheck: {custody.DrillFailed}}},
		{"the machine does not come up", fs, "", drill.Request{Boot: &booter{Finding: finding(custody.DrillFailed)}}, custody.DrillFailed, map[string][]string{custody.DrillBoot: {custody.DrillFailed}}},
		{"a file is damaged", damaged, "", drill.Request{Sample: drill.Sample{Files: 30, Bytes: mib}}, custody.DrillFailed, map[string][]string{custody.DrillSample: {custody.DrillFailed}}},
		{"noise", make([]byte, mib), "", drill.Request{}, custody.DrillIncomplete, map[string][]string{custody.DrillFileSystem: nil}},
	} {
		t.Run(k.name, func(t *testing.T) {
			k.req.Keys = keys(k.secret)
			d := hold(t, k.req, exporttest.Disk{ID: "vda", Content: k.content})
			if d.Outcome != k.outcome {
				t.Errorf("outcome %s, want %s", d.Outcome, k.outcome)
			}
			for kind, want := range k.want {
				if got := of(d, kind); !slices.Equal(got, want) {
					t.Errorf("%s: %v, want %v", kind, got, want)
				}
			}
			if c, ok := k.req.Check.(*checker); ok && c.err == nil && !c.wrote {
				t.Error("the tool could not write to its scratch disk")
			}
			if b, ok := k.req.Boot.(*booter); ok && !slices.Equal(b.disks, []string{"vda"}) {
				t.Errorf("booted from %v", b.disks)
			}
			if k.name == "everything" {
				if s := d.Steps[1].Secret; s == nil || s.ID != "s-1" || s.Version != 2 {
					t.Errorf("the secret version is not named: %+v", d.Steps[1])
				}
				if x := d.Timings; !(0 < x.Open && x.Open < x.Unlock && x.Unlock < x.Readable && x.Readable < x.Boot && x.Boot < x.Total) {
					t.Errorf("%+v", x)
				}
			}
		})
	}
}

// corrupt lets the first extent of the last inode in use point behind the end.
func corrupt(t *testing.T, fs []byte) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(file, fs, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(judge.Tool(t, "debugfs"), "-R", "imap /secret-name-7", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	var inode, group, block, offset int
	for _, line := range strings.Split(string(out), "\n") {
		_, _ = fmt.Sscanf(strings.TrimSpace(line), "Inode %d is part of block group %d", &inode, &group)
		_, _ = fmt.Sscanf(strings.TrimSpace(line), "located at block %d, offset 0x%x", &block, &offset)
	}
	if block == 0 {
		t.Fatalf("debugfs: %s", out)
	}
	at := block*4096 + offset + 40 + 12 + 8 // i_block, extent header, ee_start_lo
	copy(fs[at:], []byte{0xff, 0xff, 0xff, 0x7f})
}

// The same seed reads the same files, another one others, and the limits hold.
func TestSample(t *testing.T) {
	disk := exporttest.Disk{ID: "vda", Content: ext4(t, 60)}
	sample := func(seed byte, files int, bytes int64) custody.DrillStep {
		d := hold(t, drill.Request{Keys: keys(""), Sample: drill.Sample{Files: files, Bytes: bytes, Seed: [16]byte{seed}}}, disk)
		for _, s := range d.Steps {
			if s.Kind == custody.DrillSample {
				return s
			}
		}
		t.Fatal("no sample")
		return custody.DrillStep{}
	}
	if s := sample(1, 7, mib); s.Files != 7 || s.Bytes != 70000 || !strings.Contains(s.Detail, "7 of 60 files, seed 0100") {
		t.Errorf("%+v", s)
	}
	if s := sample(1, 1000, mib); s.Files != 60 {
		t.Errorf("%+v", s)
	}
	if s := sample(1, 10, 35000); s.Files != 3 || !strings.Contains(s.Detail, "7 larger ones left out") {
		t.Errorf("%+v", s)
	}
	if s := sample(1, 10, 10); s.Outcome != custody.DrillSkipped {
		t.Errorf("nothing fits, and it is %s", s.Outcome)
	}
}

func TestPage(t *testing.T) {
	d := hold(t, drill.Request{Keys: keys("open sesame"), Sample: drill.Sample{Files: 3, Bytes: mib}}, exporttest.Disk{ID: "vda", Content: encrypted(t, ext4(t, 3))})
	d.Reason = `<script>alert("x")</script>`
	var page bytes.Buffer
	if err := drill.HTML(&page, d); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<!doctype html>", "Drill of web01", "✓ passed", "vda/disk", "Files read", "s-1@2", d.Point, "&lt;script&gt;"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(page.String(), "<script>") || strings.Contains(page.String(), "http://") || strings.Contains(page.String(), "https://") {
		t.Error("the page runs or loads something")
	}
}
