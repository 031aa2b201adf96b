package qemunbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/nbd/qemunbd"
	"github.com/lockstep-backup/lockstep/source/sourcetest"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	const most = 20
	for try := 1; ; try++ {
		out, err := exec.Command(judge.Tool(t, name), args...).CombinedOutput()
		if err == nil {
			return string(out)
		}
		// QEMU measures a key derivation, and now and then sees that it took no time.
		if try == most || !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) {
			t.Fatalf("%s %q: %v: %s", name, args, err, out)
		}
	}
}

func spec(path, format string, backing ...string) string {
	q := url.Values{"format": {format}, "backing": backing}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// raw is a file with data, zeroes and data.
func raw(t *testing.T, dir string, size int) (string, []byte) {
	t.Helper()
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(p)
	if size > 2<<20 {
		clear(p[1<<20 : 2<<20])
	}
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, p
}

func content(t *testing.T, path string, opts source.Options) []byte {
	t.Helper()
	d, err := qemunbd.Opener{}.Open(t.Context(), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, d.Size())
	if n, err := d.ReadAt(p, 0); n != len(p) || err != nil && err != io.EOF {
		t.Fatal(n, err)
	}
	if err := d.Check(); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return p
}

// judged compares what is read with what qemu-img reads.
func judged(t *testing.T, got []byte, image, format string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "got.raw")
	if err := os.WriteFile(path, got, 0o600); err != nil {
		t.Fatal(err)
	}
	out := run(t, "qemu-img", "compare", "-f", "raw", "-F", format, path, image)
	if !strings.Contains(out, "identical") {
		t.Error(out)
	}
	judge.Decided(t, "qemu-img compare")
}

func TestImagesAreSources(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	judge.Tool(t, "qemu-img")
	sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
		dir := t.TempDir()
		from := filepath.Join(dir, "from")
		if err := os.WriteFile(from, content, 0o600); err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(dir, "disk.qcow2")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", from, image)
		return sourcetest.Source{
			Opener: qemunbd.Opener{}, Spec: spec(image, "qcow2"), MissingSpec: spec(image+".missing", "qcow2"),
			Remove: func() { _ = os.Remove(image) },
			Replace: func([]byte) {
				_ = os.WriteFile(image+".new", content, 0o600)
				_ = os.Rename(image+".new", image)
			},
		}
	})
}

func TestFormats(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	dir := t.TempDir()
	from, want := raw(t, dir, 8<<20)
	for _, c := range []struct{ name, format, options string }{
		{"a.qcow2", "qcow2", ""},
		{"b.qcow2", "qcow2", "compat=0.10"},
		{"c.qcow2", "qcow2", "cluster_size=2M"},
		{"d.qcow2", "qcow2", "extended_l2=on,compression_type=zstd"},
		{"a.vmdk", "vmdk", ""},
		{"b.vmdk", "vmdk", "subformat=streamOptimized"},
		{"c.vmdk", "vmdk", "subformat=monolithicFlat"},
		{"d.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"},
		{"e.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"},
		{"a.vhd", "vpc", "force_size=on"},
		{"b.vhd", "vpc", "force_size=on,subformat=fixed"},
		{"a.vhdx", "vhdx", ""},
		{"b.vhdx", "vhdx", "subformat=fixed"},
	} {
		t.Run(c.name+" "+c.options, func(t *testing.T) {
			image := filepath.Join(dir, c.name)
			args := []string{"convert", "-f", "raw", "-O", c.format, from, image}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			run(t, "qemu-img", args...)
			if got := disk.ImageFormat(image); got != c.format {
				t.Errorf("by its name it is %q", got)
			}
			// What qemu-img finds by looking is what the name says.
			if c.name != "b.vhd" { // a fixed one has no mark that qemu-img looks for
				if info := run(t, "qemu-img", "info", image); !strings.Contains(info, "file format: "+c.format) {
					t.Errorf("qemu-img says %s", info)
				}
				judge.Decided(t, "qemu-img info")
			}
			got := content(t, spec(image, c.format), source.Options{})
			if !bytes.Equal(got, want) {
				t.Errorf("%d bytes, not the disk's", len(got))
			}
			judged(t, got, image, c.format)
		})
	}
}

