package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestYearsOfHistory: five images of a LUKS disk over time, in five formats,
// whose passphrase was changed in the middle, become recovery points with their
// own times and get their keys proven.
func TestYearsOfHistory(t *testing.T) {
	t.Parallel()
	cryptsetup, qemuImg := judge.Tool(t, "cryptsetup"), judge.Tool(t, "qemu-img")
	judge.Tool(t, "qemu-nbd")
	h := initialised(t)
	const oldPhrase, newPhrase = "the passphrase of 2019", "the passphrase of 2021"
	old, changed := h.write("old.key", oldPhrase), h.write("new.key", newPhrase)
	folder := h.path("history")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := h.path("disk.raw")
	blank(t, disk, 32*mib)
	quickFormat(t, disk, oldPhrase)
	wants := map[int]string{} // raw copies by year
	for i, format := range []string{"raw", "qcow2", "vpc", "vmdk", "vhdx"} {
		year := 2019 + i
		if year == 2021 {
			tool(t, "", cryptsetup, "luksChangeKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", old, disk, changed)
		}
		writeAt(t, disk, 20<<20+int64(i)*(1<<20), fmt.Sprintf("written in %d", year))
		wants[year] = h.path(fmt.Sprintf("want-%d.raw", year))
		tool(t, "", "cp", disk, wants[year])
		args := []string{"convert", "-f", "raw", "-O", format, disk, filepath.Join(folder, fmt.Sprintf("web01-%d-06-30.%s", year, suffix(format)))}
		if format == "vpc" {
			args = append(args, "-o", "force_size=on")
		}
		tool(t, "", qemuImg, args...)
	}
	if err := os.WriteFile(filepath.Join(folder, "README"), []byte("not an image"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := []string{"import", "web01", "--directory", folder, "--time-from", "name:web01-%Y-%m-%d"}

	var plan api.ImportResult
	h.ask(&plan, []int{0}, append(command, "--dry-run")...)
	if len(plan.Items) != 5 || len(plan.PassedOver) != 1 || plan.Items[2].SizeBytes != 32<<20 || plan.Items[0].Point != "" {
		t.Fatalf("planned: %+v", plan)
	}
	h.do(1, "machine", "show", "web01") // nothing was made of it
	var made api.ImportResult
	h.ask(&made, []int{3}, command...)
	for i, it := range made.Items {
		if it.Time.Year() != 2019+i || it.State != api.StateUnrecoverable || it.Existing {
			t.Errorf("imported: %+v", it)
		}
	}
	if len(made.Items) != 5 {
		t.Fatalf("imported: %+v", made)
	}
	var again api.ImportResult
	h.ask(&again, []int{0}, command...)
	for i, it := range again.Items {
		if !it.Existing || it.Point != made.Items[i].Point {
			t.Errorf("imported again: %+v", it)
		}
	}

	// The keys of all years: the old one opens what is before the change.
	var added api.SecretAddResult
	h.ask(&added, []int{0}, "secret", "add", "web01", "--kind", "passphrase", "--file", old)
	if len(added.Proven) != 2 {
		t.Errorf("the old passphrase opens %q", added.Proven)
	}
	h.ask(&added, []int{0}, "secret", "add", "web01", "--kind", "passphrase", "--file", changed)
	if len(added.Proven) != 3 {
		t.Errorf("the new passphrase opens %q", added.Proven)
	}
	var status api.Status
	h.ask(&status, []int{0}, "status", "web01")
	if status.Machines[0].State != api.StateProven || len(status.Machines[0].Points) != 5 {
		t.Errorf("status: %+v", status.Machines[0])
	}

	// One of the middle, by its time.
	to := h.path("restored.raw")
	h.do(0, "restore", "web01@2020-12-31T00:00:00Z", "--disk", "vda="+to)
	if out := tool(t, "", qemuImg, "compare", "-f", "raw", "-F", "raw", to, wants[2020]); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	judge.Decided(t, "qemu-img compare")
	if !opens(t, to, oldPhrase) || opens(t, to, newPhrase) {
		t.Error("the disk of 2020 does not open as it should")
	}
	// Every other by standard output.
	for i, it := range made.Items {
		year := 2019 + i
		cmd := h.command("restore", it.Point, "--disk", "vda=-", "--quiet")
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			t.Fatalf("%d: %v: %s", year, err, said.String())
		}
		want, err := os.ReadFile(wants[year])
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%d: %d bytes on standard output, not the disk", year, out.Len())
		}
	}
	// The volume is the whole disk here.
	h.do(0, "restore", made.Items[4].Point, "--volume", "vda/disk="+h.path("volume.raw"))
	if !opens(t, h.path("volume.raw"), newPhrase) {
		t.Error("the volume of 2023 does not open")
	}

	// What is older comes first, or under another name; the present builds on it.
	r := h.do(4, "import", "web01", "--time", "2018-01-01T00:00:00Z", "--disk", "vda="+disk)
	if !strings.Contains(r.stderr, "NAME-history") {
		t.Errorf("no way out: %v", r)
	}
	h.do(2, "import", "web01", "--time", "2999-01-01T00:00:00Z", "--disk", "vda="+disk)
	h.do(1, "backup", "web01") // it has no disk yet
	h.do(0, "machine", "change", "web01", "--disk", "vda="+disk)
	var now api.Point
	h.ask(&now, []int{0}, "backup", "web01")
	if now.Parent != made.Items[4].Point || now.Transfer != "incremental" || now.State != api.StateProven {
		t.Errorf("the backup behind the history: %+v", now)
	}
	h.do(0, "verify")
	h.do(0, "audit", "verify")
}

