package export_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/export/exporttest"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/nbd"
)

// contents are two disks: one with holes, one small and of an odd size.
func contents() (vda, vdb []byte) {
	vda, vdb = make([]byte, 24<<20), make([]byte, 1<<20+512)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(vda)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(vdb)
	clear(vda[4<<20 : 8<<20])
	clear(vda[20<<20+65536 : 20<<20+3*65536])
	return vda, vdb
}

// serve exports a recovery point on a socket and gives its path.
func serve(t *testing.T, p *export.Point, o *export.Overlay) string {
	t.Helper()
	exports, err := p.Exports(o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := nbd.NewServer(nbd.Config{Exports: exports})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return path
}

func uri(socket, name string) string { return "nbd+unix:///" + name + "?socket=" + socket }

// run runs a judge and gives its output; name is how the case is counted.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	program, _, _ := strings.Cut(name, " ")
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	out, err := exec.CommandContext(ctx, judge.Tool(t, program), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
	judge.Decided(t, name)
	return string(out)
}

func file(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func same(t *testing.T, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: content differs", what)
	}
}

func TestJudgesRead(t *testing.T) {
	vda, vdb := contents()
	s := serve(t, exporttest.Point(t, exporttest.Disk{ID: "vda", Content: vda}, exporttest.Disk{ID: "vdb", Content: vdb}), nil)

	var info struct {
		Protocol   string
		Structured bool
		Exports    []struct {
			Name         string   `json:"export-name"`
			Size         int64    `json:"export-size"`
			ReadOnly     bool     `json:"is_read_only"`
			MultiConn    bool     `json:"can_multi_conn"`
			DF           bool     `json:"can_df"`
			Contexts     []string `json:"contexts"`
			BlockMinimum int64    `json:"block_size_minimum"`
			BlockMaximum int64    `json:"block_size_maximum"`
		}
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo --list", "--json", "--list", "nbd+unix://?socket="+s)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 2 {
		t.Fatalf("%+v", info)
	}
	if e := info.Exports[0]; e.Name != "vda" || e.Size != int64(len(vda)) || !e.ReadOnly || !e.MultiConn || !e.DF ||
		len(e.Contexts) != 1 || e.Contexts[0] != "base:allocation" || e.BlockMinimum != 1 || e.BlockMaximum != 32<<20 {
		t.Errorf("%+v", e)
	}

	dir := t.TempDir()
	for _, connections := range []string{"1", "4"} {
		to := filepath.Join(dir, "copy"+connections)
		run(t, "nbdcopy", "--connections="+connections, uri(s, "vda"), to)
		same(t, "nbdcopy", to, vda)
	}
	run(t, "nbdcopy", uri(s, "vdb"), filepath.Join(dir, "vdb"))
	same(t, "nbdcopy of an odd size", filepath.Join(dir, "vdb"), vdb)

	to := filepath.Join(dir, "converted")
	run(t, "qemu-img convert", "convert", "-f", "raw", "-O", "raw", uri(s, "vda"), to)
	same(t, "qemu-img convert", to, vda)
	run(t, "qemu-img compare", "compare", "-f", "raw", "-F", "raw", uri(s, "vda"), file(t, "original", vda))

	type extent struct {
		Start, Length int64
		Data, Zero    bool
	}
	var extents []extent
	if err := json.Unmarshal([]byte(run(t, "qemu-img map", "map", "--output=json", "-f", "raw", uri(s, "vda"))), &extents); err != nil {
		t.Fatal(err)
	}
	var holes []string
	for _, e := range extents {
		if e.Zero {
			holes = append(holes, fmt.Sprintf("%d+%d", e.Start, e.Length))
		}
	}
	if got, want := strings.Join(holes, " "), fmt.Sprintf("%d+%d %d+%d", 4<<20, 4<<20, 20<<20+65536, 2*65536); got != want {
		t.Errorf("holes %s, want %s", got, want)
	}
	if out := run(t, "nbdinfo --map", "--map", uri(s, "vda")); strings.Count(out, "hole,zero") != 2 {
		t.Errorf("nbdinfo --map:\n%s", out)
	}

	out, err := exec.Command(judge.Tool(t, "qemu-io"), "-f", "raw", "-c", "write -P 1 0 512", uri(s, "vda")).CombinedOutput()
	if err == nil {
		t.Errorf("a read-only export is written:\n%s", out)
	}
	judge.Decided(t, "qemu-io write")
}

func TestJudgesWrite(t *testing.T) {
	vda, _ := contents()
	p := exporttest.Point(t, exporttest.Disk{ID: "vda", Content: vda})
	path := filepath.Join(t.TempDir(), "overlay")
	o, err := export.CreateOverlay(path, p)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, p, o)
	io := func(commands ...string) string {
		t.Helper()
		args := []string{"-f", "raw"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := run(t, "qemu-io", append(args, uri(s, "vda"))...)
		if strings.Contains(out, "Pattern verification failed") || strings.Contains(out, "failed:") {
			t.Errorf("qemu-io %s:\n%s", strings.Join(commands, "; "), out)
		}
		return out
	}
	fill := func(b byte, off, n int) { copy(vda[off:off+n], bytes.Repeat([]byte{b}, n)) }
	io("write -P 0xab 512 1024", "read -P 0xab 512 1024", "write -f -P 0xcd 5000000 3000000", "flush",
		"read -P 0xcd 5000000 3000000", "write -z 1M 100k", "read -P 0 1M 100k", "write -z -u 9000000 5000",
		"discard 10M 1M", "read -P 0 10M 1M", "write -P 0x11 10500000 100", "read -P 0x11 10500000 100", "read -P 0 10500100 900")
	fill(0xab, 512, 1024)
	fill(0xcd, 5000000, 3000000)
	fill(0, 1<<20, 100<<10)
	fill(0, 9000000, 5000)
	fill(0, 10<<20, 1<<20)
	fill(0x11, 10500000, 100)
	if out := run(t, "nbdinfo", "--json", uri(s, "vda")); !strings.Contains(out, `"is_read_only": false`) || !strings.Contains(out, `"can_fast_zero": true`) {
		t.Errorf("nbdinfo:\n%s", out)
	}
	run(t, "qemu-img compare", "compare", "-f", "raw", "-F", "raw", uri(s, "vda"), file(t, "expected", vda))

	// All of it again, from the other side, on several connections.
	_, _ = rand.NewChaCha8([32]byte{3}).Read(vda[2<<20 : 22<<20])
	clear(vda[12<<20 : 15<<20])
	run(t, "nbdcopy to", "--connections=4", "--flush", file(t, "all", vda), uri(s, "vda"))
	to := filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", uri(s, "vda"), to)
	same(t, "nbdcopy there and back", to, vda)
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if o, err = export.OpenOverlay(path); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if err := o.Attach(p); err != nil {
		t.Fatal(err)
	}
	i, _, err := o.Image("vda")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(vda))
	if _, err := i.ReadAt(got, 0); err != nil || !bytes.Equal(got, vda) {
		t.Errorf("the overlay opened again differs, %v", err)
	}
}

