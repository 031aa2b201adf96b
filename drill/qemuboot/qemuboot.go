// Package qemuboot boots a machine's disks in QEMU until a text is seen on its
// serial console, or a picture of its screen is taken. The disks come over NBD
// from this process, with scratch disks over them, so that nothing which the
// guest writes is kept. The guest has no network: a rehearsal must not meet
// what it rehearses.
package qemuboot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/nbd"
)

// Buses that disks can be on.
const (
	BusVirtio = "virtio"
	BusSATA   = "sata"
)

// Booter implements drill.Booter.
type Booter struct {
	MemoryMiB int    // 0 = 1024
	CPUs      int    // 0 = 1
	Bus       string // "" = BusVirtio
	Firmware  string // image of the firmware's code; "" = QEMU's BIOS
	KVM       bool   // use the processor's virtualisation; otherwise it is emulated, and slow

	// Marker is looked for on the serial console; nil: it is not.
	Marker *regexp.Regexp
	// Prompt and Passphrase: when the console shows the one, the other is typed,
	// at most so often as there are passphrases. nil: nothing is typed.
	Prompt      *regexp.Regexp
	Passphrases []envelope.Secret
	// Screenshot is a file for a picture (PNG) of the screen, at the end; "" = none.
	Screenshot string
	Timeout    time.Duration // 0 = 5 minutes

	// Console is given what the guest says, for people; nil = nobody.
	Console io.Writer
	Log     *slog.Logger
}

var _ drill.Booter = Booter{}

// DefaultMarker is what a console shows when a system is up.
var DefaultMarker = regexp.MustCompile(`login: ?$|(?m)login: `)

// DefaultPrompt is what asks for a passphrase at boot: cryptsetup, systemd, Debian's initramfs.
var DefaultPrompt = regexp.MustCompile(`(?i)(unlock disk|passphrase for|enter passphrase|pass ?phrase)[^\n]*: ?$`)

// consoleKept is how much of the console's end is matched.
const consoleKept = 64 << 10

func (b Booter) withDefaults() Booter {
	if b.MemoryMiB == 0 {
		b.MemoryMiB = 1024
	}
	if b.CPUs == 0 {
		b.CPUs = 1
	}
	if b.Bus == "" {
		b.Bus = BusVirtio
	}
	if b.Timeout == 0 {
		b.Timeout = 5 * time.Minute
	}
	if b.Console == nil {
		b.Console = io.Discard
	}
	if b.Log == nil {
		b.Log = slog.New(slog.DiscardHandler)
	}
	return b
}

