package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/rescue"
)

type checkDoc struct {
	Point   string       `json:"point"`
	Machine string       `json:"machine"`
	Opens   bool         `json:"opens"` // every volume that is needed was opened
	Volumes []openingDoc `json:"volumes"`
}

type openingDoc struct {
	Disk      string `json:"disk"`
	Volume    string `json:"volume"`
	Type      string `json:"type"`
	Opened    bool   `json:"opened"`
	Secret    string `json:"secret,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Protector string `json:"protector,omitempty"`
	Class     string `json:"class,omitempty"`
	Header    string `json:"header_from,omitempty"` // where the header came from, if not from the disk
	Access    string `json:"access"`
	Error     string `json:"error,omitempty"`
}

func (a *app) openCheckCommand() *cobra.Command {
	return a.command(verb{
		use:   "open-check POINT",
		short: "Open a recovery point's volumes, straight from the repository",
		long: `Each volume is opened with the secrets of its key package, and its beginning is
decrypted: the proof one wants before a restore. Nothing is written anywhere.`,
		example: "lockstep-recover open-check web01@latest --repository /mnt/repository --identity kit.txt",
		exits:   []int{api.ExitNotProven},
		args:    1,
		run: func(ctx context.Context, args []string) error {
			return a.withPoint(ctx, args[0], func(r *rescue.Rescue, p *rescue.Point) error { return a.openCheck(ctx, r, p) })
		},
	})
}

func (a *app) openCheck(ctx context.Context, r *rescue.Rescue, p *rescue.Point) error {
	openings, problems, err := r.OpenCheck(ctx, p)
	if err != nil {
		return err
	}
	for _, e := range problems {
		a.warnf("warning: %s", e)
		a.note(api.ExitDamaged)
	}
	doc := checkDoc{Point: p.ID, Machine: p.MachineName, Opens: true, Volumes: []openingDoc{}}
	for _, o := range openings {
		v := o.Volume
		d := openingDoc{Disk: v.Disk, Volume: v.ID, Type: v.Type, Opened: o.Opened, Protector: o.Protector, Class: o.Class, Header: o.Header, Access: string(v.Access)}
		if o.Opened {
			d.Secret, d.Kind = o.Key.Secret.String(), string(o.Key.Kind)
		} else {
			d.Error = o.Err.Error()
			if v.Access != rescue.NotNeeded && v.Access != rescue.SelfOpening {
				doc.Opens = false
				a.note(statusOf(o.Err))
			}
		}
		doc.Volumes = append(doc.Volumes, d)
	}
	a.emit(doc, func(w io.Writer) {
		if len(doc.Volumes) == 0 {
			_, _ = fmt.Fprintln(w, "nothing on its disks is encrypted")
		}
		for i, d := range doc.Volumes {
			name := openings[i].Volume.Name()
			switch {
			case d.Opened:
				from := ""
				if d.Header != "" {
					from = ", header from " + strings.TrimPrefix(d.Header, "the ")
				}
				_, _ = fmt.Fprintf(w, "%s\n", clean(fmt.Sprintf("%s opens: %s with %s %s, %s; %s%s", name, d.Type, d.Kind, short(d.Secret), d.Protector, inside(d.Class), from)))
			case d.Access == string(rescue.NotNeeded), d.Access == string(rescue.SelfOpening):
				_, _ = fmt.Fprintf(w, "%s\n", clean(fmt.Sprintf("%s: %s", name, accessText(openings[i].Volume))))
			default:
				_, _ = fmt.Fprintf(w, "%s\n", clean(fmt.Sprintf("%s DOES NOT OPEN: %s", name, d.Error)))
			}
		}
	})
	return nil
}

// statusOf is the exit status for a volume that was not opened.
func statusOf(err error) int {
	switch {
	case errors.Is(err, rescue.ErrNoSecret):
		return api.ExitNotProven
	case errors.Is(err, repository.ErrDamaged), errors.Is(err, diskcrypt.ErrDamaged):
		return api.ExitDamaged
	case errors.Is(err, diskcrypt.ErrWrongSecret):
		return api.ExitWrongSecret
	}
	return api.ExitFailed
}

type headerDoc struct {
	Point  string `json:"point"`
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	File   string `json:"file"`
	Size   int64  `json:"size_bytes"`
	From   string `json:"from"`
}

func (a *app) headerCommand() *cobra.Command {
	var to string
	cmd := a.command(verb{
		use:   "header POINT/DISK/VOLUME --to FILE",
		short: "Write a volume's encryption header as the usual tools read it",
		long: `It is read from the stored disk, else from the header copies, else from a header
package. FILE is made with mode 0600: who has a header can guess passphrases.`,
		example: "lockstep-recover header web01@latest/vda/p2 --to web01.header --repository /mnt/repository --identity kit.txt",
		exits:   []int{api.ExitTarget},
		args:    1,
		run: func(ctx context.Context, args []string) error {
			if to == "" {
				return usagef("--to FILE is missing")
			}
			rest, volume, ok2 := cutLast(args[0])
			point, disk, ok1 := cutLast(rest)
			if !ok1 || !ok2 {
				return usagef("%q is not of the form POINT/DISK/VOLUME", args[0])
			}
			return a.withPoint(ctx, point, func(r *rescue.Rescue, p *rescue.Point) error {
				var buf bytes.Buffer
				from, n, err := r.ExportHeader(ctx, p, disk, volume, &buf)
				if err != nil {
					return err
				}
				if err := envelope.WriteNewFileDurable(to, buf.Bytes(), 0o600); err != nil {
					return fmt.Errorf("write %s: %w", to, err)
				}
				doc := headerDoc{p.ID, disk, volume, to, n, from}
				a.emit(doc, func(w io.Writer) {
					_, _ = fmt.Fprintf(w, "%s: header of %s, %s, read from %s\n", clean(to), clean(disk+"/"+volume), sizeText(n), from)
					_, _ = fmt.Fprintf(w, "to put it back: cryptsetup luksHeaderRestore --header-backup-file %s PARTITION\n", clean(shellWord(to)))
				})
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make")
	return cmd
}

func cutLast(s string) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 1 || i == len(s)-1 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
