package lvm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"
)

const sampleText = `vg0 {
id = "zrlH99-By5Q-upS2-7W8v-jEZs-Z2kQ-fhwnNX"
seqno = 1
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8		# 4 Kilobytes
physical_volumes {
pv0 {
id = "Dk6Nv8-vtmH-qqkQ-e9wf-HRb1-RuOD-OIIMEI"
device = "/dev/\"x\\y"
pe_start = 8
pe_count = 4
}
}
logical_volumes {
a {
id = "AsISUm-Ess0-UvH0-qqXe-aj0E-cz2q-sM2fGs"
status = ["READ", "VISIBLE"]
segment_count = 1
segment1 {
start_extent = 0
extent_count = 3
type = "striped"
stripe_count = 1
stripes = ["pv0", 0]
}
}
b {
status = ["VISIBLE"]
segment_count = 1
segment1 { start_extent = 0 extent_count = 1 type = "raid1" raids = ["m0", "a", "m1", "a"] }
}
}
}
contents = "Text Format Volume Group"
version = 1
weight = 1.5
`

func TestParseText(t *testing.T) {
	root, err := parseText(sampleText)
	if err != nil {
		t.Fatal(err)
	}
	pv := root.byName["vg0"].byName["physical_volumes"].byName["pv0"]
	if got := pv.text("device"); got != `/dev/"x\y` {
		t.Error(got)
	}
	if n, err := pv.number("pe_count"); n != 4 || err != nil {
		t.Error(n, err)
	}
	if !root.byName["vg0"].has("status", "READ") || root.byName["vg0"].has("flags", "READ") {
		t.Error("lists")
	}
	for _, bad := range []string{
		"a", "a =", "a = [", "a = [1", "a = [1 2]", `a = "x`, "a {", "}", "a = 1 a = 2", "a { } a { }", "a = 1 a { }", "a = x", "= 1", `a = "\`,
		"a = 99999999999999999999", "a = -", strings.Repeat("a {", maxDepth) + strings.Repeat("}", maxDepth), "[", "a = [[1]]", "a = 1,",
	} {
		if _, err := parseText(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	for _, good := range []string{"", "#", "a=1#x\n", "a=[]", "a=[1,]", "a{b{c=-1}}", "a\t=\r\n+1"} {
		if _, err := parseText(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	var many strings.Builder
	for i := range maxNodes + 1 {
		fmt.Fprintf(&many, "k%d=1\n", i)
	}
	if _, err := parseText(many.String()); err == nil {
		t.Error("no bound of the number of entries")
	}
	if _, err := parseText(strings.Repeat(" ", maxText+1)); err == nil {
		t.Error("no bound of the length")
	}
}

// device is a small physical volume with text.
func device(text []byte) []byte {
	const size, area = 64 << 10, 24 << 10
	b := make([]byte, size)
	l := b[512:1024]
	copy(l, "LABELONE")
	l[8], l[20] = 1, 32
	copy(l[24:], "LVM2 001")
	copy(l[32:], "Dk6Nv8vtmHqqkQe9wfHRb1RuODOIIMEI")
	binary.LittleEndian.PutUint64(l[64:], size)
	binary.LittleEndian.PutUint64(l[72:], 4096)
	binary.LittleEndian.PutUint64(l[104:], 1024)
	binary.LittleEndian.PutUint64(l[112:], area)
	binary.LittleEndian.PutUint32(l[16:], CRC(l[20:]))
	h := b[1024 : 1024+512]
	copy(h[4:], mdaMagic)
	h[20] = 1
	binary.LittleEndian.PutUint64(h[24:], 1024)
	binary.LittleEndian.PutUint64(h[32:], area)
	binary.LittleEndian.PutUint64(h[40:], 512)
	binary.LittleEndian.PutUint64(h[48:], uint64(len(text)))
	binary.LittleEndian.PutUint32(h[56:], CRC(text))
	binary.LittleEndian.PutUint32(h, CRC(h[4:]))
	copy(b[1024+512:], text)
	return b
}

// FuzzText: whatever a group says of itself, what is mapped lies on its devices.
func FuzzText(f *testing.F) {
	f.Add([]byte(sampleText))
	f.Add([]byte(strings.Replace(sampleText, `["pv0", 0]`, `["a", 0, "b", 1] stripe_size = 8`, 1)))
	f.Add([]byte(strings.Replace(sampleText, `"raid1"`, `"mirror" mirrors = ["pv0", 1, "a", 0]`, 1)))
	f.Add([]byte(strings.Replace(sampleText, `"striped"`, `"snapshot" origin = "a" cow_store = "b"`, 1)))
	f.Add([]byte(strings.ReplaceAll(sampleText, "extent_count = 3", fmt.Sprint("extent_count = ", math.MaxInt64/4))))
	f.Add([]byte("vg0 { id ="))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 20<<10 {
			return
		}
		checkDevice(t, device(text))
	})
}

// FuzzPV: whatever the label and the areas say.
func FuzzPV(f *testing.F) {
	f.Add(device([]byte(sampleText))[:8<<10])
	f.Add(device([]byte(sampleText))[512 : 2<<10])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		// The checksums that stand in the way are made right.
		b = append(bytes.Clone(b), make([]byte, 64<<10-len(b))...)
		l := b[512:1024]
		binary.LittleEndian.PutUint32(l[16:], CRC(l[20:]))
		h := b[1024 : 1024+512]
		binary.LittleEndian.PutUint32(h, CRC(h[4:]))
		if from, n := binary.LittleEndian.Uint64(h[40:]), binary.LittleEndian.Uint64(h[48:]); from == 512 && n < 20<<10 {
			binary.LittleEndian.PutUint32(h[56:], CRC(b[1024+512:][:n]))
			binary.LittleEndian.PutUint32(h, CRC(h[4:]))
		}
		checkDevice(t, b)
	})
}

func checkDevice(t *testing.T, b []byte) {
	t.Helper()
	pv, err := ReadPV(bytes.NewReader(b), int64(len(b)), "x")
	if err != nil {
		return
	}
	for _, vg := range Assemble([]*PV{pv}).VGs {
		for _, l := range vg.all {
			extents, err := l.Extents(100)
			if err != nil {
				continue
			}
			total := int64(0)
			for _, e := range extents {
				if e.Length <= 0 || e.Offset < 0 || e.End() > int64(len(b)) {
					t.Fatalf("%s: %+v", l.Name, e)
				}
				total += e.Length
			}
			if l.problem != nil || total != l.Size {
				t.Fatalf("%s: %d bytes of %d: %v", l.Name, total, l.Size, l.problem)
			}
			p := make([]byte, 5000)
			if n, err := l.ReadAt(p, 4000); n < int(min(5000, max(l.Size-4000, 0))) {
				t.Fatalf("%s: %d %v", l.Name, n, err)
			}
			l.Devices()
		}
	}
}
