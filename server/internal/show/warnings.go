package show

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// Warnings are what somebody who enrols a machine should know now, not on the
// day of a restore.
func Warnings(disk string, report *diskcrypt.Report) (out []string) {
	for _, w := range report.Warnings {
		out = append(out, disk+": "+w)
	}
	for _, v := range report.Volumes {
		name := disk + "/" + v.ID
		switch {
		case v.Type == diskcrypt.TypeOpaque:
			out = append(out, name+" is opaque: it looks encrypted and has no header that is known here (VeraCrypt, plain dm-crypt?); no secret can be proven to open it")
		case v.Unsupported != "":
			out = append(out, fmt.Sprintf("%s (%s) cannot be opened by this version, so nothing can be proven: %s", name, v.Type, v.Unsupported))
		case v.Type == diskcrypt.TypeBitLocker:
			// What it lacks is among its own warnings, with the command that adds it.
		case len(v.Protectors) == 0:
			out = append(out, name+" has no protector: only the volume key itself opens it")
		case !slices.ContainsFunc(v.Protectors, func(p diskcrypt.Protector) bool { return p.Offline }):
			kinds := make([]string, 0, len(v.Protectors))
			for _, p := range v.Protectors {
				kinds = append(kinds, p.Kind)
			}
			slices.Sort(kinds)
			out = append(out, fmt.Sprintf("%s has no protector that works away from its machine (it has: %s): add a passphrase or recovery password, or a restore elsewhere will not open",
				name, strings.Join(slices.Compact(kinds), ", ")))
		}
		if v.SelfOpening != "" {
			out = append(out, name+" opens itself: "+v.SelfOpening)
		}
		if v.Conversion != "" {
			out = append(out, name+": conversion in progress: "+v.Conversion)
		}
		for _, w := range v.Warnings {
			out = append(out, name+": "+w)
		}
	}
	return out
}
