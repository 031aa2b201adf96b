package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid/mdtest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// pieces is a device whose bytes are in several places of a file, in order.
type pieces struct {
	f  *os.File
	at []disk.Range
}

func (p pieces) size() (n int64) {
	for _, r := range p.at {
		n += r.Length
	}
	return n
}

func (p pieces) each(b []byte, off int64, do func(b []byte, off int64) (int, error)) (n int, err error) {
	for _, r := range p.at {
		if off >= r.Length {
			off -= r.Length
			continue
		}
		part := b[n:min(int64(len(b)), int64(n)+r.Length-off)]
		m, err := do(part, r.Offset+off)
		n, off = n+m, 0
		if err != nil || n == len(b) {
			return n, err
		}
	}
	return n, io.EOF
}

func (p pieces) ReadAt(b []byte, off int64) (int, error)  { return p.each(b, off, p.f.ReadAt) }
func (p pieces) WriteAt(b []byte, off int64) (int, error) { return p.each(b, off, p.f.WriteAt) }

// on opens the file at path for what fn does to a device in it.
func on(t *testing.T, path string, at []disk.Range, fn func(pieces) error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := fn(pieces{f, at}); err != nil {
		t.Fatal(err)
	}
}

// taken copies a device out of the file at path.
func taken(t *testing.T, path string, at []disk.Range, to string) string {
	t.Helper()
	on(t, path, at, func(p pieces) error {
		b := make([]byte, p.size())
		if _, err := p.ReadAt(b, 0); err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	})
	return to
}

// fileSystem is an ext4 with one file, made by its own tool.
func (h *host) fileSystem(t *testing.T, name, content string) []byte {
	t.Helper()
	dir, image := h.path("files-"+name), h.path(name+".ext4")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("files-"+name+"/letter.txt", content)
	tool(t, "", judge.Tool(t, "mkfs.ext4"), "-q", "-O", "^has_journal", "-N", "64", "-d", dir, image, "8M")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// luksOn makes a LUKS2 volume of a device, with content in it. Its header is
// longer than an extent of lvmtest.
func luksOn(p pieces, phrase string, content []byte) error {
	v, err := luksformat.Format(p, p.size(), luksformat.Options{KeyslotsSize: mib})
	if err != nil {
		return err
	}
	defer v.Close()
	if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte(phrase)), luksformat.KDF{}); err != nil {
		return err
	}
	w, err := v.Payload(nil, 0)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(content, 0)
	return err
}

// rekey is what the guest does when it changes a passphrase.
func rekey(p pieces, from, to string) error {
	v, err := luksformat.Attach(context.Background(), p, p.size(), envelope.NewSecret([]byte(from)))
	if err != nil {
		return err
	}
	defer v.Close()
	_, err = v.ChangeKey(context.Background(), 0, envelope.NewSecret([]byte(to)), luksformat.KDF{})
	return err
}

const (
	pvSize   = 40 * mib
	groupOf  = "vm-0"       // the device mapper doubles its hyphen
	rootLV   = "vm--0-root" // in one piece
	dataLV   = "vm--0-data" // in five, not in the disk's order
	rootPass = "passphrase-of-root"
	dataPass = "passphrase-of-data"
	newPass  = "another-passphrase-of-data"
)

// partitioned makes a disk with GPT and one partition, from 1 MiB on.
func (h *host) partitioned(t *testing.T, name string, length int64) string {
	t.Helper()
	path, size := h.path(name), length+2*mib
	h.write(name, "")
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	on(t, path, nil, func(p pieces) error {
		return disk.WriteGPT(p.f, size, 512, disk.NewGUID(), []disk.Partition{
			{Number: 1, Type: disk.TypeLinux, GUID: disk.NewGUID(), Name: "system", Range: disk.Range{Offset: mib, Length: length}},
		})
	})
	return path
}