func TestChains(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	qemuIO := func(image string, commands ...string) {
		args := []string{"-f", "qcow2"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		run(t, "qemu-io", append(args, image)...)
	}
	dir := t.TempDir()
	base, _ := raw(t, dir, 8<<20)
	a, b := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "b.qcow2")
	run(t, "qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "disk.raw", a)
	qemuIO(a, "write -P 0xaa 0 64k", "write -z 4M 1M")
	run(t, "qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", a, b, "12M") // by the whole path, and larger
	qemuIO(b, "write -P 0xbb 32k 64k")
	got := content(t, spec(b, "qcow2"), source.Options{})
	if len(got) != 12<<20 || got[0] != 0xaa || got[40<<10] != 0xbb {
		t.Fatalf("%d bytes, %x %x", len(got), got[0], got[40<<10])
	}
	judged(t, got, b, "qcow2")

	t.Run("without the recorded format, by the name", func(t *testing.T) {
		c := filepath.Join(dir, "c.qcow2")
		run(t, "qemu-img", "create", "-u", "-f", "qcow2", "-F", "raw", "-b", "disk.raw", c, "8M")
		blank(t, c, extensionFormat)
		if got := content(t, spec(c, "qcow2"), source.Options{}); len(got) != 8<<20 {
			t.Errorf("%d bytes", len(got))
		}
	})
	t.Run("in another folder", func(t *testing.T) {
		other := t.TempDir()
		d := filepath.Join(other, "d.qcow2")
		run(t, "qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", b, d)
		if _, err := (qemunbd.Opener{}).Open(t.Context(), spec(d, "qcow2"), source.Options{}); !errors.Is(err, source.ErrUnsupported) || !strings.Contains(err.Error(), "--allow-backing") {
			t.Errorf("%v", err)
		}
		judged(t, content(t, spec(d, "qcow2", dir), source.Options{}), d, "qcow2")
	})
	t.Run("in use", func(t *testing.T) {
		// A writer, as a machine that runs is one.
		cmd := exec.Command(judge.Tool(t, "qemu-io"), "-f", "qcow2", b)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = in.Close(), cmd.Wait() }()
		// It answers when it has the image.
		_, _ = io.WriteString(in, "length\n")
		p := make([]byte, 200)
		for text := ""; !strings.Contains(text, "12 MiB"); {
			n, err := out.Read(p)
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			text += string(p[:n])
		}
		if _, err := (qemunbd.Opener{}).Open(t.Context(), spec(b, "qcow2"), source.Options{}); !errors.Is(err, source.ErrInUse) {
			t.Errorf("%v", err)
		}
		d, err := qemunbd.Opener{}.Open(t.Context(), spec(b, "qcow2"), source.Options{AllowLive: true})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if d.Consistency() != source.ConsistencyNone {
			t.Error(d.Consistency())
		}
	})
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	if _, err := (qemunbd.Opener{}).Open(t.Context(), spec(b, "qcow2"), source.Options{}); !errors.Is(err, source.ErrNotFound) {
		t.Errorf("with the end of the chain gone: %v", err)
	}
}

const extensionFormat = 0xe2792aca

