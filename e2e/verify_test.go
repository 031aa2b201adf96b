package e2e

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// objects are the files below a folder of the host's repository, the largest first.
func (h *host) objects(prefix string) []string {
	h.tb.Helper()
	sizes := map[string]int64{}
	var out []string
	err := filepath.WalkDir(filepath.Join(h.data, "repository", prefix), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sizes[path] = info.Size()
			out = append(out, path)
		}
		return err
	})
	if err != nil || len(out) == 0 {
		h.tb.Fatalf("%d objects below %s: %v", len(out), prefix, err)
	}
	slices.SortFunc(out, func(a, b string) int { return int(sizes[b] - sizes[a]) })
	return out
}

// flipMiddle changes a byte in the middle of a file; again, it is as before.
func flipMiddle(tb testing.TB, path string) {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		b[len(b)/2] ^= 0x10
		_ = os.Chmod(path, 0o600)
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// TestWhatVerifyingFinds damages a repository on the disk: each way to look
// finds what it promises to, names it, and leaves to the others what is theirs.
func TestWhatVerifyingFinds(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	image := h.path("web01.img")
	if err := makeDisk(image, 24*mib, "secret"); err != nil {
		t.Fatal(err)
	}
	h.do(0, "machine", "add", "web01", "--disk", "vda="+image)
	var first, second point
	h.ask(&first, []int{3}, "backup", "web01")
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := scribble(image, 5, 20); err != nil {
		t.Fatal(err)
	}
	h.ask(&second, []int{3}, "backup", "web01")
	stored := []string{"verify", "--without-keys", filepath.Join(h.data, "repository"), "--data", h.path("nothing")}
	modes := map[string][]string{
		"data": {"verify"}, "structure": {"verify", "--structure"}, "sample": {"verify", "--sample", "100%"},
		"stored": stored, "scrub": {"scrub"},
	}
	// look lets every mode look, and gives the damage that each found.
	look := func(when string, finds ...string) map[string][]api.Damage {
		t.Helper()
		found := map[string][]api.Damage{}
		for mode, args := range modes {
			exit := 0
			if slices.Contains(finds, mode) {
				exit = 6
			}
			var v struct{ Damage []api.Damage }
			h.ask(&v, []int{exit}, args...)
			if (len(v.Damage) > 0) != (exit == 6) {
				t.Errorf("%s: %s: %+v", when, mode, v.Damage)
			}
			found[mode] = v.Damage
		}
		return found
	}
	look("sound")

	// A byte of content: what reads no content does not see it.
	segment := h.objects("seg")[0]
	flipMiddle(t, segment)
	key, err := filepath.Rel(filepath.Join(h.data, "repository"), segment)
	if err != nil {
		t.Fatal(err)
	}
	for mode, damage := range look("content", "data", "sample", "stored", "scrub") {
		for _, d := range damage {
			if d.Object != key {
				t.Errorf("%s names %s, not %s", mode, d.Object, key)
			}
			if mode == "stored" {
				continue
			}
			if d.Machine != "web01" || d.Disk != "vda" || d.Range == nil || d.Range.Length != 65536 || !slices.Contains(d.Points, first.ID) {
				t.Errorf("%s does not say where: %+v", mode, d)
			}
		}
	}
	// A sample says what chose it, and chooses the same again.
	var one, again api.VerifyResult
	h.ask(&one, []int{0, 6}, "verify", "--sample", "20%")
	h.ask(&again, []int{0, 6}, "verify", "--sample", "20%", "--seed", one.Seed)
	if len(one.Seed) != 32 || again.Seed != one.Seed || again.ReadBytes != one.ReadBytes || len(again.Damage) != len(one.Damage) {
		t.Errorf("a sample: %+v, again: %+v", one, again)
	}

	// A restore ends there, or goes on and says where the zeroes are.
	to := h.path("to.img")
	h.do(6, "restore", first.ID, "--disk", "vda="+to)
	if _, err := os.Stat(to); err == nil {
		t.Error("a restore that failed left its target")
	}
	lists := [2][]byte{}
	for i, keepGoing := range []func(list string){
		func(list string) {
			h.do(6, "restore", first.ID, "--disk", "vda="+to, "--keep-going", "--damage-list", list)
		},
		func(list string) {
			h.recover(6, "restore", first.ID, "--disk", "vda="+to, "--keep-going", "--damage-list", list,
				"--repository", filepath.Join(h.data, "repository"), "--identity", h.kit)
		},
	} {
		list := h.path("damage.json")
		keepGoing(list)
		raw, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		var l struct {
			Point string
			Disks []struct {
				Disk    string
				Damaged []api.DamagedRange `json:"damaged_ranges"`
			}
		}
		if err := json.Unmarshal(raw, &l); err != nil || l.Point != first.ID || len(l.Disks) != 1 || l.Disks[0].Disk != "vda" || len(l.Disks[0].Damaged) != 1 {
			t.Fatalf("the list is %s: %v", raw, err)
		}
		expect := bytes.Clone(want)
		for _, d := range l.Disks[0].Damaged {
			clear(expect[d.Offset : d.Offset+d.Length])
		}
		got, err := os.ReadFile(to)
		if err != nil || !bytes.Equal(got, expect) || bytes.Equal(got, want) {
			t.Errorf("what is not damaged is not back, or the rest is not zero: %v", err)
		}
		lists[i] = raw
		for _, path := range []string{to, list} {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !bytes.Equal(lists[0], lists[1]) {
		t.Errorf("lockstep lists\n%s, lockstep-recover\n%s", lists[0], lists[1])
	}
	// The job has the list as well.
	var jobs []api.Job
	h.ask(&jobs, []int{0}, "job", "list")
	i := slices.IndexFunc(jobs, func(j api.Job) bool { return j.Kind == "restore" && j.Restore != nil && j.State == "succeeded" })
	if i < 0 || len(jobs[i].Restore.Disks[0].Damaged) != 1 || jobs[i].Exit != 6 {
		t.Errorf("the restore's job: %+v", jobs)
	}
	flipMiddle(t, segment)
	look("mended")

	// An object that is gone: nothing is wrong with what is there.
	gone := h.objects("map")[0]
	aside := h.path("aside")
	if err := os.Rename(gone, aside); err != nil {
		t.Fatal(err)
	}
	for mode, damage := range look("a map gone", "data", "structure", "sample") {
		for _, d := range damage {
			if !strings.HasPrefix(d.Object, "map/") && d.Range == nil || d.Machine != "web01" || len(d.Points) == 0 {
				t.Errorf("%s: %+v", mode, d)
			}
		}
	}
	if err := os.Rename(aside, gone); err != nil {
		t.Fatal(err)
	}
	// What was found damaged is remembered until it was found whole.
	if r := h.do(6, "status"); !strings.Contains(r.stderr, "DAMAGED") {
		t.Errorf("status does not know of the damage: %v", r)
	}
	h.do(0, "verify")
	// All of it was read just now: status has nothing to warn of.
	h.do(0, "scrub", "--older-than", "1d", "--warn-after", "1w")
	if r := h.do(3, "status"); strings.Contains(r.stderr, "read back") {
		t.Errorf("status warns: %v", r)
	}
}