// TestImportsThatCannotBe: what is cut short, older, another, or of no time is
// not imported, and a dry run says so as the import does.
func TestImportsThatCannotBe(t *testing.T) {
	t.Parallel()
	qemuImg := judge.Tool(t, "qemu-img")
	judge.Tool(t, "qemu-nbd")
	h := initialised(t)
	disk := h.path("disk.raw")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("0123456789abcdef"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	cut := h.path("cut.qcow2")
	tool(t, "", qemuImg, "convert", "-f", "raw", "-O", "qcow2", disk, cut)
	if err := os.Truncate(cut, 2<<20); err != nil {
		t.Fatal(err)
	}
	for _, dry := range [][]string{{}, {"--dry-run"}} {
		r := h.do(1, append([]string{"import", "cut", "--time", "2019-01-01T00:00:00Z", "--disk", "vda=" + cut}, dry...)...)
		if !strings.Contains(r.stderr, "cut short") || !strings.Contains(r.stderr, "qemu-img check") {
			t.Errorf("cut short: %v", r)
		}
		for _, early := range []string{"0000-01-01T00:00:00Z", "1979-12-31T23:59:59Z"} {
			r = h.do(2, append([]string{"import", "cut", "--time", early, "--disk", "vda=" + disk}, dry...)...)
			if !strings.Contains(r.stderr, "1980") {
				t.Errorf("%s: %v", early, r)
			}
		}
	}
	h.do(0, "machine", "add", "cut", "--disk", "vda=file://"+cut+"?format=qcow2")
	if r := h.do(1, "backup", "cut"); !strings.Contains(r.stderr, "cut short") {
		t.Errorf("cut short, backed up: %v", r)
	}

	folder := h.path("history")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	add := func(name string) { tool(t, "", "cp", disk, filepath.Join(folder, name)) }
	for _, day := range []string{"01", "02", "03"} {
		add("a-2020-01-" + day + ".raw")
	}
	command := []string{"import", "vm", "--directory", folder, "--time-from", "name:%Y-%m-%d"}
	var made api.ImportResult
	h.ask(&made, []int{0, 3}, command...)
	h.do(0, "point", "delete", made.Items[0].Point)
	add("a-2020-01-04.raw")
	add("b-2019-12-31.raw")
	for _, dry := range [][]string{{"--dry-run"}, {}} {
		var got api.ImportResult
		h.ask(&got, []int{0, 3}, append(command, dry...)...)
		if len(got.Items) != 3 || !got.Items[1].Existing || got.Items[2].Existing || strings.Join(got.Older, " ") != "b-2019-12-31.raw a-2020-01-01.raw" {
			t.Errorf("%q goes on: %+v", dry, got)
		}
	}
	for _, dry := range [][]string{{}, {"--dry-run"}} {
		r := h.do(4, append([]string{"import", "vm", "--time", "2020-01-01T00:00:00Z", "--disk", "vda=" + disk}, dry...)...)
		if !strings.Contains(r.stderr, "NAME-history") {
			t.Errorf("a single older one: %v", r)
		}
		r = h.do(4, append([]string{"import", "vm", "--time", "2020-01-03T00:00:00Z", "--disk", "vda=" + disk}, dry...)...)
		if !strings.Contains(r.stderr, "disk.raw") || !strings.Contains(r.stderr, "a-2020-01-03.raw") {
			t.Errorf("another of the same time: %v", r)
		}
	}
	add("c-2020-01-04.raw")
	if r := h.do(4, command...); !strings.Contains(r.stderr, "a-2020-01-04.raw and c-2020-01-04.raw") || !strings.Contains(r.stderr, "%H") {
		t.Errorf("two of one time: %v", r)
	}
}

// blank makes a file of zeroes.
func blank(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func writeAt(t *testing.T, path string, off int64, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
}

func suffix(format string) string {
	if format == "vpc" {
		return "vhd"
	}
	return format
}

// TestPartsAndLargerDisks: sgdisk says where partitions are, and what is wrong
// with a disk that became larger, and that what we advise helps.
func TestPartsAndLargerDisks(t *testing.T) {
	t.Parallel()
	const phrase = "a passphrase"
	sgdisk := judge.Tool(t, "sgdisk")
	h := initialised(t)
	key := h.write("key", phrase)
	disk, volume := h.path("disk.raw"), h.path("volume.raw")
	blank(t, disk, 64*mib)
	blank(t, volume, 32*mib)
	quickFormat(t, volume, phrase)
	tool(t, "", sgdisk, "--new=1:0:+8M", "--new=2:0:+32M", disk)
	writeAt(t, disk, 3<<20, "in the boot partition")
	content, err := os.ReadFile(volume)
	if err != nil {
		t.Fatal(err)
	}
	var first int64
	for line := range strings.Lines(tool(t, "", sgdisk, "--info=2", disk)) {
		_, _ = fmt.Sscanf(line, "First sector: %d", &first)
	}
	writeAt(t, disk, first*512, string(content))
	h.do(0, "machine", "add", "vm", "--disk", "vda="+disk)
	h.do(3, "backup", "vm")
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", key)

	boot, luks := h.path("boot.raw"), h.path("luks.raw")
	h.do(0, "restore", "vm@latest", "--disk", "vda/1="+boot, "--volume", "vda/p2="+luks)
	whole, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(boot)
	if err != nil || len(got) != 8<<20 || !bytes.Equal(got, whole[1<<20:9<<20]) {
		t.Errorf("partition 1: %d bytes, %v", len(got), err)
	}
	judge.Decided(t, "sgdisk --info")
	if !opens(t, luks, phrase) {
		t.Error("partition 2 does not open")
	}
	h.do(2, "restore", "vm@latest", "--disk", "vda/3="+h.path("none"))
	h.do(2, "restore", "vm@latest", "--disk", "vda/="+h.path("none"))

	if os.Getuid() != 0 {
		return
	}
	// A device that is larger: refused, then taken, and the advice helps.
	back := h.path("device.raw")
	blank(t, back, 96*mib)
	device := judge.Loop(t, back, 512)
	r := h.do(7, "restore", "vm@latest", "--disk", "vda="+device)
	if !strings.Contains(r.stderr, "--larger") {
		t.Errorf("no way out: %v", r)
	}
	r = h.do(0, "restore", "vm@latest", "--disk", "vda="+device, "--larger")
	if !strings.Contains(r.stderr, "sgdisk --move-second-header "+device) {
		t.Errorf("it does not say what to do: %v", r)
	}
	written, err := os.ReadFile(device)
	if err != nil || !bytes.Equal(written[:len(whole)], whole) || len(bytes.Trim(written[len(whole):], "\x00")) != 0 {
		t.Errorf("the device is not the disk with nothing behind: %v", err)
	}
	if out := tool(t, "", sgdisk, "--verify", device); !strings.Contains(out, "secondary header's self-pointer") {
		t.Errorf("sgdisk finds nothing to do: %s", out)
	}
	tool(t, "", sgdisk, "--move-second-header", device)
	if out := tool(t, "", sgdisk, "--verify", device); !strings.Contains(out, "No problems found") {
		t.Errorf("after the advice: %s", out)
	}
	judge.Decided(t, "sgdisk --verify")
}

// TestNBDSource: a machine whose disk is an export.
func TestNBDSource(t *testing.T) {
	t.Parallel()
	qemuNBD := judge.Tool(t, "qemu-nbd")
	h := initialised(t)
	disk := h.path("disk.raw")
	if err := os.WriteFile(disk, bytes.Repeat([]byte("0123456789abcdef"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := h.path("s")
	cmd := exec.Command(qemuNBD, "--read-only", "--persistent", "--shared=8", "--format=raw", "--export-name=vda", "--fork", "--pid-file="+h.path("pid"), "--socket="+socket, disk)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		pid, err := os.ReadFile(h.path("pid"))
		if err == nil {
			_ = exec.Command("kill", strings.TrimSpace(string(pid))).Run()
		}
	})
	url := "nbd+unix:///vda?socket=" + socket
	h.do(0, "machine", "add", "vm", "--disk", "vda="+url)
	r := h.do(4, "backup", "vm")
	if !strings.Contains(r.stderr, "consistency=crash-consistent") {
		t.Errorf("no way out: %v", r)
	}
	var p api.Point
	h.ask(&p, []int{0}, "backup", "vm", "--allow-live")
	if p.Consistency != "none" {
		t.Errorf("consistency %q", p.Consistency)
	}
	h.do(0, "machine", "change", "vm", "--disk", "vda="+url+"&consistency=crash-consistent")
	h.ask(&p, []int{0}, "backup", "vm", "--limit-read", "1G", "--limit-write", "1G")
	if p.Consistency != "crash-consistent" || p.ChangedBytes != 0 {
		t.Errorf("%+v", p)
	}
	h.do(0, "restore", "vm@latest", "--disk", "vda="+h.path("restored.raw"))
	want, err := os.ReadFile(disk)
	got, err2 := os.ReadFile(h.path("restored.raw"))
	if err != nil || err2 != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, %v: the restored disk is another", err, err2)
	}
	judge.Decided(t, "qemu-nbd")
}