// blank makes an extension of a qcow2 header one that nobody knows.
func blank(t *testing.T, path string, kind uint32) {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(p, binary.BigEndian.AppendUint32(nil, kind))
	if i < 0 {
		t.Fatal("it has no such extension")
	}
	copy(p[i:], "none")
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// secret is what no image may show: it lies outside of the images' folder.
const secret = "root:$6$salt$hunter2:19000:0:99999:7:::"

// TestHostileImages: whatever a header names, only what may be read is read.
func TestHostileImages(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	judge.Tool(t, "qemu-img")
	outside := t.TempDir()
	shadow := filepath.Join(outside, "shadow")
	if err := os.WriteFile(shadow, []byte(secret+strings.Repeat("\n", 1024-len(secret))), 0o600); err != nil {
		t.Fatal(err)
	}
	qcow2 := func(backing, format string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			run(t, "qemu-img", "create", "-u", "-f", "qcow2", "-F", format, "-b", backing, path, "1M")
		}
	}
	text := func(s string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	descriptor := func(lines string) func(*testing.T, string) {
		return text("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n" + lines + "\n")
	}
	cases := map[string]struct {
		format string
		make   func(t *testing.T, path string)
	}{
		"qcow2 backing elsewhere":         {"qcow2", qcow2(shadow, "raw")},
		"qcow2 backing upwards":           {"qcow2", qcow2("../../../../../../.."+shadow, "raw")},
		"qcow2 backing json":              {"qcow2", qcow2(`json:{"driver":"raw","file":{"driver":"file","filename":"`+shadow+`"}}`, "raw")},
		"qcow2 backing nbd":               {"qcow2", qcow2("nbd://127.0.0.1:1/x", "raw")},
		"qcow2 backing http":              {"qcow2", qcow2("http://127.0.0.1:1/x", "raw")},
		"qcow2 backing file:":             {"qcow2", qcow2("file:"+shadow, "raw")},
		"qcow2 backing of another driver": {"qcow2", qcow2("disk.raw", "luks")},
		"qcow2 backing device":            {"qcow2", qcow2("/dev/zero", "raw")},
		"qcow2 backing of unknown format": {"qcow2", func(t *testing.T, p string) { qcow2("disk.base", "raw")(t, p); blank(t, p, extensionFormat) }},
		"qcow2 backing itself":            {"qcow2", func(t *testing.T, p string) { qcow2(filepath.Base(p), "qcow2")(t, p) }},
		"qcow2 backing link":              {"qcow2", func(t *testing.T, p string) { _ = os.Symlink(shadow, p+".link"); qcow2(p+".link", "raw")(t, p) }},
		"qcow2 data file": {"qcow2", func(t *testing.T, p string) {
			run(t, "qemu-img", "create", "-f", "qcow2", "-o", "data_file="+p+".data", p, "1M")
		}},
		"qcow2 with a key of QEMU's": {"qcow2", func(t *testing.T, p string) {
			run(t, "qemu-img", "create", "-f", "qcow2", "--object", "secret,id=k,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", p, "1M")
		}},
		"qcow2 that is none":       {"qcow2", text(secret)},
		"qcow2 that is empty":      {"qcow2", text("")},
		"vmdk extent elsewhere":    {"vmdk", descriptor(`RW 2 FLAT "` + shadow + `" 0`)},
		"vmdk extent upwards":      {"vmdk", descriptor(`RW 2 FLAT "../` + filepath.Base(outside) + `/shadow" 0`)},
		"vmdk extent over lines":   {"vmdk", descriptor("RW\n2\nFLAT\n\"" + shadow + "\" 0")},
		"vmdk extent indented":     {"vmdk", descriptor("  RW 2 FLAT \"" + shadow + "\" 0")},
		"vmdk extent behind a key": {"vmdk", descriptor("a=b\rRW 2 FLAT \"" + shadow + "\" 0")},
		"vmdk extent json":         {"vmdk", descriptor(`RW 2 FLAT "json:{}" 0`)},
		"vmdk extent link": {"vmdk", func(t *testing.T, p string) {
			_ = os.Symlink(shadow, p+".link")
			descriptor(`RW 2 FLAT "`+filepath.Base(p)+`.link" 0`)(t, p)
		}},
		"vmdk with a parent":              {"vmdk", descriptor("RW 2 FLAT \"disk.raw\" 0\nparentFileNameHint=\"" + shadow + "\"")},
		"vmdk without extents":            {"vmdk", descriptor("")},
		"vmdk sparse that is elsewhere":   {"vmdk", text("KDMV" + strings.Repeat("\x00", 508) + `RW 2 FLAT "` + shadow + `" 0`)},
		"vmdk sparse extent that is none": {"vmdk", descriptor(`RW 2 SPARSE "disk.raw"`)},
		"vmdk snapshot": {"vmdk", func(t *testing.T, p string) {
			run(t, "qemu-img", "create", "-f", "vmdk", p+".base.vmdk", "1M")
			run(t, "qemu-img", "create", "-f", "vmdk", "-F", "vmdk", "-b", p+".base.vmdk", p)
		}},
		"vhd that is none":               {"vpc", text(secret + strings.Repeat(" ", 1024))},
		"vhd with a parent":              {"vpc", text("conectix" + strings.Repeat("\x00", 52) + "\x00\x00\x00\x04" + strings.Repeat("\x00", 448))},
		"vhdx that is none":              {"vhdx", text(secret + strings.Repeat(" ", 1024))},
		"a format that is not read here": {"qed", text(secret)},
		"raw, which has its own reader":  {"raw", text(secret)},
		"without a format":               {"", text(secret)},
		"a folder":                       {"qcow2", func(t *testing.T, p string) { _ = os.Mkdir(p, 0o700) }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			raw(t, dir, 1<<20)
			_ = os.WriteFile(filepath.Join(dir, "disk.base"), make([]byte, 1<<20), 0o600)
			path := filepath.Join(dir, "x")
			c.make(t, path)
			d, err := qemunbd.Opener{}.Open(t.Context(), spec(path, c.format), source.Options{})
			if err == nil {
				p := make([]byte, d.Size())
				_, _ = d.ReadAt(p, 0)
				t.Errorf("it is read: %d bytes, with the secret: %v", len(p), bytes.Contains(p, []byte("hunter2")))
				_ = d.Close()
			}
			if !errors.Is(err, source.ErrUnsupported) || strings.Contains(fmt.Sprint(err), "hunter2") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestNothingIsLeft(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	dir, tmp := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", tmp)
	image := filepath.Join(dir, "a.qcow2")
	run(t, "qemu-img", "create", "-f", "qcow2", image, "1M")
	content(t, spec(image, "qcow2"), source.Options{})
	if err := os.WriteFile(image, []byte("QFI\xfb"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (qemunbd.Opener{}).Open(t.Context(), spec(image, "qcow2"), source.Options{}); err == nil {
		t.Error("it is read")
	}
	if _, err := (qemunbd.Opener{Program: "/no-such-program"}).Open(t.Context(), spec(image, "qcow2"), source.Options{}); err == nil {
		t.Error("it is read without a program")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestCutShort: what is lost at an image's end is not read as zeroes.
func TestCutShort(t *testing.T) {
	judge.Tool(t, "qemu-nbd")
	judge.Tool(t, "qemu-img")
	for _, c := range []struct {
		name, format, options, file string
	}{
		{"a.qcow2", "qcow2", "", "a.qcow2"},
		{"c.qcow2", "qcow2", "cluster_size=2M", "c.qcow2"},
		{"d.qcow2", "qcow2", "extended_l2=on", "d.qcow2"},
		{"a.vmdk", "vmdk", "", "a.vmdk"},
		{"b.vmdk", "vmdk", "subformat=streamOptimized", "b.vmdk"},
		{"c.vmdk", "vmdk", "subformat=monolithicFlat", "c-flat.vmdk"},
		{"d.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse", "d-s001.vmdk"},
		{"e.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat", "e-f001.vmdk"},
	} {
		t.Run(c.name+" "+c.options, func(t *testing.T) {
			dir := t.TempDir()
			from, _ := raw(t, dir, 8<<20)
			image := filepath.Join(dir, c.name)
			args := []string{"convert", "-f", "raw", "-O", c.format, from, image}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			run(t, "qemu-img", args...)
			file := filepath.Join(dir, c.file)
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			lost := []int64{5 << 20, 64 << 10}
			if !strings.Contains(c.options, "streamOptimized") { // its end holds no data
				lost = append(lost, 512)
			}
			for i := len(lost) - 1; i >= 0; i-- { // the least first
				if err := os.Truncate(file, info.Size()-lost[i]); err != nil {
					t.Fatal(err)
				}
				d, err := qemunbd.Opener{}.Open(t.Context(), spec(image, c.format), source.Options{})
				if err == nil {
					_, err = d.ReadAt(make([]byte, d.Size()), 0)
					_ = d.Close()
					// The last of a compressed image is noticed when it is expanded.
					if err != nil && strings.Contains(c.options, "streamOptimized") && lost[i] < 1<<20 {
						continue
					}
				}
				if !errors.Is(err, source.ErrDamaged) {
					t.Errorf("%d bytes less: %v", lost[i], err)
				}
			}
		})
	}
	t.Run("below", func(t *testing.T) {
		dir := t.TempDir()
		from, _ := raw(t, dir, 8<<20)
		base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", from, base)
		run(t, "qemu-img", "create", "-f", "qcow2", "-F", "qcow2", "-b", base, top)
		info, err := os.Stat(base)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(base, info.Size()-512); err != nil {
			t.Fatal(err)
		}
		_, err = qemunbd.Opener{}.Open(t.Context(), spec(top, "qcow2"), source.Options{})
		if !errors.Is(err, source.ErrDamaged) || !strings.Contains(err.Error(), "base.qcow2") || !strings.Contains(err.Error(), "512 bytes are missing") {
			t.Errorf("%v", err)
		}
	})
	t.Run("tables", func(t *testing.T) {
		// A new image's L1 table is at its end: without it, all is zeroes.
		image := filepath.Join(t.TempDir(), "a.qcow2")
		run(t, "qemu-img", "create", "-f", "qcow2", image, "1M")
		content(t, spec(image, "qcow2"), source.Options{}) // whole, though its last cluster is not
		if err := os.Truncate(image, 3<<16); err != nil {
			t.Fatal(err)
		}
		if _, err := (qemunbd.Opener{}).Open(t.Context(), spec(image, "qcow2"), source.Options{}); !errors.Is(err, source.ErrDamaged) {
			t.Errorf("%v", err)
		}
	})
	t.Run("leaks are no loss", func(t *testing.T) {
		image := filepath.Join(t.TempDir(), "a.qcow2")
		run(t, "qemu-img", "create", "-f", "qcow2", image, "1M")
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 64k", image)
		f, err := os.OpenFile(image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 8), 3<<16); err != nil { // its L1 entry
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		content(t, spec(image, "qcow2"), source.Options{})
	})
}