// logicalVolumes makes a disk with GPT, a physical volume, and two logical
// volumes, each LUKS2 with ext4 in it. lvm2 says where they lie.
func (h *host) logicalVolumes(t *testing.T) (path string, at map[string][]disk.Range) {
	t.Helper()
	path = h.partitioned(t, "vm.img", pvSize)
	partition := []disk.Range{{Offset: mib, Length: pvSize}}
	on(t, path, partition, func(p pieces) error {
		return lvmtest.Write(lvmtest.Group{Name: groupOf, Devices: []lvmtest.Device{{Name: "pv0", W: p, Size: pvSize}}, Volumes: []lvmtest.Volume{
			{Name: "root", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 2, 12)}},
			{Name: "data", Segments: []lvmtest.Segment{
				lvmtest.Linear("pv0", 20, 1), lvmtest.Linear("pv0", 16, 2), lvmtest.Linear("pv0", 30, 4),
				lvmtest.Linear("pv0", 14, 1), lvmtest.Linear("pv0", 26, 4),
			}},
		}})
	})
	at = lvmSays(t, taken(t, path, partition, h.path("pv")))
	for lv, c := range map[string][2]string{rootLV: {rootPass, "root"}, dataLV: {dataPass, "data"}} {
		content := h.fileSystem(t, c[1], strings.Repeat("a letter of "+c[1]+"\n", 20000))
		on(t, path, at[lv], func(p pieces) error { return luksOn(p, c[0], content) })
	}
	return path, at
}

// lvmSays asks lvm2 where the logical volumes of a physical volume lie, on the
// disk whose first partition it is.
func lvmSays(t *testing.T, pv string) map[string][]disk.Range {
	t.Helper()
	device := judge.Loop(t, pv, 512)
	config := `devices{use_devicesfile=0 hints="none" filter=["a|^` + device + `$|","r|.*|"]}backup{backup=0 archive=0}`
	lvm := func(name string, args ...string) string {
		cmd := toolCommand(judge.Tool(t, name), append([]string{"--config", config}, args...)...)
		cmd.Env = append(cmd.Env, "LVM_SUPPRESS_FD_WARNINGS=1")
		r := run(t, cmd, "")
		if r.exit != 0 || strings.Contains(r.stderr, "rror") {
			t.Fatalf("%v", r)
		}
		judge.Decided(t, name)
		return r.stdout
	}
	lvm("vgck", groupOf)
	starts := map[string][]int64{}
	at := map[string][]disk.Range{}
	for line := range strings.Lines(lvm("pvs", "--segments", "--noheadings", "--separator", ";", "--units", "b", "--nosuffix", "-o", "lv_dm_path,seg_start,pvseg_start,pvseg_size")) {
		f := strings.Split(strings.TrimSpace(line), ";")
		if f[0] == "" {
			continue // not in use
		}
		var in, from, count int64
		if _, err := fmt.Sscan(strings.Join(f[1:], " "), &in, &from, &count); err != nil {
			t.Fatal(line, err)
		}
		lv := filepath.Base(f[0])
		i, _ := slices.BinarySearch(starts[lv], in)
		starts[lv] = slices.Insert(starts[lv], i, in)
		at[lv] = slices.Insert(at[lv], i, disk.Range{Offset: mib + lvmtest.Start + from*mib, Length: count * mib})
	}
	if len(at[rootLV]) != 1 || len(at[dataLV]) != 5 {
		t.Fatalf("lvm2 says %v", at)
	}
	return at
}

// exporting runs an export until stop is called.
func (h *host) exporting(t *testing.T, out any, args ...string) (stop func()) {
	t.Helper()
	cmd := h.command(append(append([]string{"export"}, args...), "-o", "json")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = json.NewDecoder(stdout).Decode(out)
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGINT)
		_, _ = io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			t.Errorf("export: %v: %s", err, stderr.String())
		}
	}
	if err != nil {
		stop()
		t.Fatalf("export: %v: %s", err, stderr.String())
	}
	return stop
}

// changed are a recovery point's changes, in words.
func (h *host) changed(point string) string {
	var p struct{ Changes []string }
	h.ask(&p, []int{0, 3}, "point", "show", point)
	return strings.Join(p.Changes, "\n")
}

