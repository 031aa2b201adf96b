//go:build linux

// Command bench measures Lockstep's engine side by side with dd, cp and,
// where they are installed, restic and borg, on one image of incompressible
// bytes, and prints a table of ratios within the run. Figures from it go to
// docs/performance.md.
//
//	go run ./bench -dir /var/tmp/bench -size 8 -runs 3
//
// It needs root to drop the page cache between steps; -warm leaves it.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		if err := engine(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	dir := flag.String("dir", "", "scratch folder on the disk to measure (default: a new one beside the working folder)")
	size := flag.Int("size", 8, "GiB of the image")
	runs := flag.Int("runs", 3, "runs of each step; the median counts")
	warm := flag.Bool("warm", false, "leave the page cache as it is")
	peers := flag.Bool("peers", false, "measure restic and borg too, where installed")
	growth := flag.Bool("growth", true, "measure growth of incrementals")
	flag.Parse()
	if err := run(*dir, int64(*size)<<30, *runs, *warm, *peers, *growth); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run's places and what it measured.
type bench struct {
	dir, image string
	size       int64
	runs       int
	warm       bool
	wall       map[string][]float64
	cpu        map[string][]float64
	rss        map[string]int64 // KiB, the most of all runs
}

func run(dir string, size int64, runs int, warm, peers, growth bool) error {
	if dir == "" {
		d, err := os.MkdirTemp(".", "bench-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(d)
		dir = d
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	b := &bench{
		dir: dir, image: filepath.Join(dir, "image.raw"), size: size, runs: runs, warm: warm,
		wall: map[string][]float64{}, cpu: map[string][]float64{}, rss: map[string]int64{},
	}
	if err := b.makeImage(); err != nil {
		return err
	}
	for range runs {
		if err := b.round(peers); err != nil {
			return err
		}
	}
	b.table(peers)
	if growth {
		return b.growth()
	}
	return nil
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// makeImage writes noise around the page cache.
func (b *bench) makeImage() error {
	f, err := os.OpenFile(b.image, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	src := rand.NewChaCha8([32]byte{1})
	buf := disk.AlignedBuffer(4 << 20)
	for n := int64(0); n < b.size; n += int64(len(buf)) {
		_, _ = src.Read(buf)
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

func (b *bench) dropCaches() error {
	unix.Sync()
	if b.warm {
		return nil
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
		return fmt.Errorf("drop page cache (root, or -warm): %w", err)
	}
	return nil
}

// step runs a command cold and notes wall, CPU and peak memory of it and its children.
func (b *bench) step(name string, argv ...string) error {
	if err := b.dropCaches(); err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=bench", "BORG_PASSPHRASE=bench", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes")
	start := time.Now()
	out, err := cmd.CombinedOutput()
	wall := time.Since(start).Seconds()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return fmt.Errorf("%s: no resource usage", name)
	}
	b.wall[name] = append(b.wall[name], wall)
	b.cpu[name] = append(b.cpu[name], cmd.ProcessState.UserTime().Seconds()+cmd.ProcessState.SystemTime().Seconds())
	b.rss[name] = max(b.rss[name], usage.Maxrss)
	return nil
}

func (b *bench) engine(name, command string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return b.step(name, append([]string{self, "engine", command, b.path("repo")}, args...)...)
}

// Names of the steps.
const (
	stepDD       = "dd direct → direct"
	stepRead     = "dd direct → /dev/null"
	stepCopy     = "cp + fsync"
	stepFirst    = "lockstep first backup"
	stepSame     = "lockstep nothing changed"
	stepChanged  = "lockstep 1 % as 64 KiB"
	stepRestore  = "lockstep restore"
	stepVerify   = "lockstep verify all"
	stepPlain    = "dd direct of the repository"
	stepRestic   = "restic first backup"
	stepBorg     = "borg first backup"
	stepResticRe = "restic restore"
	stepBorgRe   = "borg restore"
)

func (b *bench) round(peers bool) error {
	for _, name := range []string{"repo", "copy", "restic", "borg"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	dd := []string{"dd", "if=" + b.image, "of=" + b.path("copy"), "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync"}
	if err := b.step(stepDD, dd...); err != nil {
		return err
	}
	_ = os.Remove(b.path("copy"))
	if err := b.step(stepRead, "dd", "if="+b.image, "of=/dev/null", "bs=4M", "iflag=direct"); err != nil {
		return err
	}
	if err := b.step(stepCopy, "sh", "-c", "cp '"+b.image+"' '"+b.path("copy")+"' && sync '"+b.path("copy")+"'"); err != nil {
		return err
	}
	_ = os.Remove(b.path("copy"))
	if err := b.engine(stepFirst, "backup", b.image); err != nil {
		return err
	}
	if err := b.engine(stepSame, "backup", b.image); err != nil {
		return err
	}
	if err := b.engine(stepVerify, "verify"); err != nil {
		return err
	}
	if err := b.step(stepPlain, "sh", "-c", "find '"+b.path("repo")+"' -type f -size +64k -print0 | xargs -0 -n1 -I{} dd if={} of=/dev/null bs=4M iflag=direct status=none"); err != nil {
		return err
	}
	if err := b.engine(stepRestore, "restore", b.path("copy")); err != nil {
		return err
	}
	if out, err := exec.Command("cmp", b.image, b.path("copy")).CombinedOutput(); err != nil {
		return fmt.Errorf("restored image differs: %w\n%s", err, out)
	}
	_ = os.Remove(b.path("copy"))
	if err := b.churn(0.01, 64<<10); err != nil {
		return err
	}
	if err := b.engine(stepChanged, "backup", b.image); err != nil {
		return err
	}
	if peers {
		return b.peers()
	}
	return nil
}

func (b *bench) peers() error {
	if _, err := exec.LookPath("restic"); err == nil {
		if out, err := exec.Command("sh", "-c", "RESTIC_PASSWORD=bench restic init -r '"+b.path("restic")+"'").CombinedOutput(); err != nil {
			return fmt.Errorf("restic init: %w\n%s", err, out)
		}
		if err := b.step(stepRestic, "restic", "-q", "-r", b.path("restic"), "backup", b.image); err != nil {
			return err
		}
		if err := b.step(stepResticRe, "restic", "-q", "-r", b.path("restic"), "restore", "latest", "--target", b.path("copy")); err != nil {
			return err
		}
		_ = os.RemoveAll(b.path("copy"))
		_ = os.RemoveAll(b.path("restic"))
	}
	if _, err := exec.LookPath("borg"); err == nil {
		if out, err := exec.Command("borg", "init", "-e", "none", b.path("borg")).CombinedOutput(); err != nil {
			return fmt.Errorf("borg init: %w\n%s", err, out)
		}
		if err := b.step(stepBorg, "borg", "create", "--compression", "none", b.path("borg")+"::a", b.image); err != nil {
			return err
		}
		if err := os.MkdirAll(b.path("copy"), 0o700); err != nil {
			return err
		}
		if err := b.step(stepBorgRe, "sh", "-c", "cd '"+b.path("copy")+"' && borg extract '"+b.path("borg")+"::a'"); err != nil {
			return err
		}
		_ = os.RemoveAll(b.path("copy"))
		_ = os.RemoveAll(b.path("borg"))
	}
	return nil
}

// churn overwrites a share of the image with noise, in pieces at random places.
func (b *bench) churn(share float64, piece int64) error {
	f, err := os.OpenFile(b.image, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	seed := [32]byte{2}
	copy(seed[8:], strconv.FormatInt(time.Now().UnixNano(), 10))
	src := rand.NewChaCha8(seed)
	rnd := rand.New(src)
	buf := make([]byte, piece)
	n := int64(float64(b.size) * share / float64(piece))
	for _, at := range rnd.Perm(int(b.size / piece))[:n] {
		_, _ = src.Read(buf)
		if _, err := f.WriteAt(buf, int64(at)*piece); err != nil {
			return err
		}
	}
	return f.Sync()
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[len(s)/2]
}

// ratio is the median of the ratios of paired runs.
func ratio(a, b []float64) float64 {
	var r []float64
	for i := range min(len(a), len(b)) {
		r = append(r, a[i]/b[i])
	}
	return median(r)
}

func (b *bench) table(peers bool) {
	cache := "cold cache"
	if b.warm {
		cache = "cache as it comes"
	}
	fmt.Printf("%d GiB incompressible, %s, median of %d\n\n", b.size>>30, cache, b.runs)
	fmt.Println("| step | wall s | CPU s | peak MiB | against | ratio wall |")
	fmt.Println("|---|---|---|---|---|---|")
	rows := [][2]string{
		{stepDD, ""},
		{stepRead, ""},
		{stepCopy, stepDD},
		{stepFirst, stepDD},
		{stepRestore, stepDD},
		{stepSame, stepRead},
		{stepChanged, stepSame},
		{stepPlain, ""},
		{stepVerify, stepPlain},
	}
	if peers {
		rows = append(rows, [2]string{stepRestic, stepDD}, [2]string{stepBorg, stepDD}, [2]string{stepResticRe, stepDD}, [2]string{stepBorgRe, stepDD})
	}
	for _, r := range rows {
		if len(b.wall[r[0]]) == 0 {
			continue
		}
		against, q := r[1], ""
		if against != "" {
			q = fmt.Sprintf("%.2f", ratio(b.wall[r[0]], b.wall[against]))
		}
		fmt.Printf("| %s | %.2f | %.2f | %d | %s | %s |\n", r[0], median(b.wall[r[0]]), median(b.cpu[r[0]]), b.rss[r[0]]>>10, against, q)
	}
	fmt.Println()
}

// usedBy counts a folder's bytes by the first part of the path below it.
func usedBy(dir string) (map[string]int64, error) {
	used := map[string]int64{}
	err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
		if err != nil || !i.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		used[strings.Split(rel, string(filepath.Separator))[0]] += i.Size()
		used["total"] += i.Size()
		return err
	})
	return used, err
}

func (b *bench) growth() error {
	for _, name := range []string{"repo", "copy"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	if err := b.engine("growth", "backup", b.image); err != nil {
		return err
	}
	before, err := usedBy(b.path("repo"))
	if err != nil {
		return err
	}
	fmt.Printf("repository after a first backup ÷ disk: %.4f\n\n", float64(before["total"])/float64(b.size))
	fmt.Println("| random writes | changed bytes | growth ÷ changed | of it maps |")
	fmt.Println("|---|---|---|---|")
	for _, c := range []struct {
		share float64
		piece int64
	}{{0.01, 4096}, {0.01, 65536}, {0.001, 4096}, {0.001, 65536}, {0.0001, 4096}, {0.0001, 65536}} {
		if err := b.churn(c.share, c.piece); err != nil {
			return err
		}
		if err := b.engine("growth", "backup", b.image); err != nil {
			return err
		}
		after, err := usedBy(b.path("repo"))
		if err != nil {
			return err
		}
		changed := float64(int64(float64(b.size)*c.share/float64(c.piece)) * c.piece)
		fmt.Printf("| %g %% as %d KiB | %.0f | %.3f | %.3f |\n", c.share*100, c.piece>>10, changed,
			float64(after["total"]-before["total"])/changed, float64(after["map"]-before["map"])/changed)
		before = after
	}
	return nil
}
