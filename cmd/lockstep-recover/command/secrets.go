package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/rescue"
)

type secretsDoc struct {
	Point   string      `json:"point"`
	Machine string      `json:"machine"`
	Secrets []secretDoc `json:"secrets"` // without their bytes
	Locked  []string    `json:"locked"`  // volumes for which there is none
}

type secretDoc struct {
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	Secret string `json:"secret"`
	Kind   string `json:"kind"`
	File   string `json:"file"`
	Use    string `json:"use"` // command that opens the volume of a restored disk
}

func (a *app) secretsCommand() *cobra.Command {
	var to, volume string
	cmd := a.command(verb{
		use:   "secrets POINT --to DIR [--volume DISK/VOLUME]",
		short: "Take the secrets out of the key packages",
		long: `DIR is made with mode 0700, or is there already; each secret becomes a new file
with mode 0600 in it, byte for byte. Nothing is written over. --to - writes the
one secret of one volume to standard output instead.`,
		example: "lockstep-recover secrets web01@latest --to ./secrets --repository /mnt/repository --identity kit.txt",
		exits:   []int{api.ExitNotProven, api.ExitTarget},
		args:    1,
		run: func(ctx context.Context, args []string) error {
			if to == "" {
				return usagef("--to is missing: a folder, or - for standard output")
			}
			if to == "-" && a.output == "json" {
				return usagef("--to - writes the secret itself; it does not go with -o json")
			}
			return a.withPoint(ctx, args[0], func(r *rescue.Rescue, p *rescue.Point) error {
				return a.secrets(r, p, to, volume)
			})
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "`DIR` to make files in, - for standard output")
	cmd.Flags().StringVar(&volume, "volume", "", "only the secrets of this volume, `DISK/VOLUME`")
	return cmd
}

func (a *app) secrets(r *rescue.Rescue, p *rescue.Point, to, volume string) error {
	all, problems := r.Secrets(p)
	defer func() {
		for _, s := range all {
			s.Bytes.Wipe()
		}
	}()
	for _, e := range problems {
		a.warnf("warning: %s", e)
		a.note(api.ExitDamaged)
	}
	doc := secretsDoc{Point: p.ID, Machine: p.MachineName, Secrets: []secretDoc{}, Locked: []string{}}
	var chosen []rescue.Secret
	known := false
	for _, v := range p.Volumes {
		if volume != "" && v.Name() != volume {
			continue
		}
		known = true
		n := 0
		for _, s := range all {
			if s.Disk == v.Disk && s.Volume == v.ID {
				n++
				chosen = append(chosen, s)
				file := fmt.Sprintf("%s-%s", fileWord(v.Disk), fileWord(v.ID))
				if n > 1 {
					file += fmt.Sprintf(".%d", n)
				}
				file += "." + fileWord(string(s.Key.Kind))
				if to != "-" {
					file = filepath.Join(to, file)
				}
				doc.Secrets = append(doc.Secrets, secretDoc{
					Disk: v.Disk, Volume: v.ID, Secret: s.Key.Secret.String(), Kind: string(s.Key.Kind), File: file,
					Use: useText(v, s.Key.Kind, file),
				})
			}
		}
		if n == 0 && v.Access == rescue.Locked {
			doc.Locked = append(doc.Locked, v.Name())
		}
	}
	if volume != "" && !known {
		return fmt.Errorf("volume %s: %w", volume, rescue.ErrNoVolume)
	}
	if len(chosen) == 0 {
		if len(doc.Locked) == 0 {
			return errors.New("no volume of this recovery point needs a secret")
		}
		return &statusError{
			fmt.Errorf("%s: %w", strings.Join(doc.Locked, ", "), rescue.ErrNoSecret), api.ExitNotProven,
			"'lockstep-recover list' shows recovery points that are ready",
		}
	}
	if to == "-" {
		if len(chosen) > 1 {
			return usagef("there are %d secrets, and standard output takes one; name a volume with --volume, or a folder with --to", len(chosen))
		}
		a.printed = true
		_, err := a.env.Stdout.Write(chosen[0].Bytes.Expose())
		return err
	}
	if err := writeSecrets(to, chosen, doc.Secrets); err != nil {
		return err
	}
	for _, name := range doc.Locked {
		a.warnf("warning: volume %s: there is no secret for it in a key package that this identity opens", name)
		a.note(api.ExitNotProven)
	}
	a.emit(doc, func(w io.Writer) { printSecrets(w, p, doc) })
	return nil
}

// writeSecrets makes all files or none.
func writeSecrets(dir string, secrets []rescue.Secret, docs []secretDoc) (err error) {
	switch err := os.Mkdir(dir, 0o700); {
	case errors.Is(err, fs.ErrExist):
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			return &statusError{fmt.Errorf("write secrets: %s is not a folder", dir), api.ExitTarget, "name a new folder"}
		}
	case err != nil:
		return fmt.Errorf("write secrets: %w", err)
	default:
		defer func(dir string) {
			if err != nil {
				_ = os.Remove(dir)
			}
		}(dir)
	}
	for _, d := range docs {
		if _, err := os.Lstat(d.File); err == nil {
			return fmt.Errorf("write secret %s: %w", d.File, fs.ErrExist)
		}
	}
	for i, d := range docs {
		if err := envelope.WriteNewFileDurable(d.File, secrets[i].Bytes.Expose(), 0o600); err != nil {
			for _, mine := range docs[:i] {
				_ = os.Remove(mine.File)
			}
			return fmt.Errorf("write secret %s: %w", d.File, err)
		}
	}
	return nil
}

func printSecrets(w io.Writer, p *rescue.Point, doc secretsDoc) {
	var b strings.Builder
	for _, s := range doc.Secrets {
		fmt.Fprintf(&b, "%s\n  is the %s of disk %s, volume %s\n  %s\n", s.File, s.Kind, s.Disk, s.Volume, s.Use)
	}
	b.WriteString("\nPARTITION is the restored one, such as /dev/vda2. Of a restored image file:\n")
	b.WriteString("  losetup --find --show --partscan IMAGE    gives /dev/loopN, with partitions /dev/loopNp1, …\n")
	b.WriteString("Afterwards destroy these files: shred -u FILE …\n")
	for _, v := range p.Volumes {
		if v.Detached {
			fmt.Fprintf(&b, "The header of %s is not on its disk: lockstep-recover header %s/%s --to HEADER\n", v.Name(), p.ID[:min(12, len(p.ID))], v.Name())
		}
	}
	_, _ = io.WriteString(w, clean(b.String()))
}

// fileWord makes a part of a file name from a name of the repository.
func fileWord(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, s)
	if s == "" {
		return "_"
	}
	return s[:min(len(s), 64)]
}