// Boot boots the disks, the first of them first.
func (b Booter) Boot(ctx context.Context, disks []drill.BootDisk) (f drill.Finding, err error) {
	b = b.withDefaults()
	if b.Marker == nil && b.Screenshot == "" {
		return f, errors.New("boot: neither a marker nor a picture of the screen is asked for")
	}
	if b.Bus != BusVirtio && b.Bus != BusSATA {
		return f, fmt.Errorf("boot: bus %q is not %s or %s", b.Bus, BusVirtio, BusSATA)
	}
	const program = "qemu-system-x86_64"
	path, err := exec.LookPath(program)
	if err != nil {
		return f, fmt.Errorf("boot: %w: %s, of the package qemu-system-x86", drill.ErrNoTool, program)
	}
	dir, err := os.MkdirTemp("", "lockstep-boot-")
	if err != nil {
		return f, fmt.Errorf("boot: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	ctx, stop := context.WithCancel(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer stop()
	if err := serve(ctx, &wait, filepath.Join(dir, "disks"), disks, b.Log); err != nil {
		return f, fmt.Errorf("boot: %w", err)
	}
	var lines [2]net.Listener
	for i, name := range []string{"console", "monitor"} {
		if lines[i], err = net.Listen("unix", filepath.Join(dir, name)); err != nil {
			return f, fmt.Errorf("boot: %w", err)
		}
		defer lines[i].Close()
	}
	cmd := exec.CommandContext(ctx, path, b.arguments(dir, disks)...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	said := &lastWords{}
	cmd.Stdout, cmd.Stderr = said, said
	f.Tools = []custody.DrillTool{{Name: program, Version: version(ctx, path)}}
	if err := cmd.Start(); err != nil {
		return f, fmt.Errorf("boot: start %s: %w", program, err)
	}
	ended := make(chan error, 1)
	wait.Go(func() { ended <- cmd.Wait() })
	seen := make(chan struct{})
	m := newMonitor()
	wait.Go(func() { m.accept(ctx, lines[1]) })
	wait.Go(func() { b.watch(ctx, lines[0], seen) })
	began := time.Now()
	patience := time.NewTimer(b.Timeout)
	defer patience.Stop()
	select {
	case <-seen:
		f.Outcome, f.Detail = custody.DrillPassed, fmt.Sprintf("the marker was seen on the serial console after %.1f s", time.Since(began).Seconds())
	case <-ended:
		b.Log.Warn("QEMU ended", "said", said.String())
		f.Outcome, f.Detail = custody.DrillFailed, "the machine stopped before it was up"
		return f, ctx.Err()
	case <-ctx.Done():
		return f, ctx.Err()
	case <-patience.C:
	}
	if b.Screenshot != "" {
		if err := m.screenshot(ctx, b.Screenshot); err != nil {
			return f, fmt.Errorf("boot: picture of the screen: %w", err)
		}
	}
	switch {
	case f.Outcome != "":
	case b.Marker == nil:
		f.Outcome, f.Detail = custody.DrillWarned, "a picture of the screen was taken, for somebody to look at"
	default:
		f.Outcome, f.Detail = custody.DrillFailed, fmt.Sprintf("the marker was not seen on the serial console in %s", b.Timeout)
	}
	return f, nil
}

// arguments are QEMU's.
func (b Booter) arguments(dir string, disks []drill.BootDisk) []string {
	accel := "tcg,thread=multi"
	if b.KVM {
		accel = "kvm"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-vga", "std", "-nic", "none",
		"-machine", "q35", "-accel", accel, "-cpu", "max", "-m", fmt.Sprint(b.MemoryMiB), "-smp", fmt.Sprint(b.CPUs),
		"-chardev", "socket,id=console,path=" + filepath.Join(dir, "console"), "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,path=" + filepath.Join(dir, "monitor"), "-mon", "chardev=monitor,mode=control",
	}
	if b.Firmware != "" {
		args = append(args, "-drive", "if=pflash,format=raw,readonly=on,file="+strings.ReplaceAll(b.Firmware, ",", ",,"))
	}
	for i := range disks {
		args = append(args, "-blockdev", fmt.Sprintf("driver=nbd,node-name=d%d,server.type=unix,server.path=%s,export=d%d", i, filepath.Join(dir, "disks"), i))
		device := fmt.Sprintf("virtio-blk-pci,drive=d%d,bootindex=%d", i, i+1)
		if b.Bus == BusSATA {
			device = fmt.Sprintf("ide-hd,drive=d%d,bus=ide.%d,bootindex=%d", i, i, i+1)
		}
		args = append(args, "-device", device)
	}
	return args
}

// serve answers QEMU's reads and writes until ctx ends.
func serve(ctx context.Context, wait *sync.WaitGroup, socket string, disks []drill.BootDisk, log *slog.Logger) error {
	var exports []nbd.Export
	for i, d := range disks {
		exports = append(exports, nbd.Export{Name: fmt.Sprintf("d%d", i), Disk: d.Scratch, Writer: d.Scratch})
	}
	s, err := nbd.NewServer(nbd.Config{Exports: exports, Log: log})
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	wait.Go(func() {
		defer l.Close()
		if err := s.Serve(ctx, l); err != nil && ctx.Err() == nil {
			log.Warn("disks are not served any more", "error", err)
		}
	})
	return nil
}

// watch reads the serial console, types passphrases, and closes seen at the marker.
func (b Booter) watch(ctx context.Context, l net.Listener, seen chan<- struct{}) {
	conn, err := accept(ctx, l)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var text []byte
	left := b.Passphrases
	found := false
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		_, _ = b.Console.Write(buf[:n])
		text = append(text, buf[:n]...)
		if len(text) > consoleKept {
			text = append(text[:0], text[len(text)-consoleKept/2:]...)
		}
		if b.Marker != nil && !found && b.Marker.Match(text) {
			found = true
			close(seen)
		}
		if b.Prompt != nil && len(left) > 0 && b.Prompt.Match(text) {
			line := append(append([]byte{}, left[0].Expose()...), '\r')
			_, err := conn.Write(line)
			envelope.Wipe(line)
			if err != nil {
				return
			}
			left, text = left[1:], text[:0]
		}
	}
}

// accept waits for QEMU to connect.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	return l.Accept()
}

// monitor speaks QMP as far as a picture of the screen needs it.
type monitor struct {
	conn chan net.Conn // one
}

func newMonitor() *monitor { return &monitor{conn: make(chan net.Conn, 1)} }

func (m *monitor) accept(ctx context.Context, l net.Listener) {
	if c, err := accept(ctx, l); err == nil {
		m.conn <- c
		<-ctx.Done()
		_ = c.Close()
	}
}

// patienceOfMonitor is how long QEMU may take to answer.
const patienceOfMonitor = 30 * time.Second

// screenshot writes a PNG.
func (m *monitor) screenshot(ctx context.Context, file string) error {
	var c net.Conn
	select {
	case c = <-m.conn:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.SetDeadline(time.Now().Add(patienceOfMonitor)); err != nil {
		return err
	}
	in := bufio.NewReader(io.LimitReader(c, 1<<20))
	ask := func(what string, arguments map[string]any) error {
		raw, err := json.Marshal(map[string]any{"execute": what, "arguments": arguments})
		if err != nil {
			return err
		}
		if _, err := c.Write(append(raw, '\n')); err != nil {
			return err
		}
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return err
			}
			var answer struct {
				Return *json.RawMessage
				Error  *struct{ Desc string }
			}
			if err := json.Unmarshal(line, &answer); err != nil {
				return err
			}
			switch {
			case answer.Error != nil:
				return errors.New(answer.Error.Desc)
			case answer.Return != nil:
				return nil
			} // a greeting or an event: read on
		}
	}
	if err := ask("qmp_capabilities", map[string]any{}); err != nil {
		return err
	}
	return ask("screendump", map[string]any{"filename": file, "format": "png"})
}

// lastWords keeps a little of what QEMU says.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if room := 4096 - len(w.text); room > 0 {
		w.text = append(w.text, p[:min(len(p), room)]...)
	}
	return len(p), nil
}

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.text)
}

// version is what QEMU says of itself.
func version(ctx context.Context, path string) string {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return first
}
