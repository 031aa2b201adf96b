package command

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/rescue"
)

type listDoc struct {
	Repository string       `json:"repository"`
	Pinned     bool         `json:"pinned"`
	Machines   []machineDoc `json:"machines"`
	Problems   []string     `json:"problems"`
}

type machineDoc struct {
	ID     string     `json:"id"`
	Name   string     `json:"name"`
	Points []pointDoc `json:"points"` // newest first
}

type pointDoc struct {
	ID          string      `json:"id"`
	Machine     string      `json:"machine"`
	Time        time.Time   `json:"time"`
	Opens       bool        `json:"opens"` // this identity opens every volume that is needed
	Consistency string      `json:"consistency,omitempty"`
	Incomplete  bool        `json:"incomplete,omitempty"`
	Description string      `json:"description,omitempty"`
	Damaged     bool        `json:"damaged,omitempty"` // its manifest cannot be read
	Disks       []diskDoc   `json:"disks"`
	Volumes     []volumeDoc `json:"volumes"`
}

type diskDoc struct {
	ID          string `json:"id"`
	Size        int64  `json:"size_bytes"`
	ContentRoot string `json:"content_root"`
}

type volumeDoc struct {
	Disk      string     `json:"disk"`
	ID        string     `json:"id"`
	Type      string     `json:"type"`
	UUID      string     `json:"uuid,omitempty"`
	Detached  bool       `json:"detached,omitempty"`
	Access    string     `json:"access"`
	Keys      []keyDoc   `json:"keys"`
	Proofs    []proofDoc `json:"proofs"`
	NotNeeded string     `json:"not_needed,omitempty"`
}

type keyDoc struct {
	Secret string `json:"secret"`
	Kind   string `json:"kind"`
	Here   bool   `json:"here"`  // this identity opens the key package
	Point  string `json:"point"` // of the key package
}

type proofDoc struct {
	Secret string    `json:"secret"`
	Time   time.Time `json:"time"`
	Class  string    `json:"class"`
}

func (a *app) listCommand() *cobra.Command {
	return a.command(verb{
		use: "list", short: "List machines and recovery points, and what this identity opens",
		long: `Each volume is ready (a key package holds its secret, and a proof says that it
opens it), untested (there is a secret, without a proof that counts), locked (no
key package for this identity holds a secret), not-needed, or self-opening.`,
		example: "lockstep-recover list --repository /mnt/repository --identity kit.txt",
		run: func(ctx context.Context, _ []string) error {
			return a.with(ctx, func(r *rescue.Rescue) error {
				ms, problems, err := a.machines(ctx, r)
				if err != nil {
					return err
				}
				if problems == nil {
					problems = []string{}
				}
				doc := listDoc{Repository: r.Repository().ID(), Pinned: r.Pinned(), Machines: []machineDoc{}, Problems: problems}
				for _, m := range ms {
					md := machineDoc{ID: m.ID, Name: m.Name, Points: []pointDoc{}}
					for _, p := range m.Points {
						md.Points = append(md.Points, documentOf(p))
					}
					doc.Machines = append(doc.Machines, md)
				}
				a.emit(doc, func(w io.Writer) { printList(w, ms) })
				return nil
			})
		},
	})
}

func documentOf(p *rescue.Point) pointDoc {
	d := pointDoc{
		ID: p.ID, Machine: p.MachineName, Time: p.When(), Opens: p.Opens(), Incomplete: p.Incomplete(),
		Damaged: p.Manifest == nil, Disks: []diskDoc{}, Volumes: []volumeDoc{},
	}
	if p.Manifest != nil {
		d.Consistency, d.Description = p.Manifest.Consistency, p.Manifest.Description
		for _, x := range p.Manifest.Disks {
			d.Disks = append(d.Disks, diskDoc{x.ID, x.Size, x.ContentRoot})
		}
	}
	for _, v := range p.Volumes {
		vd := volumeDoc{
			Disk: v.Disk, ID: v.ID, Type: v.Type, UUID: v.UUID, Detached: v.Detached, Access: string(v.Access),
			Keys: []keyDoc{}, Proofs: []proofDoc{}, NotNeeded: v.NotNeeded,
		}
		for _, k := range v.Keys {
			vd.Keys = append(vd.Keys, keyDoc{k.Secret.String(), string(k.Kind), k.Here, k.Point})
		}
		for _, pr := range v.Proofs {
			vd.Proofs = append(vd.Proofs, proofDoc{pr.Secret.String(), pr.Time, pr.Class})
		}
		d.Volumes = append(d.Volumes, vd)
	}
	return d
}