// Our client against servers that are not ours, and both through TLS.
func TestClientReadsOthersServers(t *testing.T) {
	vda, vdb := contents()
	for _, k := range []struct {
		name    string
		content []byte
		args    func(socket, image string) []string
	}{
		{"nbdkit", vda, func(s, i string) []string { return []string{"-f", "-U", s, "-r", "file", i} }},
		{"nbdkit", vdb, func(s, i string) []string {
			return []string{"-f", "-U", s, "-r", "--filter=blocksize-policy", "file", i, "blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"}
		}},
		{"nbdkit", vdb, func(s, i string) []string { return []string{"-f", "-U", s, "-r", "--no-sr", "file", i} }},
		{"qemu-nbd", vda, func(s, i string) []string { return []string{"-k", s, "-t", "-r", "-f", "raw", "-e", "4", i} }},
	} {
		socket := filepath.Join(t.TempDir(), "s")
		ctx, stop := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, judge.Tool(t, k.name), k.args(socket, file(t, "image", k.content))...)
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		c, err := dial(t, socket)
		if err != nil {
			stop()
			t.Fatalf("%s: %v\n%s", k.name, err, said.String())
		}
		got := make([]byte, c.Size())
		if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, k.content) {
			t.Errorf("%s: content differs, %v", k.name, err)
		}
		if _, err := c.ReadAt(got[:7], 1001); err != nil || !bytes.Equal(got[:7], k.content[1001:1008]) {
			t.Errorf("%s: an odd read differs, %v", k.name, err)
		}
		for at := int64(0); ; { // what is left out must be zeroes
			off, n, err := c.NextData(at)
			if err != nil {
				off = c.Size()
			}
			if p := k.content[at:off]; bytes.Count(p, []byte{0}) != len(p) {
				t.Errorf("%s: data between %d and %d is left out", k.name, at, off)
			}
			if err != nil {
				break
			}
			at = off + n
		}
		judge.Decided(t, k.name)
		_ = c.Close()
		stop()
		_ = cmd.Wait()
	}
}

// dial waits for a server that was just started.
func dial(t *testing.T, socket string) (c *nbd.Client, err error) {
	for range 200 {
		if c, err = nbd.Dial(t.Context(), "unix", socket, "", nil); err == nil {
			return c, nil
		}
		select {
		case <-t.Context().Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, err
}
