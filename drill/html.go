package drill

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
)

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{
	"time":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"seconds": Duration,
	"size":    Size,
	"mark":    func(outcome string) string { return marks[outcome] },
	"kind":    func(kind string) string { return kinds[kind] },
}).Parse(page))

var marks = map[string]string{
	custody.DrillPassed: "✓", custody.DrillWarned: "!", custody.DrillFailed: "✗", custody.DrillSkipped: "–", custody.DrillIncomplete: "–",
}

var kinds = map[string]string{
	custody.DrillOpen: "Recovery point", custody.DrillUnlock: "Unlock", custody.DrillLayout: "Layout", custody.DrillFileSystem: "File system",
	custody.DrillCheck: "File system check", custody.DrillSample: "Files read", custody.DrillBoot: "Boot",
}

// Duration is seconds for people: "0.42 s", "3 min 5 s".
func Duration(s float64) string {
	if s < 100 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%d min %d s", int(s)/60, int(s)%60)
}

// Size is bytes for people.
func Size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// HTML writes a report as a page of its own: nothing is loaded from elsewhere.
func HTML(w io.Writer, d custody.Drill) error { return pageTemplate.Execute(w, d) }