func printList(w io.Writer, ms []*rescue.Machine) {
	if len(ms) == 0 {
		_, _ = fmt.Fprintln(w, "the repository holds no machines")
	}
	var b strings.Builder
	for i, m := range ms {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s\n", m.Name)
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(t, "  RECOVERY POINT\tTIME\tDISKS\tVOLUME\tWITH THIS IDENTITY")
		for _, p := range m.Points {
			first := fmt.Sprintf("  %s\t%s\t%s", p.ID[:min(12, len(p.ID))], p.When().UTC().Format(time.RFC3339), disksText(p))
			if p.Manifest == nil {
				_, _ = fmt.Fprintf(t, "%s\t–\tdamaged: its manifest cannot be read\n", first)
				continue
			}
			if len(p.Volumes) == 0 {
				_, _ = fmt.Fprintf(t, "%s\t–\tnothing on it is encrypted\n", first)
			}
			for _, v := range p.Volumes {
				_, _ = fmt.Fprintf(t, "%s\t%s %s\t%s\n", first, v.Name(), v.Type, accessText(v))
				first = "  \t\t"
			}
		}
		_ = t.Flush()
	}
	for line := range strings.Lines(clean(b.String())) {
		_, _ = fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func disksText(p *rescue.Point) string {
	if p.Manifest == nil {
		return "–"
	}
	var out []string
	for _, d := range p.Manifest.Disks {
		out = append(out, fmt.Sprintf("%s %s", d.ID, sizeText(d.Size)))
	}
	text := strings.Join(out, ", ")
	if p.Incomplete() {
		text += " (incomplete)"
	}
	return text
}

func accessText(v rescue.Volume) string {
	var secrets []string
	for _, k := range v.Keys {
		if k.Here {
			secrets = append(secrets, fmt.Sprintf("%s %s", k.Kind, short(k.Secret.String())))
		}
	}
	text := string(v.Access)
	switch v.Access {
	case rescue.Ready:
		i := slices.IndexFunc(v.Keys, func(k rescue.Key) bool { return k.Here })
		class := ""
		for _, p := range v.Proofs {
			if p.Secret == v.Keys[i].Secret {
				class = fmt.Sprintf("; proven %s, %s", p.Time.UTC().Format(time.DateOnly), inside(p.Class))
			}
		}
		return fmt.Sprintf("%s: %s%s", text, strings.Join(secrets, ", "), class)
	case rescue.Untested:
		return fmt.Sprintf("%s: %s; try it with open-check", text, strings.Join(secrets, ", "))
	case rescue.NotNeeded:
		return text + ": " + v.NotNeeded
	case rescue.SelfOpening:
		return text + ": " + v.SelfOpening
	}
	if len(v.Keys) > 0 {
		return text + ": its key package is for another recovery identity"
	}
	return text + ": there is no key package with its secret"
}

// short shortens the id of ID@VERSION.
func short(ref string) string {
	id, version, ok := strings.Cut(ref, "@")
	if len(id) > 20 {
		id = id[:12]
	}
	if !ok {
		return id
	}
	return id + "@" + version
}

func sizeText(n int64) string {
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

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Long: "Print the version.", Example: "  lockstep-recover version",
		Annotations: map[string]string{exits: exitLines([]int{api.ExitDone, api.ExitUsage})}, Args: cobra.NoArgs,
		DisableFlagsInUseLine: true,
		Run: func(*cobra.Command, []string) {
			a.emit(map[string]string{"version": a.env.Version}, func(w io.Writer) { _, _ = fmt.Fprintln(w, a.env.Version) })
		},
	}
}

// inside says what was recognised behind the encryption.
func inside(class string) string {
	if class == "" || class == "none" {
		return "nothing recognised inside"
	}
	return class + " inside"
}
