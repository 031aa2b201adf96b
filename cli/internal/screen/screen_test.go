package screen

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/api"
)

func TestSize(t *testing.T) {
	tests := map[int64]string{
		-1: "?", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB",
		1<<20 - 1: "1.0 MiB", 1 << 20: "1.0 MiB", 8 << 30: "8.0 GiB", 1<<63 - 1: "8.0 EiB",
	}
	for n, want := range tests {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestShortenGivesUniquePrefixes(t *testing.T) {
	ids := []string{
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa2",
		"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "short", "",
		"cccccccccccccccccccccccc", "ccccccccccccccccccccccccd",
	}
	short := Shorten(ids)
	for _, id := range ids {
		s := short[id]
		if !strings.HasPrefix(id, s) {
			t.Errorf("%q is no prefix of %q", s, id)
		}
		for _, other := range ids {
			if other != id && s != id && strings.HasPrefix(other, s) {
				t.Errorf("%q stands for %q and for %q", s, id, other)
			}
		}
	}
	if got := short["bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"]; got != "bbbbbbbbbbbb" {
		t.Errorf("got %q", got)
	}
	if got := ShortRefs([]string{"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb@12", "x"}); got["bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb@12"] != "bbbbbbbbbbbb@12" || got["x"] != "x" {
		t.Errorf("got %v", got)
	}
}

func TestTable(t *testing.T) {
	tab := NewTable("  ", "A", "NUMBER", "C")
	tab.Add(Text("long one"), Number("1"), Text("x"))
	tab.Add(Text("é"), Number("22222222"))
	tab.Add(Text(""), Number(""), Text("evil\x1b[2J\n"))
	var b strings.Builder
	tab.Print(&b, Style{})
	want := "  A           NUMBER  C\n" +
		"  long one         1  x\n" +
		"  é         22222222\n" +
		"                      evil\uFFFD[2J\uFFFD\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"plain", "a\nb", "\x1b[31m", "\u202edesrever", "\xff\xfe", "\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, out := range []string{Clean(s), strings.ReplaceAll(CleanLine(s), "\n", "FAIL")} {
			if strings.ContainsAny(out, "\x00\x07\x08\r\x1b\u009b\u202e\u2066") || !utf8.ValidString(out) || strings.Contains(out, "FAIL") && !strings.Contains(s, "FAIL") {
				t.Errorf("%q became %q", s, out)
			}
		}
	})
}

func TestProgressOfDisksSideBySide(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, true, false)
	for i := range int64(50) {
		for _, phase := range []string{"scan vda", "scan\x1b[2J vdb"} {
			_ = p.Event(api.JobEvent{N: int(i), Kind: "progress", Phase: phase, Done: i, Total: 100 - i, Unit: "bytes"})
		}
	}
	if len(p.each) != 2 {
		t.Errorf("%d bars for two phases", len(p.each))
	}
	for i := range 100 {
		_ = p.Event(api.JobEvent{N: 50 + i, Kind: "progress", Phase: strconv.Itoa(i), Done: 1, Unit: "%s points"})
	}
	if len(p.each) != maxBars {
		t.Errorf("%d bars, want the bound %d", len(p.each), maxBars)
	}
	_ = p.Event(api.JobEvent{N: 151, Kind: "warning", Message: "once"})
	p.Warning("once")
	p.Close(true)
	if n := strings.Count(out.String(), "warning: once\n"); n != 1 {
		t.Errorf("the warning is there %d times", n)
	}
	if strings.Contains(out.String(), "\x1b[2J vdb") || strings.Contains(out.String(), "%!") {
		t.Errorf("the name of a phase is passed on: %q", out.String())
	}
	if p.Last() != 151 {
		t.Errorf("last event %d", p.Last())
	}
}