// TestLogicalVolumes: LUKS2 in logical volumes, one in a piece and one in
// several, through a life: proven, exported, restored, rotated, lost, recovered.
func TestLogicalVolumes(t *testing.T) {
	t.Parallel()
	cryptsetup := judge.Tool(t, "cryptsetup")
	h := newHost(t)
	h.do(0, "init", "--kit", h.kit, "--repository", h.path("repository"))
	image, at := h.logicalVolumes(t)
	alone := map[string]string{}
	for lv, phrase := range map[string]string{rootLV: rootPass, dataLV: dataPass} {
		alone[lv] = taken(t, image, at[lv], h.path(lv))
		if !opens(t, alone[lv], phrase) || opens(t, alone[lv], "something else") {
			t.Fatalf("%s as lvm2 has it does not open", lv)
		}
	}

	r := h.do(0, "machine", "add", "vm", "--disk", "vda="+image)
	for _, lv := range []string{rootLV, dataLV} {
		if !strings.Contains(r.stdout, lv+"  luks2") {
			t.Errorf("%s is not shown: %v", lv, r)
		}
	}
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("root.pass", rootPass+"\n"))
	var first point
	h.ask(&first, []int{3}, "backup", "vm") // one opens, the other does not
	for _, v := range first.Disks[0].Volumes {
		if (v.ID == rootLV) != (v.State == "proven") {
			t.Errorf("%s is %s", v.ID, v.State)
		}
	}
	h.do(0, "secret", "add", "vm/vda/"+dataLV, "--kind", "passphrase", "--new", "--file", h.write("data.pass", dataPass+"\n"))
	h.ask(&first, []int{0}, "point", "show", "vm@latest")
	if first.State != "proven" || len(first.Disks[0].Volumes) != 2 {
		t.Fatalf("%+v", first)
	}

	// Headers, out of the recovery point and into it.
	for lv, volume := range alone {
		exported, theirs := h.path(lv+".header"), h.path(lv+".theirs")
		h.do(0, "header", "export", "vm@latest/vda/"+lv, "--to", exported)
		tool(t, "", cryptsetup, "luksHeaderBackup", "--header-backup-file", theirs, volume)
		if err := same(exported, theirs); err != nil {
			t.Error(err)
		}
		judge.Decided(t, "cryptsetup luksHeaderBackup")
		for _, whole := range []bool{true, false} {
			target, from, where := h.path("target"), image, at[lv]
			if !whole {
				from, where = volume, []disk.Range{{Length: 12 * mib}}
			}
			tool(t, "", "cp", from, target)
			on(t, target, where, func(p pieces) error {
				_, err := p.WriteAt(make([]byte, mib+4096), 0)
				return err
			})
			h.do(0, "header", "restore", "vm@latest/vda/"+lv, "--to", target, "--backup", h.path(fmt.Sprint("backup-", lv, whole)))
			if err := same(from, target); err != nil {
				t.Errorf("header restore of %s, on the whole disk %v: %v", lv, whole, err)
			}
		}
	}

	// Volumes, ciphertext and plaintext.
	var ready struct {
		Volumes []struct{ ID, Volume, URI string }
	}
	stop := h.exporting(t, &ready, "vm@latest", "--nbd", "unix:"+h.path("nbd"), "--unlock", "--reason", "a test")
	plain := map[string]string{}
	for _, v := range ready.Volumes {
		plain[v.Volume] = v.URI
	}
	for lv, volume := range alone {
		name := lv[len("vm--0-"):]
		restored := h.path("restored-" + name)
		h.do(0, "restore", "vm@latest", "--volume", lv+"="+restored)
		if err := same(volume, restored); err != nil {
			t.Error(err)
		}
		to := h.path("browsed-" + name)
		if err := os.Mkdir(to, 0o700); err != nil {
			t.Fatal(err)
		}
		h.do(0, "browse", "get", "vm@latest/vda/"+lv+":/letter.txt", "--to", to, "--reason", "a test")
		if err := same(filepath.Join(to, "letter.txt"), h.path("files-"+name, "letter.txt")); err != nil {
			t.Error(err)
		}
		converted := h.path("plain-" + name)
		tool(t, "", judge.Tool(t, "qemu-img"), "convert", "-f", "raw", "-O", "raw", plain[lv], converted)
		if got, err := sumRange(converted, 0, 8*mib); err != nil || got != sum(t, h.path(name+".ext4")) {
			t.Errorf("the plaintext of %s is not what it was, %v", lv, err)
		}
		judge.Decided(t, "qemu-img")
	}
	stop()

	// The guest changes a passphrase.
	before := sum(t, image)
	on(t, image, at[dataLV], func(p pieces) error { return rekey(p, dataPass, newPass) })
	h.do(3, "backup", "vm")
	if c := h.changed("vm@latest"); !strings.Contains(c, "vda/"+dataLV+": protector rotated") || strings.Contains(c, rootLV) {
		t.Errorf("changed: %s", c)
	}
	h.do(0, "secret", "add", "vm/vda/"+dataLV, "--kind", "passphrase", "--new", "--file", h.write("new.pass", newPass+"\n"))
	var second, third point
	h.ask(&second, []int{0}, "point", "show", "vm@latest")

	// The header is lost, where its pieces are.
	kept := h.path("kept.img")
	tool(t, "", "cp", image, kept)
	on(t, image, at[dataLV], func(p pieces) error {
		_, err := p.WriteAt(make([]byte, mib+32<<10), 0)
		return err
	})
	r = h.ask(&third, []int{3}, "backup", "vm")
	if c := h.changed("vm@latest"); !strings.Contains(c, "vda/"+dataLV+": header loss") || strings.Contains(c, rootLV) {
		t.Errorf("changed: %s", c)
	}
	if hint := "lockstep header export " + second.ID + "/vda/" + dataLV; !strings.Contains(r.stderr, hint) {
		t.Errorf("no word of %q: %v", hint, r)
	}
	tool(t, "", "cp", image, h.path("target"))
	h.do(0, "header", "restore", second.ID+"/vda/"+dataLV, "--to", h.path("target"), "--backup", h.path("backup-lost"))
	if err := same(kept, h.path("target")); err != nil {
		t.Errorf("the header that was lost: %v", err)
	}

	// Repository and kit alone.
	if err := os.RemoveAll(h.data); err != nil {
		t.Fatal(err)
	}
	flags := func(args ...string) []string {
		return append(args, "--repository", h.path("repository"), "--identity", h.kit)
	}
	if r := h.recover(0, flags("list")...); !strings.Contains(r.stdout, first.ID[:8]) || !strings.Contains(r.stdout, third.ID[:8]) {
		t.Errorf("%v", r)
	}
	for _, p := range []point{first, second} {
		h.recover(0, flags("open-check", p.ID)...)
	}
	out, header := h.path("out.img"), h.path("recovered.header")
	h.recover(0, flags("restore", first.ID, "--disk", "vda="+out)...)
	if got := sum(t, out); got != before {
		t.Error("the first recovery point is not as it was")
	}
	h.recover(0, flags("header", second.ID+"/vda/"+dataLV, "--to", header)...)
	volume := taken(t, out, at[dataLV], h.path("volume"))
	if !opens(t, volume, newPass, "--header", header) || opens(t, volume, dataPass, "--header", header) {
		t.Error("the header of the second recovery point is another")
	}
}

