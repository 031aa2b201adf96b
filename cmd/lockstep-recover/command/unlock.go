package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/rescue"
	"github.com/lockstep-backup/lockstep/unlock"
)

type unlockDoc struct {
	Point   string      `json:"point"`
	Machine string      `json:"machine"`
	Devices []deviceDoc `json:"devices"` // of plaintext
	Locked  []lockedDoc `json:"locked"`
	Written string      `json:"written,omitempty"` // file
}

type deviceDoc struct {
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	Class  string `json:"class"`
	Size   int64  `json:"size_bytes"`
	Secret string `json:"secret,omitempty"`
	Header string `json:"header,omitempty"` // where it came from, if not from the disk
}

type lockedDoc struct {
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	Why    string `json:"why"`
}

func (a *app) unlockCommand() *cobra.Command {
	var to, volume string
	cmd := a.command(verb{
		use:   "unlock POINT [--volume DISK/VOLUME --to FILE]",
		short: "Show what is in the encrypted volumes, or write one decrypted",
		long: `The secrets of the key packages open the volumes, straight from the repository.
What is inside is listed, logical volumes and partitions too. With --volume and
--to the plaintext of one is written into FILE, a new one with mode 0600, or to
standard output with --to -. Only what is asked for is written.`,
		example: "lockstep-recover unlock web01@latest --repository /mnt/repository --identity kit.txt",
		exits:   []int{api.ExitNotProven, api.ExitTarget},
		args:    1,
		run: func(ctx context.Context, args []string) error {
			switch {
			case (to == "") != (volume == ""):
				return usagef("--volume DISK/VOLUME and --to FILE go together")
			case to == "-" && a.output == "json":
				return usagef("--to - writes the plaintext itself; it does not go with -o json")
			case to != "" && to != "-":
				// Before anything is opened: nothing is written over.
				if _, err := os.Lstat(to); err == nil {
					return &statusError{fmt.Errorf("unlock: %s: %w", to, fs.ErrExist), api.ExitTarget, "--to names a new file"}
				}
			}
			return a.withPoint(ctx, args[0], func(r *rescue.Rescue, p *rescue.Point) error {
				return a.unlock(ctx, r, p, volume, to)
			})
		},
	})
	cmd.Flags().StringVar(&volume, "volume", "", "the one to write, `DISK/VOLUME` as the list has it")
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make, - for standard output")
	return cmd
}

func (a *app) unlock(ctx context.Context, r *rescue.Rescue, p *rescue.Point, volume, to string) (err error) {
	tree, problems, err := r.Unlock(ctx, p)
	for _, e := range problems {
		a.warnf("warning: %s", e)
		a.note(api.ExitDamaged)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.Close()) }()
	for _, w := range tree.Warnings {
		a.warnf("warning: %s", w)
	}
	if volume != "" {
		return a.writePlain(ctx, tree, p, volume, to)
	}
	doc := unlockDoc{Point: p.ID, Machine: p.MachineName, Devices: []deviceDoc{}, Locked: []lockedDoc{}}
	for _, d := range tree.Devices {
		if d.Decrypted {
			doc.Devices = append(doc.Devices, deviceDoc{d.Disk, d.Name, d.Class, d.Size, d.Key, d.Header})
		}
	}
	for _, l := range tree.Locked {
		doc.Locked = append(doc.Locked, lockedDoc{l.Disk, l.Name, strings.ReplaceAll(l.Why.Error(), "\n", "; ")})
		a.note(api.ExitNotProven)
	}
	a.emit(doc, func(w io.Writer) {
		for _, d := range doc.Devices {
			_, _ = fmt.Fprintf(w, "%s/%s\t%s\t%s\n", clean(d.Disk), clean(d.Volume), sizeText(d.Size), clean(d.Class))
		}
	})
	for _, l := range doc.Locked {
		a.warnf("warning: %s/%s stays locked: %s", l.Disk, l.Volume, l.Why)
	}
	return nil
}

// writePlain writes one device of plaintext.
func (a *app) writePlain(ctx context.Context, tree *unlock.Tree, p *rescue.Point, volume, to string) error {
	disk, name, _ := strings.Cut(volume, "/")
	d := tree.Find(disk, name)
	if d == nil || !d.Decrypted {
		for _, l := range tree.Locked {
			if l.Disk == disk && l.Name == name {
				return &statusError{fmt.Errorf("unlock %s: %w", volume, l.Why), api.ExitNotProven, "'lockstep-recover list' shows recovery points that are ready"}
			}
		}
		return &statusError{fmt.Errorf("unlock %s: %w", volume, rescue.ErrNoVolume), api.ExitFailed, "'lockstep-recover unlock POINT' lists what there is"}
	}
	if to == "-" {
		a.printed = true
		return copyPlain(ctx, a.env.Stdout, d)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &statusError{fmt.Errorf("unlock: %w", err), api.ExitTarget, "--to names a new file, in a folder that is there"}
	}
	err = copyPlain(ctx, f, d)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(to)) // half a plaintext is of no use
	}
	doc := unlockDoc{
		Point: p.ID, Machine: p.MachineName, Devices: []deviceDoc{{d.Disk, d.Name, d.Class, d.Size, d.Key, d.Header}},
		Locked: []lockedDoc{}, Written: to,
	}
	a.emit(doc, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "the plaintext of %s is in %s: %s, %s\n", clean(volume), clean(to), sizeText(d.Size), clean(d.Class))
	})
	return nil
}

// plainRun is what is decrypted and written at a time.
const plainRun = 4 << 20

func copyPlain(ctx context.Context, w io.Writer, d *unlock.Device) error {
	buf := make([]byte, min(plainRun, d.Size))
	defer clear(buf)
	for off := int64(0); off < d.Size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
		b := buf[:min(int64(len(buf)), d.Size-off)]
		if n, err := d.R.ReadAt(b, off); n < len(b) {
			return fmt.Errorf("unlock %s/%s: %w", d.Disk, d.Name, err)
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
	}
	return nil
}
