package lvm_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/lvm"
	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// tools runs lvm2's programs on loop devices alone.
type tools struct {
	t       *testing.T
	devices []string
}

func (l tools) run(name string, args ...string) string {
	l.t.Helper()
	var filter []string
	for _, d := range l.devices {
		filter = append(filter, fmt.Sprintf(`"a|^%s$|"`, d))
	}
	args = append([]string{
		"--config",
		"devices{use_devicesfile=0 hints=\"none\" filter=[" + strings.Join(append(filter, `"r|.*|"`), ",") + "]}" +
			"backup{backup=0 archive=0}activation{udev_sync=0 udev_rules=0 monitoring=0}",
	}, args...)
	cmd := exec.Command(judge.Tool(l.t, name), args...)
	cmd.Env = append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("%s %s: %v: %s", name, args, err, stderr.Bytes())
	}
	return string(out)
}

// loops puts images on loop devices.
func loops(t *testing.T, images ...memory) tools {
	t.Helper()
	l := tools{t: t}
	for i, m := range images {
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%d.img", i))
		if err := os.WriteFile(path, m, 0o600); err != nil {
			t.Fatal(err)
		}
		l.devices = append(l.devices, judge.Loop(t, path, 512))
	}
	return l
}

// TestWriterJudged: lvm2 reads what lvmtest writes as we do, and finds nothing wrong with it.
func TestWriterJudged(t *testing.T) {
	for _, textAt := range []int64{0, lvmtest.AreaSize - 1024, lvmtest.AreaSize - 512} {
		g, images := sample(2)
		for i := range g.Devices {
			g.Devices[i].TextAt = textAt
		}
		write(t, g)
		l := loops(t, images...)
		if out := l.run("vgck", g.Name); strings.Contains(out, "rror") {
			t.Fatal(out)
		}
		judge.Decided(t, "vgck")
		checkSegments(t, l, images, g.Name)
		dump := l.run("pvck", "--dump", "metadata", l.devices[0])
		if !strings.Contains(dump, g.Name) {
			t.Fatal(dump)
		}
		judge.Decided(t, "pvck --dump metadata")
	}
}

// checkSegments compares where lvm2 and we say that the linear pieces of a group lie.
func checkSegments(t *testing.T, l tools, images []memory, vg string) {
	t.Helper()
	pvs := read(t, images...)
	a := lvm.Assemble(pvs)
	if len(a.VGs) != 1 || len(a.Warnings) > 0 || len(a.VGs[0].Warnings) > 0 {
		t.Fatalf("%+v", a)
	}
	var ours []string
	for _, lv := range a.VGs[0].LVs {
		ours = append(ours, fmt.Sprintf("%s %d", lv.Name, lv.Size))
	}
	var theirs []string
	for line := range strings.Lines(l.run("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size", vg)) {
		theirs = append(theirs, strings.Join(strings.Fields(line), " "))
	}
	if strings.Join(ours, "\n") != strings.Join(theirs, "\n") {
		t.Fatalf("ours %q, lvs says %q", ours, theirs)
	}
	judge.Decided(t, "lvs")
	// Each physical extent in turn: to whom it belongs, and where in it.
	n := 0
	for line := range strings.Lines(l.run("pvs", "--segments", "--noheadings", "--separator", ";", "--units", "b", "--nosuffix", "-o",
		"pv_name,pvseg_start,pvseg_size,lv_name,segtype,seg_start,stripes")) {
		f := strings.Split(strings.TrimSpace(line), ";")
		lv := find(a.VGs[0], f[3])
		if lv == nil || f[4] != "linear" {
			continue
		}
		var from, size, at int64
		if _, err := fmt.Sscan(f[1]+" "+f[2]+" "+f[5], &from, &size, &at); err != nil {
			t.Fatal(line, err)
		}
		device := 0
		for i, d := range l.devices {
			if d == f[0] {
				device = i
			}
		}
		extents, err := lv.Extents(100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range extents {
			if at < e.Length {
				want := lvmtest.Start + from*a.VGs[0].ExtentSize
				if e.PV != pvs[device] || e.Offset+at != want {
					t.Fatalf("%s at %d: ours %s:%d, pvs says %s:%d", lv.Name, at, e.PV.Name, e.Offset+at, f[0], want)
				}
				n++
				break
			}
			at -= e.Length
		}
	}
	if n == 0 {
		t.Fatal("pvs --segments decided nothing")
	}
	judge.Decided(t, "pvs --segments")
}

// TestReaderOnLVM reads what pvcreate, vgcreate and vgcfgrestore wrote, several times over.
func TestReaderOnLVM(t *testing.T) {
	g, images := sample(2)
	for i := range images {
		clear(images[i])
	}
	l := loops(t, images...)
	var args []string
	for i, d := range l.devices {
		l.run("pvcreate", "-q", "--norestorefile", "--pvmetadatacopies", "2", "-u", g.PVID(g.Devices[i].Name), d)
		args = append(args, d)
	}
	l.run("vgcreate", append([]string{"-q", "-s", "1m", g.Name}, args...)...)
	judge.Decided(t, "pvcreate, vgcreate")
	path := filepath.Join(t.TempDir(), "text")
	for i := range g.Devices {
		g.Devices[i].Areas = 2
	}
	if err := os.WriteFile(path, []byte(g.Text()), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		l.run("vgcfgrestore", "-q", "-f", path, g.Name)
		judge.Decided(t, "vgcfgrestore")
		for i, d := range l.devices {
			b, err := os.ReadFile(d)
			if err != nil {
				t.Fatal(err)
			}
			images[i] = b
		}
		for _, p := range read(t, images...) {
			if p.Text == nil || len(p.Damage) > 0 || p.Areas != 2 || p.Text.SeqNo < int64(round)+1 {
				t.Fatalf("round %d: %+v", round, p)
			}
		}
		checkSegments(t, l, images, g.Name)
	}
}