// TestMirrorMember: LUKS2 in a member of an md RAID1, as Linux' installers make them.
func TestMirrorMember(t *testing.T) {
	t.Parallel()
	for version, where := range map[string]disk.Range{
		"1.2": {Offset: mib + mdtest.DataOffset, Length: 16*mib - mdtest.DataOffset},
		"1.0": {Offset: mib, Length: 16*mib - 64<<10},
	} {
		h := initialised(t)
		image := h.partitioned(t, "vm.img", 16*mib)
		partition := []disk.Range{{Offset: mib, Length: 16 * mib}}
		on(t, image, partition, func(p pieces) error {
			b := make([]byte, p.size())
			mdtest.Write(b, mdtest.Array{Version: version, Level: 1, Devices: 2, Name: "vm:root"}, 0)
			_, err := p.WriteAt(b, 0)
			return err
		})
		content := h.fileSystem(t, "root", "a letter in a mirror\n")
		on(t, image, []disk.Range{where}, func(p pieces) error { return luksOn(p, rootPass, content) })
		says := tool(t, "", judge.Tool(t, "mdadm"), "--examine", judge.Loop(t, taken(t, image, partition, h.path("member")), 512))
		if !strings.Contains(says, "raid1") || !strings.Contains(says, "- correct") {
			t.Fatal(says)
		}
		judge.Decided(t, "mdadm --examine")

		p := h.protect("vm", image)
		if len(p.Disks[0].Volumes) != 1 || p.Disks[0].Volumes[0].ID != "p1" || p.Disks[0].Volumes[0].Type != "luks2" {
			t.Fatalf("version %s: %+v", version, p)
		}
		h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("root.pass", rootPass+"\n"))
		h.do(0, "prove", "vm@latest")
		h.do(0, "browse", "get", "vm@latest/vda/p1:/letter.txt", "--to", h.dir, "--reason", "a test")
		if err := same(h.path("letter.txt"), h.path("files-root", "letter.txt")); err != nil {
			t.Error(err)
		}
		restored, exported := h.path("restored"), h.path("exported")
		h.do(0, "restore", "vm@latest", "--volume", "p1="+restored)
		h.do(0, "header", "export", "vm@latest/vda/p1", "--to", exported)
		if err := same(restored, taken(t, image, []disk.Range{where}, h.path("volume"))); err != nil {
			t.Error(err)
		}
		if !opens(t, restored, rootPass) || !opens(t, restored, rootPass, "--header", exported) {
			t.Error("cryptsetup does not open it")
		}
		target := h.path("target")
		tool(t, "", "cp", image, target)
		on(t, target, []disk.Range{where}, func(p pieces) error {
			_, err := p.WriteAt(make([]byte, mib), 0)
			return err
		})
		h.do(0, "header", "restore", "vm@latest/vda/p1", "--to", target, "--backup", h.path("backup"))
		if err := same(image, target); err != nil {
			t.Error(err)
		}
		on(t, image, []disk.Range{where}, func(p pieces) error { return rekey(p, rootPass, newPass) })
		h.do(3, "backup", "vm")
		if c := h.changed("vm@latest"); !strings.Contains(c, "vda/p1: protector rotated") {
			t.Errorf("changed: %s", c)
		}
	}
}

