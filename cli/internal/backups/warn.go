package backups

import (
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// warnPoint says that a recovery point may not open one day, and loudly that it
// does not.
func (a group) warnPoint(p api.Point) {
	id, machine := screen.CleanLine(p.ID), screen.CleanLine(p.Machine)
	switch p.State {
	case api.StateUnproven:
		a.Warnf("warning: recovery point %s of %s is UNPROVEN: nothing has shown yet that a secret opens it", id, machine)
		for _, why := range reasons(p) {
			a.Warnf("  - %s", why)
		}
		a.Warnf("hint: lockstep prove %s", id)
		return
	case api.StateAtRisk:
		a.Warnf("warning: recovery point %s of %s is AT RISK: a secret opens it, but that may not last", id, machine)
		for _, why := range reasons(p) {
			a.Warnf("  - %s", why)
		}
		a.Warnf("hint: lockstep point show %s", id)
		return
	case api.StateUnrecoverable:
	default:
		return
	}
	need := needs(p)
	verdict := "is stored and kept, but no secret in custody opens it."
	if !need.secret {
		verdict = "is stored and kept, but as it is no secret can open it."
	}
	lines := []string{
		screen.NewStyle(a.Env.IsTerminal(a.Env.Stderr), a.Env.Getenv).Paint(screen.Alarm, "UNRECOVERABLE"),
		"",
		"Recovery point " + id + " of " + machine,
		verdict,
		"Restored today, it is ciphertext that nobody can read.",
	}
	if whys := reasons(p); len(whys) > 0 {
		lines = append(lines, "", "Why:")
		for _, why := range whys {
			lines = append(lines, "  - "+why)
		}
	}
	if need.header {
		lines = append(lines,
			"",
			"What to do: no passphrase helps where the header is lost or erased. Do not",
			"format the volume: its data may still be there. Where a recovery point with",
			"the header is named above, keep it, put the header back, and back up again.",
		)
	}
	if need.format {
		lines = append(lines,
			"",
			"What to do: this version cannot open the format of a volume, whatever the",
			"secret. Keep its secret and the means to open it yourself.",
		)
	}
	if need.secret {
		lines = append(lines,
			"",
			"What to do: give Lockstep the passphrase that opens the disk today,",
			"  lockstep secret add "+machine+" --kind passphrase --file -",
			"It is tried at once; if it opens the recovery point, that is proven.",
		)
	}
	if !need.secret {
		lines = append(lines, "")
	}
	lines = append(lines,
		"A volume that nobody needs, such as swap with a random key, is declared:",
		"  lockstep volume not-needed "+machine+" DISK/VOLUME --reason TEXT",
	)
	rule := strings.Repeat("!", 76)
	a.Warnf("\n%s", rule)
	for _, line := range lines {
		a.Warnf("%s", strings.TrimRight("!!  "+line, " "))
	}
	a.Warnf("%s\n", rule)
}

// remedies are what helps with a recovery point that nothing opens.
type remedies struct{ secret, header, format bool }

// needs follows the reasons of custody by how they begin (docs/spec/custody.md,
// section 6). What is known of no volume may need a secret.
func needs(p api.Point) (r remedies) {
	look := func(whys []string) (other bool) {
		other = true
		for _, why := range whys {
			switch {
			case strings.Contains(why, "header loss: "), strings.Contains(why, "header erased: "):
				r.header, other = true, false
			case strings.Contains(why, "cannot be opened by this version: "):
				r.format, other = true, false
			}
		}
		return other
	}
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if v.State == api.StateUnrecoverable && v.NotNeeded == "" && look(v.Why) {
				r.secret = true
			}
		}
	}
	// A volume of which nothing is left is in the recovery point's reasons alone.
	look(p.Why)
	r.secret = r.secret || !r.header && !r.format
	return r
}

// reasons are why a recovery point is in its state, its volumes' included.
func reasons(p api.Point) []string {
	var out []string
	add := func(s string) {
		if s = screen.CleanLine(s); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, why := range p.Why {
		add(why)
	}
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if v.State == api.StateProven || v.NotNeeded != "" {
				continue
			}
			for _, why := range v.Why {
				// The recovery point may say it already, with the volume's name or without.
				if !slices.ContainsFunc(out, func(s string) bool { return strings.HasSuffix(s, screen.CleanLine(why)) }) {
					add(d.ID + "/" + v.ID + ": " + why)
				}
			}
		}
	}
	return out
}
