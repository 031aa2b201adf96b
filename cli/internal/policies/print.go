package policies

import (
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a group) printUnlessQuiet(w io.Writer, v api.PolicyView) {
	if !a.Quiet {
		a.print(w, v)
	}
}

func (a group) print(w io.Writer, v api.PolicyView) {
	_, _ = fmt.Fprintln(w, heading(v.Machine, v.Origin))
	p, r := v.Policy, v.Policy.Retention
	var f screen.Facts
	f.Add("keeps", rules(r))
	if r.Minimum > 0 {
		f.Add("minimum", fmt.Sprint(r.Minimum))
	}
	f.Add("keeps tagged", strings.Join(r.KeepTags, ", "))
	f.Add("time zone", p.Timezone)
	f.Add("schedule", p.Schedule)
	for i, t := range v.Next {
		name := ""
		if i == 0 {
			name = "next"
		}
		f.Add(name, t.Format("2006-01-02 15:04 -0700"))
	}
	if p.Schedule != "" {
		f.Add("note", "the schedule is kept and shown; this version starts no backups by itself")
	}
	for _, text := range v.Warnings {
		f.Add("warning", text)
	}
	f.Add("proof age", p.ProofAge)
	f.Add("verify age", p.VerifyAge)
	for _, l := range p.Limits {
		f.Add("limit", fmt.Sprintf("%s-%s, %s", l.From, l.To, rates(l)))
	}
	for _, u := range p.CopiesTo {
		f.Add("copies to", u)
	}
	f.Print(w, "  ", a.Style)
}

// heading says whose policy is in force.
func heading(machine, origin string) string {
	switch {
	case origin == api.PolicyNone && machine == "":
		return "there is no default policy: machines without one of their own keep everything"
	case origin == api.PolicyNone:
		return screen.CleanLine(machine) + " has no policy, and there is no default: everything is kept"
	case machine == "":
		return "the default policy"
	case origin == api.PolicyDefault:
		return screen.CleanLine(machine) + " has the default policy"
	default:
		return "the policy of " + screen.CleanLine(machine)
	}
}

// rules are the retention rules in words.
func rules(r api.PolicyRetention) string {
	var out []string
	for _, x := range []struct {
		n    int
		text string
	}{
		{r.KeepLast, "the last %d"},
		{r.Hourly, "%d hourly"},
		{r.Daily, "%d daily"},
		{r.Weekly, "%d weekly"},
		{r.Monthly, "%d monthly"},
		{r.Yearly, "%d yearly"},
	} {
		if x.n > 0 {
			out = append(out, fmt.Sprintf(x.text, x.n))
		}
	}
	if r.Within != "" {
		out = append(out, "all of the last "+r.Within)
	}
	if len(out) == 0 {
		return "everything"
	}
	return strings.Join(out, ", ")
}

func rates(l api.PolicyLimit) string {
	var out []string
	if l.Read > 0 {
		out = append(out, "read "+screen.Size(l.Read)+"/s")
	}
	if l.Write > 0 {
		out = append(out, "write "+screen.Size(l.Write)+"/s")
	}
	return strings.Join(out, ", ")
}