// TestLVMInsideLUKS: a disk of a real installation, whose logical volumes are
// seen once the volume around them is open.
func TestLVMInsideLUKS(t *testing.T) {
	t.Parallel()
	const name = "disk/disk-gpt-esp-boot-luks2-lvm"
	h := initialised(t)
	image := filepath.Join(unpack(t, h.dir, name+".img.xz"), filepath.Base(name)+".img")
	notes, err := os.ReadFile(filepath.Join(judge.Fixtures(t), name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	h.do(0, "machine", "add", "vm", "--disk", "vda="+image)
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "fixture-pass"))
	h.do(0, "backup", "vm")
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}

	var drill struct {
		Outcome string
		Steps   []struct{ Kind, Outcome, Volume, Detail string }
	}
	r := h.ask(&drill, []int{0}, "drill", "vm@latest", "--reason", "a rehearsal")
	did := map[string]int{}
	for _, s := range drill.Steps {
		if s.Outcome == "passed" {
			did[s.Kind]++
		}
	}
	if drill.Outcome != "passed" || did["unlock"] != 1 || did["sample"] < 3 {
		t.Errorf("%v", r)
	}

	root := "vm@latest/vda/vgroot-root:/"
	h.do(0, "browse", "get", root+"d", "--to", h.dir, "--reason", "a lost file")
	listed := 0
	for line := range strings.Lines(string(notes)) {
		want, file, _ := strings.Cut(strings.TrimSpace(line), "  ")
		if len(want) != 64 || strings.Contains(want, " ") {
			continue
		}
		listed++
		if got := sum(t, h.path("d", file)); got != want {
			t.Errorf("%s: %s, listed is %s", file, got, want)
		}
	}
	if listed != 4 {
		t.Fatalf("%d sums are listed", listed)
	}
	judge.Decided(t, "sha256sum of the files in fixtures/disk")
	if link, err := os.Readlink(h.path("d", "link")); err != nil || link != "hello.txt" {
		t.Errorf("%q, %v", link, err)
	}
	for path, want := range map[string]string{
		"vgroot-root:/etc/fstab": "root UUID=x / ext4\n", "vgroot-home:/user.txt": "home\n", "p2:/vmlinuz": "vmlinuz\n", "p1:/boot.efi": "efi\n",
	} {
		args := []string{"browse", "cat", "vm@latest/vda/" + path}
		if strings.HasPrefix(path, "vg") {
			args = append(args, "--reason", "a lost file")
		}
		if r := h.do(0, args...); r.stdout != want {
			t.Errorf("%v", r)
		}
	}
}

