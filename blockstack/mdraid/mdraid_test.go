package mdraid_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/mdraid"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid/mdtest"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

const size = 8<<20 + 12<<10

var versions = []string{"0.90", "1.0", "1.1", "1.2"}

func member(version string, level int) []byte {
	b := make([]byte, size)
	mdtest.Write(b, mdtest.Array{Version: version, Level: level, Devices: 2, Name: "guest:root"}, 1)
	return b
}

func read(b []byte) (mdraid.Member, error) { return mdraid.Read(bytes.NewReader(b), int64(len(b))) }

// TestRead: mdadm says of superblocks what we do.
func TestRead(t *testing.T) {
	mdadm := judge.Tool(t, "mdadm")
	field := func(out, name string) string {
		m := regexp.MustCompile(`(?m)^\s*` + regexp.QuoteMeta(name) + ` : (.*)$`).FindStringSubmatch(out)
		if m == nil {
			return ""
		}
		return m[1]
	}
	for _, version := range versions {
		for _, level := range []int{1, 0, 5} {
			b := member(version, level)
			m, err := read(b)
			if err != nil {
				t.Fatalf("%s: %v", version, err)
			}
			path := filepath.Join(t.TempDir(), "member")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			raw, err := exec.Command(mdadm, "--examine", judge.Loop(t, path, 512)).CombinedOutput()
			if err != nil {
				t.Fatalf("%s: mdadm: %v: %s", version, err, raw)
			}
			out := string(raw)
			if !strings.Contains(field(out, "Checksum"), "correct") {
				t.Fatalf("%s: mdadm finds the checksum wrong: %s", version, out)
			}
			uuid := field(out, "Array UUID")
			if version == "0.90" {
				uuid = field(out, "UUID")
			}
			if uuid, _, _ = strings.Cut(uuid, " "); m.UUID != uuid || m.LevelName() != field(out, "Raid Level") || strconv.Itoa(m.Devices) != field(out, "Raid Devices") {
				t.Fatalf("%s: %+v, mdadm: %s", version, m, out)
			}
			if version == "0.90" {
				if m.Data.Offset != 0 || m.Role != 1 || level == 1 && m.Data.Length != 4<<20 {
					t.Fatalf("%+v, mdadm: %s", m, out)
				}
			} else {
				var from, sectors int64
				if v := field(out, "Data Offset"); v != "" {
					from, _ = strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				}
				sectors, _ = strconv.ParseInt(strings.Fields(field(out, "Used Dev Size") + " " + field(out, "Avail Dev Size"))[0], 10, 64)
				if level == 1 && m.Data.Length != sectors*512 || m.Data.Offset != from*512 || !strings.HasPrefix(field(out, "Device Role"), "Active device 1") || m.Role != 1 || m.Name != "guest:root" {
					t.Fatalf("%s: %+v, mdadm: %s", version, m, out)
				}
			}
			if m.Version != version || m.Mirror() != (level == 1) {
				t.Fatalf("%+v", m)
			}
			judge.Decided(t, "mdadm --examine")
		}
	}
}

func TestMutations(t *testing.T) {
	for _, version := range versions {
		b := member(version, 1)
		good, err := read(b)
		if err != nil {
			t.Fatal(err)
		}
		for name, at := range map[string]int64{"checksummed field": 72, "last role": 256} {
			x := bytes.Clone(b)
			if x[good.Offset+at] ^= 1; version == "0.90" && at == 256 {
				x[good.Offset+4095] ^= 1
			}
			if _, err := read(x); !errors.Is(err, mdraid.ErrDamaged) {
				t.Errorf("%s: %s: %v", version, name, err)
			}
		}
		x := bytes.Clone(b)
		x[good.Offset] ^= 1
		if _, err := read(x); !errors.Is(err, mdraid.ErrNoMember) {
			t.Errorf("%s: magic: %v", version, err)
		}
		// A member that was cut short, or copied to a larger device, is none there.
		if _, err := read(b[:size/2]); err == nil {
			t.Errorf("%s: cut short and taken", version)
		}
	}
	for name, change := range map[string]func(*mdtest.Array){
		"data behind the device": func(a *mdtest.Array) { a.DataOffset = 1 << 40 },
		"data of huge size":      func(a *mdtest.Array) { a.DataSize = 1 << 62 },
		"another place":          func(a *mdtest.Array) { a.Elsewhere = true },
	} {
		a := mdtest.Array{Version: "1.2", Level: 1, Devices: 2}
		change(&a)
		b := make([]byte, size)
		mdtest.Write(b, a, 0)
		if _, err := read(b); !errors.Is(err, mdraid.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, a := range map[string]mdtest.Array{
		"spare":     {Version: "1.2", Level: 1, Devices: 2, Spare: true},
		"reshaped":  {Version: "1.2", Level: 1, Devices: 2, Features: 4},
		"recovered": {Version: "1.2", Level: 1, Devices: 2, Features: 2},
		"raid5":     {Version: "1.2", Level: 5, Devices: 3},
	} {
		b := make([]byte, size)
		mdtest.Write(b, a, 0)
		if m, err := read(b); err != nil || m.Mirror() {
			t.Errorf("%s: %+v %v", name, m, err)
		}
	}
	// Of two, the one updated last.
	b := member("1.0", 1)
	mdtest.Write(b, mdtest.Array{Version: "1.2", Level: 5, Devices: 2, Updated: 1}, 0)
	if m, err := read(b); err != nil || m.Version != "1.0" {
		t.Error(m, err)
	}
}

func TestReadErrors(t *testing.T) {
	if _, err := read(nil); !errors.Is(err, mdraid.ErrNoMember) {
		t.Error(err)
	}
	if _, err := mdraid.Read(bytes.NewReader(make([]byte, 100)), 1<<20); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// FuzzMember: data that are returned lie on the device.
func FuzzMember(f *testing.F) {
	for _, v := range versions {
		b := member(v, 1)
		m, _ := read(b)
		f.Add(b[m.Offset:m.Offset+4096], v == "0.90")
	}
	f.Fuzz(func(t *testing.T, super []byte, old bool) {
		if len(super) > 4096 {
			return
		}
		b := make([]byte, 256<<10)
		for _, at := range []int64{0, 4096, 256<<10 - 8192, 256<<10 - 64<<10} {
			clear(b)
			copy(b[at:], super)
			mdtest.Fix(b[at:at+4096], old)
			m, err := read(b)
			if err == nil && (m.Data.Offset < 0 || m.Data.Length <= 0 || m.Data.End() > int64(len(b)) || m.Role < -1) {
				t.Fatalf("%+v", m)
			}
		}
	})
}
