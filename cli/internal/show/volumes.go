// Package show prints what several commands print.
package show

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// Disks prints disks, their volumes and protectors, and what is beside them.
func Disks(w io.Writer, style screen.Style, disks []api.DiskView) {
	for i, d := range disks {
		if i > 0 {
			_, _ = fmt.Fprintln(w)
		}
		if d.Error != "" {
			_, _ = fmt.Fprintf(w, "%s  cannot be read: %s\n", style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.CleanLine(d.Error))
			if len(d.Volumes)+len(d.Areas) == 0 {
				continue
			}
		} else {
			_, _ = fmt.Fprintf(w, "%s  %s\n", style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.Size(d.SizeBytes))
		}
		Volumes(w, style, d.Volumes, d.Areas)
	}
}

// Volumes prints the volumes of a disk and what lies beside them.
func Volumes(w io.Writer, style screen.Style, volumes []api.Volume, areas []api.Area) {
	if len(areas) > 0 {
		for _, area := range areas {
			line := "  " + area.ID + "  " + area.Class
			if area.Note != "" {
				line += "  " + area.Note
			}
			if area.Unread != "" {
				line += "  not looked into: " + area.Unread
			}
			_, _ = fmt.Fprintln(w, screen.CleanLine(line))
		}
	}
	for _, v := range volumes {
		volume(w, style, v)
	}
	if len(volumes) == 0 {
		_, _ = fmt.Fprintln(w, "  no encrypted volume")
	}
}

func volume(w io.Writer, style screen.Style, v api.Volume) {
	_, _ = fmt.Fprintf(w, "  %s  %s  %s", style.Paint(screen.Bold, screen.CleanLine(v.ID)), screen.CleanLine(v.Type), screen.Size(v.SizeBytes))
	if v.State != "" {
		_, _ = fmt.Fprintf(w, "  %s", style.State(v.State))
	}
	_, _ = fmt.Fprintln(w)
	var f screen.Facts
	cipher := v.Cipher
	if cipher != "" && v.KeyBits > 0 {
		cipher += fmt.Sprintf(", %d bits", v.KeyBits)
	}
	if cipher != "" && v.SectorSize > 0 {
		cipher += fmt.Sprintf(", sectors of %d bytes", v.SectorSize)
	}
	f.Add("uuid", v.UUID)
	f.Add("label", v.Label)
	f.Add("cipher", cipher)
	f.Add("epoch", screen.ShortEpoch(v.Epoch))
	f.Add("declared", v.Declared)
	f.Add("not needed", v.NotNeeded)
	f.Add("self-opening", v.SelfOpening)
	f.Add("not supported", v.Unsupported)
	f.Add("conversion", v.Conversion)
	for _, why := range v.Why {
		f.Add("why", why)
	}
	for _, token := range v.Tokens {
		f.Add("token", token)
	}
	for _, warning := range v.Warnings {
		f.Add("warning", warning)
	}
	f.Print(w, "    ", style)
	if len(v.Protectors) == 0 {
		return
	}
	refs := screen.ShortRefs(Openers(v))
	t := screen.NewTable("    ", "PROTECTOR", "KIND", "KDF", "OPENED BY", "NOTE")
	for _, p := range v.Protectors {
		opened := screen.Painted("nothing in custody", screen.Yellow)
		if len(p.OpenedBy) > 0 {
			names := make([]string, len(p.OpenedBy))
			for i, r := range p.OpenedBy {
				names[i] = refs[r]
			}
			opened = screen.Painted(strings.Join(names, ", "), screen.Green)
		}
		t.Add(screen.Text(p.ID), screen.Text(p.Kind), screen.Text(p.KDF), opened, screen.Text(p.Note))
	}
	t.Print(w, style)
}

// Openers are the secret versions that open any protector of a volume.
func Openers(v api.Volume) []string {
	var out []string
	for _, p := range v.Protectors {
		for _, ref := range p.OpenedBy {
			if !slices.Contains(out, ref) {
				out = append(out, ref)
			}
		}
	}
	return out
}

// RangeBytes adds up lengths.
func RangeBytes(ranges []api.Range) int64 {
	var n int64
	for _, r := range ranges {
		n += r.Length
	}
	return n
}
