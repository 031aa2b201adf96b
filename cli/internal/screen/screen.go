// Package screen shows things to people: tables, sizes, times, colours and
// progress. It is not the JSON output. Its invariant: text that comes from a
// disk, a server or a file passes through Clean, so that it cannot move the
// cursor, colour or reorder what is shown.
package screen

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/api"
)

// Style colours text on terminals that like it; the zero value does not.
type Style struct{ on bool }

// NewStyle colours where the output is a terminal, unless NO_COLOR is set.
func NewStyle(terminal bool, getenv func(string) string) Style {
	on := terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
	if runtime.GOOS == "windows" && getenv("WT_SESSION") == "" && getenv("TERM") == "" {
		on = false // the old console shows the escape sequences themselves
	}
	return Style{on}
}

// Colours, as parameters of the SGR sequence.
const (
	Plain  = ""
	Bold   = "1"
	Dim    = "2"
	Green  = "32"
	Yellow = "33"
	Alarm  = "1;97;41"
)

// Paint returns text in a colour. It does not clean it.
func (s Style) Paint(colour, text string) string {
	if !s.on || colour == Plain {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// State paints the state of a recovery point or a machine.
func (s Style) State(state string) string {
	if state == "" {
		return "no recovery points"
	}
	return s.Paint(StateColour(state), CleanLine(state))
}

// StateColour is the colour of a recovery point's or volume's state.
func StateColour(state string) string {
	switch state {
	case api.StateProven:
		return Green
	case api.StateAtRisk, api.StateUnproven:
		return Yellow
	case api.StateUnrecoverable:
		return Alarm
	default:
		return Dim
	}
}

// states orders states, the worst first.
var states = []string{
	api.StateUnrecoverable, api.StateUnproven, api.StateAtRisk,
	api.StateOpaque, api.StateShredded, api.StateProven, api.StatePlain,
}

// Badness is the place of a state among states; unknown ones come first.
func Badness(state string) int { return slices.Index(states, state) }

// Clean makes text from disks, servers and files harmless on a terminal:
// control and formatting characters would let a volume label move the cursor
// or reorder a line.
func Clean(s string) string {
	return cleanWith(s, func(r rune) bool { return r == '\n' })
}

// CleanLine is Clean for text that stays on its line.
func CleanLine(s string) string { return cleanWith(s, func(rune) bool { return false }) }

func cleanWith(s string, keep func(rune) bool) string {
	bad := func(r rune) bool {
		return !keep(r) && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == utf8.RuneError ||
			r == '\u2028' || r == '\u2029')
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// Cell is a field of a table.
type Cell struct {
	text   string
	colour string
	right  bool
}

// Text is a cell, Painted one in a colour, Number one aligned right, which
// aligns its column right.
func Text(s string) Cell            { return Cell{text: s} }
func Painted(s, colour string) Cell { return Cell{text: s, colour: colour} }
func Number(s string) Cell          { return Cell{text: s, right: true} }

// Table aligns columns; no line ends with spaces.
type Table struct {
	indent string
	rows   [][]Cell
}

// NewTable begins a table with its column heads; indent stands before each line.
func NewTable(indent string, heads ...string) *Table {
	t := &Table{indent: indent}
	row := make([]Cell, len(heads))
	for i, h := range heads {
		row[i] = Painted(h, Bold)
	}
	t.rows = append(t.rows, row)
	return t
}

// Add adds a row; it may be shorter than the heads.
func (t *Table) Add(cells ...Cell) { t.rows = append(t.rows, cells) }

// Print writes the table.
func (t *Table) Print(w io.Writer, s Style) {
	var widths []int
	right := map[int]bool{}
	for _, row := range t.rows {
		for i := range row {
			row[i].text = CleanLine(row[i].text)
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
			right[i] = right[i] || row[i].right
		}
	}
	for _, row := range t.rows {
		var b strings.Builder
		b.WriteString(t.indent)
		gap := "" // held back, so that no line ends with spaces
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			if c.text == "" {
				gap += pad + "  "
				continue
			}
			if right[i] {
				b.WriteString(gap + pad + s.Paint(c.colour, c.text))
				gap = "  "
			} else {
				b.WriteString(gap + s.Paint(c.colour, c.text))
				gap = pad + "  "
			}
		}
		_, _ = fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// Facts prints names and values below each other.
type Facts struct {
	rows []([2]string)
}

// Add adds a line, unless the value is empty.
func (f *Facts) Add(name, value string) {
	if value != "" {
		f.rows = append(f.rows, [2]string{name, CleanLine(value)})
	}
}

// Print writes the lines.
func (f *Facts) Print(w io.Writer, indent string, s Style) {
	width := 0
	for _, r := range f.rows {
		width = max(width, len(r[0]))
	}
	for _, r := range f.rows {
		_, _ = fmt.Fprintf(w, "%s%s  %s\n", indent, s.Paint(Dim, r[0]+strings.Repeat(" ", width-len(r[0]))), r[1])
	}
}

// Size is a number of bytes for people.
func Size(n int64) string {
	if n < 0 {
		return "?"
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < 5 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// Duration is a number of seconds for people.
func Duration(seconds float64) string {
	if seconds < 0 || seconds != seconds || seconds > 1e9 {
		return "?"
	}
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

// Stamp is a time as RFC 3339 in UTC.
func Stamp(t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	return t.UTC().Format(time.RFC3339)
}

// StampOr is Stamp, or none where there is no time.
func StampOr(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return Stamp(*t)
}

// Count is a number with its noun.
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// Shorten gives each id its shortest prefix, of at least 12 characters, that no
// other of them has; short ids stay whole. Prefixes are accepted as ids.
func Shorten(ids []string) map[string]string {
	sorted := slices.Clone(ids)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	out := make(map[string]string, len(sorted))
	for i, id := range sorted {
		n := 12
		for _, j := range []int{i - 1, i + 1} {
			if j >= 0 && j < len(sorted) {
				n = max(n, commonPrefix(id, sorted[j])+1)
			}
		}
		if len(id) <= 20 || n >= len(id) || !utf8.ValidString(id[:n]) {
			out[id] = id
		} else {
			out[id] = id[:n]
		}
	}
	return out
}

func commonPrefix(x, y string) int {
	n := 0
	for n < len(x) && n < len(y) && x[n] == y[n] {
		n++
	}
	return n
}

// ShortRefs is Shorten for references ID@VERSION.
func ShortRefs(refs []string) map[string]string {
	ids := make([]string, len(refs))
	for i, r := range refs {
		ids[i], _, _ = strings.Cut(r, "@")
	}
	short := Shorten(ids)
	out := make(map[string]string, len(refs))
	for i, r := range refs {
		out[r] = short[ids[i]] + r[len(ids[i]):]
	}
	return out
}

// ShortEpoch leaves of "v1:" and 64 digits what tells epochs of one machine
// apart; all of it is in the JSON.
func ShortEpoch(s string) string {
	if at := strings.IndexByte(s, ':'); at >= 0 {
		s = s[at+1:]
	}
	return s[:min(len(s), 16)]
}
