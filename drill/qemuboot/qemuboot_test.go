package qemuboot_test

import (
	"bytes"
	"errors"
	"image/png"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/drill/qemuboot"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// machine is a disk whose boot sector asks for a passphrase on COM1, writes to
// the disk's second sector, and shows a login prompt when the passphrase was
// right; it hangs where it was not.
func machine(passphrase string) []byte {
	const at = 0x7c00
	var code []byte
	labels := map[string]int{}
	type use struct {
		at   int
		name string
		wide bool // absolute, 16 bits; otherwise relative
		size int
	}
	var uses []use
	emit := func(b ...byte) { code = append(code, b...) }
	label := func(name string) { labels[name] = len(code) }
	rel8 := func(op byte, name string) { emit(op, 0); uses = append(uses, use{len(code) - 1, name, false, 1}) }
	rel16 := func(op byte, name string) { emit(op, 0, 0); uses = append(uses, use{len(code) - 2, name, false, 2}) }
	abs16 := func(op byte, name string) { emit(op, 0, 0); uses = append(uses, use{len(code) - 2, name, true, 2}) }

	emit(0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0) // ds = es = 0
	emit(0x88, 0x16, 0xf0, 0x7d)             // the boot drive is in dl, which reading the UART needs
	abs16(0xbe, "prompt")
	rel16(0xe8, "puts")
	abs16(0xbf, "secret")
	label("read")
	emit(0xba, 0xfd, 0x03) // line status
	label("poll")
	emit(0xec, 0xa8, 0x01)
	rel8(0x74, "poll")
	emit(0xba, 0xf8, 0x03, 0xec, 0x3c, '\r')
	rel8(0x74, "done")
	emit(0x3a, 0x05)
	rel8(0x75, "hang")
	emit(0x47)
	rel8(0xeb, "read")
	label("done")
	emit(0x80, 0x3d, 0x00)
	rel8(0x75, "hang")
	emit(0xb8, 0x01, 0x03, 0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, 0xb6, 0x00) // write one sector from 0x7c00
	emit(0x8a, 0x16, 0xf0, 0x7d, 0xcd, 0x13)
	abs16(0xbe, "login")
	rel16(0xe8, "puts")
	label("hang")
	emit(0xf4)
	rel8(0xeb, "hang")
	label("puts")
	emit(0xac, 0x84, 0xc0)
	rel8(0x74, "ret")
	emit(0x88, 0xc4, 0xba, 0xfd, 0x03)
	label("busy")
	emit(0xec, 0xa8, 0x20)
	rel8(0x74, "busy")
	emit(0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee)
	rel8(0xeb, "puts")
	label("ret")
	emit(0xc3)
	text := func(name, s string) {
		label(name)
		emit(append([]byte(s), 0)...)
	}
	text("prompt", "Please unlock disk vda3: ")
	text("login", "\r\nweb01 login: ")
	text("secret", passphrase)
	for _, u := range uses {
		v := labels[u.name] - (u.at + u.size)
		if u.wide {
			v = labels[u.name] + at
		}
		code[u.at] = byte(v)
		if u.size == 2 {
			code[u.at+1] = byte(v >> 8)
		}
	}
	d := make([]byte, 1<<20)
	copy(d, code)
	d[510], d[511] = 0x55, 0xaa
	return d
}

type console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}

func boot(t *testing.T, b qemuboot.Booter, disk []byte) (drill.Finding, *drill.Scratch, string) {
	t.Helper()
	judge.Tool(t, "qemu-system-x86_64")
	below := bytes.Clone(disk)
	s := drill.NewScratch(bytes.NewReader(below), int64(len(below)), 1<<20)
	t.Cleanup(s.Close)
	var c console
	b.Console, b.MemoryMiB = &c, 64
	f, err := b.Boot(t.Context(), []drill.BootDisk{{ID: "vda", Scratch: s}})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(below, disk) {
		t.Error("the disk below was written")
	}
	return f, s, c.String()
}

func TestMachineComesUp(t *testing.T) {
	t.Parallel()
	picture := filepath.Join(t.TempDir(), "screen.png")
	f, s, said := boot(t, qemuboot.Booter{
		Marker: qemuboot.DefaultMarker, Prompt: qemuboot.DefaultPrompt, Passphrases: []envelope.Secret{envelope.CopySecret([]byte("open sesame"))},
		Screenshot: picture, Timeout: 2 * time.Minute,
	}, machine("open sesame"))
	if f.Outcome != custody.DrillPassed || !strings.Contains(said, "login:") || !strings.Contains(said, "unlock disk") {
		t.Fatalf("%+v\n%s", f, said)
	}
	if len(f.Tools) != 1 || !strings.Contains(f.Tools[0].Version, "QEMU") {
		t.Errorf("%+v", f.Tools)
	}
	if s.Written() == 0 {
		t.Error("what the guest wrote is not in the scratch disk")
	}
	p, err := os.Open(picture)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if img, err := png.Decode(p); err != nil || img.Bounds().Dx() < 320 {
		t.Errorf("picture: %v, %v", img, err)
	}
	judge.Decided(t, "qemu-system-x86_64")
}

func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	f, _, said := boot(t, qemuboot.Booter{
		Marker: qemuboot.DefaultMarker, Prompt: qemuboot.DefaultPrompt, Passphrases: []envelope.Secret{envelope.CopySecret([]byte("wrong"))},
		Timeout: 10 * time.Second,
	}, machine("open sesame"))
	if f.Outcome != custody.DrillFailed || strings.Contains(said, "login") {
		t.Errorf("%+v\n%s", f, said)
	}
}

// A disk that nothing can boot from is no machine that came up; without a
// marker a picture is there for somebody to look at.
func TestNothingToBoot(t *testing.T) {
	t.Parallel()
	f, _, _ := boot(t, qemuboot.Booter{Marker: regexp.MustCompile("login"), Timeout: 8 * time.Second}, make([]byte, 1<<20))
	if f.Outcome != custody.DrillFailed {
		t.Errorf("%+v", f)
	}
	picture := filepath.Join(t.TempDir(), "screen.png")
	f, _, _ = boot(t, qemuboot.Booter{Screenshot: picture, Timeout: 5 * time.Second, Bus: qemuboot.BusSATA}, make([]byte, 1<<20))
	if st, err := os.Stat(picture); f.Outcome != custody.DrillWarned || err != nil || st.Size() == 0 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestBootRefusals(t *testing.T) {
	if _, err := (qemuboot.Booter{}).Boot(t.Context(), nil); err == nil {
		t.Error("nothing to look for, and no refusal")
	}
	if _, err := (qemuboot.Booter{Screenshot: "x", Bus: "floppy"}).Boot(t.Context(), nil); err == nil || errors.Is(err, drill.ErrNoTool) {
		t.Errorf("unknown bus: %v", err)
	}
}
