// Package demo tells the whole story of the program on a disk that it makes itself.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/demodisk"
	recovery "github.com/lockstep-backup/lockstep/cmd/lockstep-recover/command"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Program is what the story is about.
type Program struct {
	Version string
	// Env is the program's wiring: Connect and Init. Everything else is the story's.
	Env cli.Env
	// URL of a folder as commands print it.
	URL func(dir string) string
}

// Run tells the story. Every command in it is the real one, run in this
// process, and its output the real output; what ends otherwise than the story
// says makes the demonstration fail.
func Run(ctx context.Context, o cli.DemoOptions, p Program) (err error) {
	d := &demo{Program: p, story: o.Story, dir: o.Dir}
	if d.story == nil {
		d.story = io.Discard
	}
	if f, ok := d.story.(*os.File); ok {
		d.colour = term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	if d.dir == "" {
		if d.dir, err = os.MkdirTemp("", "lockstep-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(d.dir)) }()
	} else if err := emptyDir(d.dir); err != nil {
		return err
	}
	for _, chapter := range []func(context.Context) error{
		d.protect, d.dailyWork, d.rotate, d.restoreOldest, d.keep, d.disaster, d.end,
	} {
		if err := chapter(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
	if o.Dir != "" {
		d.say("Everything stays in %s. To go on there:\n  cd %s; export LOCKSTEP_DATA=$PWD/data", o.Dir, o.Dir)
	}
	return nil
}

// emptyDir makes a folder, or takes one in which nothing lies.
func emptyDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return &api.Error{Title: "exists", Detail: fmt.Sprintf("demo: %s is not empty", dir), Exit: api.ExitTarget, Hint: "name a new folder"}
	}
	return nil
}

// demo is one run of the story.
type demo struct {
	Program
	story  io.Writer
	dir    string
	colour bool
	part   int

	disk          *demodisk.Disk
	first, second envelope.Secret
	before        demodisk.Opened // the disk as the first backup saw it
	oldest        string          // id of the first recovery point
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

// chapter begins a part of the story.
func (d *demo) chapter(title string) {
	d.part++
	_, _ = fmt.Fprintf(d.story, "\n%s\n", d.paint("1", fmt.Sprintf("%d. %s", d.part, title)))
}

func (d *demo) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	_, _ = fmt.Fprintf(d.story, "%s\n", d.paint("2", d.relative(text)))
}

func (d *demo) paint(colour, text string) string {
	if !d.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// relative shows paths as they are seen from the folder of the demonstration.
func (d *demo) relative(text string) string {
	here := "." + string(filepath.Separator)
	text = strings.ReplaceAll(text, d.URL(d.dir)+"/", here)
	return strings.ReplaceAll(text, d.dir+string(filepath.Separator), here)
}

// screenful takes a command's output; standard error is the same one under
// another name, which is never a terminal: progress bars would spoil the story.
type screenful struct{ bytes.Buffer }

type stderr struct{ io.Writer }

// lockstep runs the command in this process, shows it and its output, and
// fails where it does not end as the story says.
func (d *demo) lockstep(ctx context.Context, want int, args ...string) (string, error) {
	var out screenful
	status := cli.Main(ctx, d.env(&out, args))
	return out.String(), d.show("lockstep", args, out.String(), status, want)
}

func (d *demo) env(out *screenful, args []string) cli.Env {
	return cli.Env{
		Args: args, Stdout: out, Stderr: stderr{out}, Version: d.Version,
		Connect: d.Env.Connect, Init: d.Env.Init,
		Getenv: func(name string) string {
			switch name {
			case "LOCKSTEP_DATA":
				return d.path("data")
			case "TERM", "WT_SESSION":
				return os.Getenv(name)
			}
			return "" // the user's own installation is not ours to touch
		},
		IsTerminal: func(stream any) bool { return d.colour && stream == any(out) },
	}
}

// recover runs lockstep-recover in this process.
func (d *demo) recover(ctx context.Context, want int, args ...string) error {
	args = append(args, "--repository", d.path("repository"), "--identity", d.path("kit.txt"))
	var out screenful
	status := recovery.Main(ctx, recovery.Env{Args: args, Stdout: &out, Stderr: &out, Version: d.Version})
	return d.show("lockstep-recover", args, out.String(), status, want)
}

// unrecoverable is in red where there are colours.
const unrecoverable = "UNRECOVERABLE"

// show prints a command with its output, and says whether it ended as it should.
func (d *demo) show(program string, args []string, output string, status, want int) error {
	words := make([]string, 0, len(args)+1)
	for _, a := range append([]string{program}, args...) {
		if strings.ContainsAny(a, " '\"") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	_, _ = fmt.Fprintf(d.story, "\n%s\n", d.paint("36", "$ "+d.relative(strings.Join(words, " "))))
	output = strings.Replace(d.relative(output), unrecoverable, d.paint("1;97;41", unrecoverable), 1)
	for line := range strings.Lines(output) {
		_, _ = fmt.Fprintf(d.story, "%s\n", strings.TrimRight(line, "\n"))
	}
	if status != 0 {
		_, _ = fmt.Fprintf(d.story, "%s\n", d.paint("1;33", fmt.Sprintf("(exit status %d)", status)))
	}
	if status != want {
		return fmt.Errorf("%s %s: exit status %d, the story says %d", program, args[0], status, want)
	}
	return nil
}

// protect: a machine, its secret, its first recovery point.
func (d *demo) protect(ctx context.Context) (err error) {
	_, _ = fmt.Fprintf(d.story, "Lockstep: backup of encrypted disks, in lockstep with the keys that open them.\n")
	d.say("All of this happens in %s; . is that folder.", d.dir)
	d.chapter("A machine with an encrypted disk")
	d.first = envelope.NewSecret([]byte("winter: correct horse battery staple"))
	d.second = envelope.NewSecret([]byte("spring: incorrect donkey cell paperclip"))
	for name, s := range map[string]envelope.Secret{"winter.passphrase": d.first, "spring.passphrase": d.second} {
		if err := envelope.WriteNewFileDurable(d.path(name), append(bytes.Clone(s.Expose()), '\n'), 0o600); err != nil {
			return err
		}
	}
	image := d.path("web01.img")
	if d.disk, err = demodisk.Make(ctx, image, d.first); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	d.say("%s is made: 64 MiB; a GPT with a plain boot partition and one encrypted with\nLUKS2 (aes-xts-plain64, argon2id) that holds a file system with a ledger and orders.", image)
	if d.before, err = d.disk.Look(ctx, image, d.first); err != nil {
		return err
	}
	d.say("LEDGER.TXT says: %s", d.before.Ledger)

	d.chapter("Protect it: ciphertext into the repository, the secret into custody")
	if _, err := d.lockstep(ctx, 0, "init", "--repository", d.path("repository"), "--kit", d.path("kit.txt")); err != nil {
		return err
	}
	if _, err := d.lockstep(ctx, 0, "machine", "add", "web01", "--disk", "vda="+image); err != nil {
		return err
	}
	if _, err := d.lockstep(ctx, 0, "secret", "add", "web01", "--kind", "passphrase", "--file", d.path("winter.passphrase")); err != nil {
		return err
	}
	if _, err := d.lockstep(ctx, 0, "backup", "web01"); err != nil {
		return err
	}
	d.say("The recovery point was opened with that secret, as it is stored: that is the proof.")
	points, err := d.points(ctx)
	if err != nil {
		return err
	}
	if len(points) != 1 {
		return fmt.Errorf("there are %d recovery points, the story says one", len(points))
	}
	d.oldest = points[0].ID
	return nil
}

// points asks without showing it.
func (d *demo) points(ctx context.Context) (points []api.Point, err error) {
	var out, errs screenful
	env := d.env(&out, []string{"point", "list", "web01", "-o", "json"})
	env.Stderr = &errs
	if status := cli.Main(ctx, env); status != 0 {
		return nil, fmt.Errorf("point list: exit status %d: %s", status, errs.String())
	}
	err = json.Unmarshal(out.Bytes(), &points)
	return points, err
}

// dailyWork: some files change.
func (d *demo) dailyWork(ctx context.Context) error {
	d.chapter("The guest works: a ledger and some orders change, 132 KiB in all")
	if err := d.disk.Work(ctx, d.first); err != nil {
		return fmt.Errorf("change files: %w", err)
	}
	_, err := d.lockstep(ctx, 0, "backup", "web01")
	return err
}

// rotate: the passphrase is changed, and custody does not know.
func (d *demo) rotate(ctx context.Context) error {
	d.chapter("Somebody changes the passphrase in the guest, and tells nobody")
	d.say("(in the guest) # cryptsetup luksChangeKey /dev/vda2")
	if err := d.disk.ChangePassphrase(ctx, d.first, d.second); err != nil {
		return fmt.Errorf("change passphrase: %w", err)
	}
	if _, err := d.lockstep(ctx, api.ExitNotProven, "backup", "web01"); err != nil {
		return err
	}
	d.chapter("The new passphrase goes into custody, as a second version")
	if _, err := d.lockstep(ctx, 0, "secret", "add", "web01", "--kind", "passphrase", "--file", d.path("spring.passphrase")); err != nil {
		return err
	}
	_, err := d.lockstep(ctx, 0, "point", "list", "web01")
	return err
}

// compare opens a restored disk with a passphrase and holds it against the
// disk as it was.
func (d *demo) compare(ctx context.Context, image string, passphrase envelope.Secret) error {
	o, err := d.disk.Look(ctx, image, passphrase)
	if err != nil {
		return fmt.Errorf("open %s: %w", d.relative(image), err)
	}
	if o != d.before {
		return fmt.Errorf("%s is not the disk that was backed up", d.relative(image))
	}
	d.say("sha256 of the disk       %s…  the same as before the first backup", o.Image[:16])
	d.say("sha256 of its plaintext  %s…  the same", o.Plain[:16])
	d.say("LEDGER.TXT says: %s", o.Ledger)
	return nil
}

// restoreOldest: the disk of the first backup opens with the secret of then.
func (d *demo) restoreOldest(ctx context.Context) error {
	d.chapter("Restore the oldest recovery point, and open it with the secret of that time")
	image := d.path("restored.img")
	if _, err := d.lockstep(ctx, 0, "restore", d.oldest[:12], "--disk", "vda="+image); err != nil {
		return err
	}
	if _, err := d.disk.Look(ctx, image, d.second); err == nil {
		return errors.New("the restored disk opens with the new passphrase")
	}
	d.say("It does not open with the new passphrase. With the old one, which custody keeps:")
	if _, err := d.lockstep(ctx, 0, "secret", "release", "web01@1", "--reason", "restore of the oldest recovery point", "--to", d.path("released.passphrase")); err != nil {
		return err
	}
	released, err := envelope.ReadSecretFile(d.path("released.passphrase"), false, nil)
	if err != nil {
		return err
	}
	defer released.Wipe()
	return d.compare(ctx, image, released)
}

// keep: what is held cannot be destroyed.
func (d *demo) keep(ctx context.Context) error {
	d.chapter("Tidy up old secrets? Not one that a recovery point needs")
	_, err := d.lockstep(ctx, api.ExitRefused, "secret", "destroy", "web01@1", "--reason", "nobody uses it any more")
	return err
}

// disaster: everything is gone but repository and kit.
func (d *demo) disaster(ctx context.Context) error {
	d.chapter("The backup host burns down: only the repository and the recovery kit are left")
	d.say("$ mv ./data ./data.gone; mv ./web01.img ./web01.gone   (catalog, key manager, disk)")
	if err := os.Rename(d.path("data"), d.path("data.gone")); err != nil {
		return err
	}
	if err := os.Rename(d.path("web01.img"), d.path("web01.gone")); err != nil {
		return err
	}
	if err := d.recover(ctx, 0, "list"); err != nil {
		return err
	}
	if err := d.recover(ctx, 0, "open-check", d.oldest[:12]); err != nil {
		return err
	}
	image := d.path("recovered.img")
	if err := d.recover(ctx, 0, "restore", d.oldest[:12], "--disk", "vda="+image); err != nil {
		return err
	}
	if err := d.recover(ctx, 0, "secrets", d.oldest[:12], "--to", d.path("secrets")); err != nil {
		return err
	}
	secret, err := envelope.ReadSecretFile(d.path(filepath.Join("secrets", "vda-p2.passphrase")), false, nil)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	return d.compare(ctx, image, secret)
}

// end: which opens which.
func (d *demo) end(ctx context.Context) error {
	d.chapter("Which secret opens which recovery point")
	if err := os.Rename(d.path("data.gone"), d.path("data")); err != nil {
		return err
	}
	if err := os.Rename(d.path("web01.gone"), d.path("web01.img")); err != nil {
		return err
	}
	_, err := d.lockstep(ctx, 0, "status")
	return err
}