// TestNotLookedInto: what may be encrypted and is not read is no silence.
func TestNotLookedInto(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	lv := func(name string, s ...lvmtest.Segment) lvmtest.Volume { return lvmtest.Volume{Name: name, Segments: s} }
	group := h.partitioned(t, "group.img", 16*mib)
	on(t, group, []disk.Range{{Offset: mib, Length: 16 * mib}}, func(p pieces) error {
		return lvmtest.Write(lvmtest.Group{Name: "vg", Devices: []lvmtest.Device{
			{Name: "pv0", W: p, Size: 16 * mib}, {Name: "pv1", Size: 16 * mib, Absent: true},
		}, Volumes: []lvmtest.Volume{
			lv("thin", lvmtest.Segment{Extents: 2, Type: "thin", Lines: "thin_pool = \"pool\"\ntransaction_id = 0\ndevice_id = 1\n"}),
			lv("half", lvmtest.Linear("pv0", 0, 1), lvmtest.Linear("pv1", 0, 1)),
			lv("whole", lvmtest.Linear("pv0", 1, 2)),
		}})
	})
	array := h.partitioned(t, "array.img", 16*mib)
	on(t, array, []disk.Range{{Offset: mib, Length: 16 * mib}}, func(p pieces) error {
		b := make([]byte, p.size())
		mdtest.Write(b, mdtest.Array{Version: "1.2", Level: 5, Devices: 3, Name: "vm:root"}, 0)
		_, err := p.WriteAt(b, 0)
		return err
	})
	for _, c := range []struct {
		image string
		all   map[string]string // area: why
	}{
		{group, map[string]string{"vg-thin": "thin", "vg-half": "missing"}},
		{array, map[string]string{"p1": "only members of a RAID1"}},
	} {
		name := strings.TrimSuffix(filepath.Base(c.image), ".img")
		added := h.do(0, "machine", "add", name, "--disk", "vda="+c.image)
		made := h.do(0, "backup", name)
		shown := h.do(0, "point", "show", name+"@latest")
		var p struct {
			State    string
			Warnings []string
		}
		h.ask(&p, []int{0}, "point", "show", name+"@latest")
		if p.State != "plain" || len(p.Warnings) != len(c.all) {
			t.Errorf("%+v", p)
		}
		for area, why := range c.all {
			says := "warning: vda/" + area + " was not looked into: it may be encrypted, and nothing proves that it opens: "
			if !strings.Contains(added.stderr, "vda: "+area+": ") || !strings.Contains(made.stderr, says) || !strings.Contains(made.stderr, why) {
				t.Errorf("%s: %v\n%v", area, added, made)
			}
			if !strings.Contains(shown.stdout, "vda/"+area+" was not looked into") || !strings.Contains(shown.stdout, "not looked into: ") {
				t.Errorf("%s: %v", area, shown)
			}
		}
		if strings.Contains(made.stderr, "vg-whole") {
			t.Errorf("%v", made)
		}
	}
}
