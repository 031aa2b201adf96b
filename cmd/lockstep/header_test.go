package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// opensWith asks cryptsetup whether a passphrase opens an image.
func opensWith(t *testing.T, image, typ, passphrase string) bool {
	t.Helper()
	cmd := exec.Command(judge.Tool(t, "cryptsetup"), "open", "--test-passphrase", "--type", typ, "--key-file", "-", image)
	if typ == "bitlk" {
		cmd = exec.Command(judge.Tool(t, "cryptsetup"), "open", "--test-passphrase", "--type", typ, image)
		passphrase += "\n"
	}
	cmd.Stdin = strings.NewReader(passphrase)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("cryptsetup: %v: %s", err, out)
	}
	return err == nil
}

// partOf is a part of a disk as a device.
type partOf struct {
	f    *os.File
	from int64
}

func (w partOf) ReadAt(p []byte, off int64) (int, error)  { return w.f.ReadAt(p, w.from+off) }
func (w partOf) WriteAt(p []byte, off int64) (int, error) { return w.f.WriteAt(p, w.from+off) }

// volumeAt makes a disk with one LUKS volume from an offset on, in a partition
// where that is not 0.
func (w *world) volumeAt(version int, from int64) string {
	w.t.Helper()
	path := w.path("web01.img")
	w.edit(path, func(f *os.File) {
		if err := f.Truncate(from + diskSize); err != nil {
			w.t.Fatal(err)
		}
		if from > 0 {
			mbr := make([]byte, 512)
			mbr[446+4] = 0x83
			binary.LittleEndian.PutUint32(mbr[446+8:], uint32(from/512))
			binary.LittleEndian.PutUint32(mbr[446+12:], diskSize/512)
			mbr[510], mbr[511] = 0x55, 0xaa
			if _, err := f.WriteAt(mbr, 0); err != nil {
				w.t.Fatal(err)
			}
		}
		v, err := luksformat.Format(partOf{f, from}, diskSize, luksformat.Options{Version: version, KeyslotsSize: 1 << 20})
		if err != nil {
			w.t.Fatal(err)
		}
		defer v.Close()
		if _, err := v.AddKey(context.Background(), secretOf(oldPassphrase), luksformat.KDF{}); err != nil {
			w.t.Fatal(err)
		}
		p, err := v.Payload(nil, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := p.WriteAt(bytes.Repeat([]byte("payload "), 1<<14), 0); err != nil {
			w.t.Fatal(err)
		}
	})
	return path
}

func (w *world) read(path string) []byte {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// TestHeaderRestore: each way of losing a header, and back, on the disk and on
// the volume alone. cryptsetup opens what came of it.
func TestHeaderRestore(t *testing.T) {
	damages := []struct {
		name   string
		damage func(volume []byte)
		found  string
	}{
		{"wiped", func(v []byte) { clear(v[:1<<20]) }, "damaged"},
		{"first sector", func(v []byte) { clear(v[:512]) }, "damaged"},
		{"key slot's area", func(v []byte) { clear(v[4096:40960]) }, "damaged"},
		{"nothing", func([]byte) {}, "same"},
	}
	for _, c := range []struct {
		name    string
		version int
		from    int64
		volume  string
	}{{"luks1", 1, 0, "disk"}, {"luks2", 2, 0, "disk"}, {"luks2 in a partition", 2, 1 << 20, "p1"}} {
		t.Run(c.name, func(t *testing.T) {
			w := started(t)
			image := w.volumeAt(c.version, c.from)
			w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
			w.backup(api.StateUnrecoverable)
			sound := w.read(image)
			volume := "web01@latest/vda/" + c.volume
			for i, d := range damages {
				for _, alone := range []bool{false, true} {
					damaged := bytes.Clone(sound)
					d.damage(damaged[c.from:])
					want, from := sound, c.from
					if alone {
						damaged, want, from = damaged[c.from:], sound[c.from:], 0
					}
					name := w.path("target")
					if err := os.WriteFile(name, damaged, 0o600); err != nil {
						t.Fatal(err)
					}
					backup := w.path(strings.ReplaceAll("backup "+d.name, " ", "-") + string(rune('a'+i)) + map[bool]string{true: "-alone"}[alone])
					dry := asked[api.HeaderRestored](w, 0, "", "header", "restore", volume, "--to", name, "--dry-run")
					if dry.Written || dry.Found != d.found || !bytes.Equal(w.read(name), damaged) {
						t.Fatalf("%s: a dry run: %+v", d.name, dry)
					}
					got := asked[api.HeaderRestored](w, 0, "", "header", "restore", volume, "--to", name, "--backup", backup)
					if got.Found != d.found || got.Written != (d.found == "damaged") || got.Ranges[0].Offset != from {
						t.Fatalf("%s: %+v", d.name, got)
					}
					if !bytes.Equal(w.read(name), want) {
						t.Fatalf("%s: the target is not as it was", d.name)
					}
					if !got.Written {
						continue
					}
					if old := w.read(backup); !bytes.Equal(old, damaged[from:from+int64(len(old))]) || len(old) < 1<<20 {
						t.Fatalf("%s: %d bytes were kept", d.name, len(old))
					}
					opened := name
					if !alone && c.from > 0 {
						opened = w.path("volume")
						if err := os.WriteFile(opened, w.read(name)[c.from:], 0o600); err != nil {
							t.Fatal(err)
						}
					}
					if !opensWith(t, opened, "luks", oldPassphrase) {
						t.Fatalf("%s: cryptsetup does not open it", d.name)
					}
					judge.Decided(t, "cryptsetup open --test-passphrase")
				}
			}
			if log := w.ok("", "audit", "list"); !strings.Contains(log, "header.restore") {
				t.Fatal("it is not in the audit log")
			}
		})
	}
}

// TestHeaderRestoreRefuses: what the header would ruin stays as it is.
func TestHeaderRestoreRefuses(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	sound := w.read(image)
	target, backup := w.path("target"), w.path("backup")
	restore := func(more ...string) []string {
		return append([]string{"header", "restore", "web01@latest/vda/disk", "--to", target, "--backup", backup}, more...)
	}
	w.rotate(image, oldPassphrase, newPassphrase)
	rotated := w.read(image)
	other := w.read(w.encrypted("other.img", oldPassphrase))
	wiped := bytes.Clone(sound)
	clear(wiped[:1<<20])
	elsewhere := bytes.Clone(other)
	clear(elsewhere[:1<<20])
	for _, c := range []struct {
		name    string
		content []byte
		code    int
		says    string
	}{
		{"a later header", rotated, 7, "a sound header of this volume"},
		{"another volume", other, 7, "a header of another volume"},
		{"wiped, another volume's data", elsewhere, 7, "none is as in the recovery point"},
		{"shorter", wiped[:2<<20], 7, "neither the disk nor the volume"},
		{"empty", nil, 7, "smaller than the disk"},
	} {
		if err := os.WriteFile(target, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, stderr := w.want(c.code, "", restore()...)
		if !strings.Contains(stderr, c.says) {
			t.Errorf("%s: %s", c.name, stderr)
		}
		if !bytes.Equal(w.read(target), c.content) {
			t.Fatalf("%s: it was written to", c.name)
		}
		if _, err := os.Lstat(backup); err == nil {
			t.Fatalf("%s: a backup was made", c.name)
		}
	}
	// With force, over the later one: the old passphrase is back.
	if err := os.WriteFile(target, rotated, 0o600); err != nil {
		t.Fatal(err)
	}
	w.ok("", restore("--force")...)
	if !opensWith(t, target, "luks", oldPassphrase) || opensWith(t, target, "luks", newPassphrase) {
		t.Fatal("the header is not that of the recovery point")
	}
	judge.Decided(t, "cryptsetup open --test-passphrase")
	// The backup is never written over, and is what brings the other one back.
	if err := os.WriteFile(target, wiped, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, stderr := w.want(7, "", restore()...); !strings.Contains(stderr, "not empty") {
		t.Error(stderr)
	}
	if !bytes.Equal(w.read(target), wiped) {
		t.Fatal("without a backup it was written to")
	}
	w.want(7, "", "header", "restore", "web01@latest/vda/disk", "--to", filepath.Join(w.dir, "none"), "--backup", w.path("b2"))
}

// TestHeaderRestoreBitLocker: the boot sector and the three copies of the metadata.
func TestHeaderRestoreBitLocker(t *testing.T) {
	const name = "bitlk-files-aes-xts-256"
	w := started(t)
	src := filepath.Join(judge.Fixtures(t), "bitlocker", name+".img.xz")
	if _, err := os.Stat(src); err != nil {
		judge.Missing(t, "fixture "+name)
	}
	sound, err := exec.Command(judge.Tool(t, "xz"), "-dc", src).Output()
	if err != nil {
		t.Fatal(err)
	}
	text := string(w.read(filepath.Join(judge.Fixtures(t), "bitlocker", "with-files.txt")))
	_, rest, _ := strings.Cut(text, "== "+name+".img  recovery ")
	password, _, _ := strings.Cut(rest, " ")
	image, target := w.path("web01.img"), w.path("target")
	if err := os.WriteFile(image, sound, 0o600); err != nil {
		t.Fatal(err)
	}
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	w.run("", "backup", "web01")
	volume := asked[api.HeaderRestored](w, 0, "", "header", "restore", "web01@latest/vda/disk", "--to", image, "--dry-run")
	if volume.Found != "same" || len(volume.Ranges) < 3 {
		t.Fatalf("%+v", volume)
	}
	damaged := bytes.Clone(sound)
	for _, g := range volume.Ranges {
		clear(damaged[g.Offset : g.Offset+g.Length])
	}
	if err := os.WriteFile(target, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	if opensWith(t, target, "bitlk", password) {
		t.Fatal("the damaged volume opens")
	}
	got := asked[api.HeaderRestored](w, 0, "", "header", "restore", "web01@latest/vda/disk", "--to", target, "--backup", w.path("backup"))
	if !got.Written || got.Equal == 0 || !bytes.Equal(w.read(target), sound) {
		t.Fatalf("%+v", got)
	}
	if !opensWith(t, target, "bitlk", password) {
		t.Fatal("cryptsetup does not open it")
	}
	judge.Decided(t, "cryptsetup open --type bitlk --test-passphrase")
}
