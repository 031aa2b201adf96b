package show

import (
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// Points prints recovery points as a table, with the machine's name where
// there are several machines.
func Points(w io.Writer, style screen.Style, points []api.Point) {
	ids := make([]string, len(points))
	machines := map[string]bool{}
	for i, p := range points {
		ids[i] = p.ID
		machines[p.Machine] = true
	}
	short := screen.Shorten(ids)
	heads := []string{"RECOVERY POINT", "TIME", "STATE", "TRANSFER", "CHANGED", "STORED", "DESCRIPTION"}
	if len(machines) > 1 {
		heads = append([]string{"MACHINE"}, heads...)
	}
	t := screen.NewTable("", heads...)
	for _, p := range points {
		description := p.Description
		if p.Incomplete {
			description = strings.TrimSpace("(incomplete) " + description)
		}
		if m := briefly(p); m != "" {
			description = strings.TrimSpace("[" + m + "] " + description)
		}
		if len(p.OnlyIn) > 0 {
			description = strings.TrimSpace("(only in " + strings.Join(p.OnlyIn, ", ") + ") " + description)
		}
		row := []screen.Cell{
			screen.Text(short[p.ID]), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)), screen.Text(p.Transfer),
			screen.Number(screen.Size(p.ChangedBytes)), screen.Number(screen.Size(p.StoredBytes)), screen.Text(description),
		}
		if len(machines) > 1 {
			row = append([]screen.Cell{screen.Text(p.Machine)}, row...)
		}
		t.Add(row...)
	}
	t.Print(w, style)
}

// States prints recovery points with why they are in the state they are in.
func States(w io.Writer, style screen.Style, points []api.Point) {
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.ID
	}
	short := screen.Shorten(ids)
	t := screen.NewTable("", "RECOVERY POINT", "MACHINE", "TIME", "STATE", "WHY")
	for _, p := range points {
		t.Add(screen.Text(short[p.ID]), screen.Text(p.Machine), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)),
			screen.Text(strings.Join(p.Why, "; ")))
	}
	t.Print(w, style)
}