// useText is the command that opens the volume.
func useText(v rescue.Volume, kind diskcrypt.Kind, file string) string {
	device, name := "PARTITION", fileWord(v.Disk)+"-"+fileWord(v.ID)
	if v.ID == diskcrypt.WholeDisk {
		device = "DISK"
	}
	file = shellWord(file)
	switch {
	case v.Type == diskcrypt.TypeBitLocker && kind == diskcrypt.KindStartupKey:
		return fmt.Sprintf("cryptsetup open --type bitlk --key-file %s %s %s", file, device, name)
	case v.Type == diskcrypt.TypeBitLocker && kind == diskcrypt.KindVolumeKey:
		return fmt.Sprintf("cryptsetup open --type bitlk --volume-key-file %s %s %s", file, device, name)
	case v.Type == diskcrypt.TypeBitLocker && kind == diskcrypt.KindVolumeMasterKey:
		// cryptsetup takes none.
		return fmt.Sprintf("dislocker-file -V %s -K %s -- %s.img", device, file, name)
	case v.Type == diskcrypt.TypeBitLocker:
		return fmt.Sprintf("cryptsetup open --type bitlk %s %s < %s", device, name, file)
	case v.Type != diskcrypt.TypeLUKS1 && v.Type != diskcrypt.TypeLUKS2:
		return "give it to the program that made the volume (" + v.Type + ")"
	}
	option := "--key-file"
	if kind == diskcrypt.KindVolumeKey {
		option = "--volume-key-file" // cryptsetup before 2.7 calls it --master-key-file
	}
	header := ""
	if v.Detached {
		header = " --header HEADER"
	}
	return fmt.Sprintf("cryptsetup open %s %s%s %s %s", option, file, header, device, name)
}

func shellWord(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=@%:,", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
