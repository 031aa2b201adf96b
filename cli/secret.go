package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

var secretKinds = []string{"passphrase", "key-file", "recovery-password", "startup-key", "volume-key"}

func (a *app) secretCommand() *cobra.Command {
	return a.group("secret", "Secrets in custody", groupKeys, "lockstep secret list web01",
		a.secretAdd(), a.secretList(), a.secretShow(), a.secretVersions(),
		a.secretChange("disable", "Disable a secret or one version of it",
			"A disabled version is kept and given to nobody, until it is enabled again;\nrecovery points that have nothing else are at risk.",
			"web01@1 --reason 'somebody may have seen it'",
			(*api.Client).DisableSecret),
		a.secretChange("enable", "Enable what was disabled", "", "web01@1 --reason 'still used by db02'", (*api.Client).EnableSecret),
		a.secretChange("destroy", "Destroy a version that no recovery point needs",
			"A version that a recovery point holds is not destroyed: the exit status is 4, and\nthe recovery points are listed. Deleted recovery points leave sealed copies in the\nrepository, which the recovery kit opens; they are named.",
			"web01@2 --reason 'never used'",
			(*api.Client).DestroySecret),
		a.secretRelease())
}

func (a *app) secretAdd() *cobra.Command {
	var kind, file, secret string
	var keep, anew bool
	cmd := a.leaf(command{
		use:   "add NAME[/VOLUME] --kind KIND --file FILE",
		short: "Take a secret into custody, and say what it opens",
		long: `It is tried at once against every distinct header of the machine's recovery
points and the disk as it is now, newest first. What opens nothing is not kept,
unless --keep says so.

FILE - is standard input; on a terminal it is asked for without echo. A
passphrase ends at the first newline; other kinds are taken byte for byte.
VOLUME is DISK/VOLUME, a volume's id, or a unique prefix of it.`,
		example: "lockstep secret add web01 --kind passphrase --file -",
		exits:   []int{api.ExitWrongSecret, api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			machine, volume, hasVolume := strings.Cut(args[0], "/")
			switch {
			case machine == "" || (hasVolume && volume == ""):
				return usageError(cmd, "secret add: %q is not of the form NAME or NAME/VOLUME", args[0])
			case !slices.Contains(secretKinds, kind):
				return usageError(cmd, "secret add: --kind is one of %s", strings.Join(secretKinds, ", "))
			case file == "":
				return usageError(cmd, "secret add: --file FILE is missing; - is standard input")
			case secret != "" && anew:
				return usageError(cmd, "secret add: give either --secret or --new")
			}
			data, err := a.readSecretFile(ctx, file, kind, machine)
			if err != nil {
				return operationError("secret add", err)
			}
			defer clear(data)
			return a.withClient(ctx, func(c *api.Client) error {
				r, err := c.AddSecret(ctx, api.SecretAdd{
					Machine: machine, Volume: volume, Kind: kind, Data: data,
					Keep: keep, Secret: secret, New: anew,
				})
				if err != nil {
					return withReturnHint(operationError("secret add", err), kind, data)
				}
				a.emit(r, func(w io.Writer) { a.printAdded(w, r, kind) })
				for _, m := range r.Messages {
					a.sayf("%s", screen.Clean(m))
				}
				if len(r.Opens) == 0 && !keep {
					a.warnf("lockstep: secret add: no protector opened with the given secret")
					a.warnf("hint: %s", generalHints[api.ExitWrongSecret])
					a.note(api.ExitWrongSecret)
				}
				return nil
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "`KIND`: "+strings.Join(secretKinds, ", "))
	f.StringVar(&file, "file", "", "`FILE` that holds the secret, - for standard input")
	f.BoolVar(&keep, "keep", false, "keep it although it opens nothing (pre-active)")
	f.StringVar(&secret, "secret", "", "add a version to this secret, by its `ID`")
	f.BoolVar(&anew, "new", false, "make a secret of its own, not a version of the machine's")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(secretKinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// withReturnHint says of a passphrase that opens nothing that it ends with a
// carriage return, which nobody sees who looks at the file.
func withReturnHint(err error, kind string, data []byte) error {
	var refused *api.Error
	if kind != "passphrase" || !bytes.HasSuffix(data, []byte("\r")) || !errors.As(err, &refused) || refused.Exit != api.ExitWrongSecret {
		return err
	}
	told := *refused
	told.Hint = "the line ends with a carriage return (a file from Windows?), which counts as a part of the passphrase: take it away"
	return &told
}

func (a *app) printAdded(w io.Writer, r api.SecretAddResult, kind string) {
	if !a.quiet {
		how := "is in custody"
		if r.Existing {
			how = "was in custody already"
		}
		_, _ = fmt.Fprintf(w, "secret %s@%d (%s) %s, %s\n", screen.CleanLine(r.Secret), r.Version, kind, how, screen.CleanLine(r.State))
	}
	if len(r.Opens) > 0 {
		ids := make([]string, 0, len(r.Opens))
		for _, o := range r.Opens {
			ids = append(ids, o.Point)
		}
		short := screen.Shorten(ids)
		_, _ = fmt.Fprintf(w, "\nit opens:\n\n")
		t := screen.NewTable("  ", "RECOVERY POINT", "VOLUME", "PROTECTORS")
		for _, o := range r.Opens {
			point := short[o.Point]
			if o.Point == "" {
				point = "the disk now"
			}
			t.Add(screen.Text(point), screen.Text(o.Disk+"/"+o.Volume), screen.Text(strings.Join(o.Protectors, ", ")))
		}
		t.Print(w, a.style)
	} else {
		_, _ = fmt.Fprintln(w, "it opens nothing that is known here")
	}
	if len(r.Proven) > 0 {
		short := screen.Shorten(r.Proven)
		names := make([]string, len(r.Proven))
		for i, p := range r.Proven {
			names[i] = screen.CleanLine(short[p])
		}
		_, _ = fmt.Fprintf(w, "\n%s now: %s\n", a.style.Paint(screen.Green, "proven"), strings.Join(names, ", "))
	}
}

// readSecretFile reads a secret. The caller clears it.
func (a *app) readSecretFile(ctx context.Context, file, kind, machine string) ([]byte, error) {
	line := kind == "passphrase"
	var data []byte
	var err error
	switch {
	case file == "-" && a.env.IsTerminal(a.env.Stdin) && (line || kind == "recovery-password"):
		_, _ = fmt.Fprintf(a.env.Stderr, "%s of %s: ", strings.ReplaceAll(kind, "-", " "), screen.CleanLine(machine))
		data, err = a.env.ReadPassword(ctx)
		a.warnf("")
	case file == "-":
		data, err = files.Interruptible(ctx, func() ([]byte, error) { return files.ReadSecret(a.env.Stdin, line) })
	default:
		var f *os.File
		if f, err = os.Open(file); err != nil {
			return nil, err
		}
		data, err = files.Interruptible(ctx, func() ([]byte, error) { return files.ReadSecret(f, line) })
		_ = f.Close()
	}
	if err == nil && len(data) == 0 {
		err = WithHint(errors.New("read the secret: there is nothing in it"), "a "+strings.ReplaceAll(kind, "-", " ")+" has at least one byte")
	}
	if err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

func (a *app) secretList() *cobra.Command {
	return a.leaf(command{
		use: "list [NAME]", short: "List secrets, without their bytes",
		example: "lockstep secret list",
		exits:   []int{api.ExitRefused},
		args:    cobra.MaximumNArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				secrets, err := c.Secrets(ctx, first(args))
				if err != nil {
					return operationError("secret list", err)
				}
				emitList(a, secrets, func(w io.Writer) {
					if len(secrets) == 0 {
						a.sayf("no secret is in custody")
						return
					}
					t := screen.NewTable("", "SECRET", "MACHINE", "VOLUME", "KIND", "VERSION", "STATE", "CREATED", "RECOVERY POINTS")
					for _, s := range secrets {
						id, machine, volume, kind := s.ID, s.Machine, s.Volume, s.Kind
						for _, v := range s.Versions {
							t.Add(screen.Text(id), screen.Text(machine), screen.Text(volume), screen.Text(kind), screen.Number(fmt.Sprint(v.Version)),
								screen.Painted(v.State, secretColour(v.State)), screen.Text(screen.Stamp(v.Created)), screen.Number(fmt.Sprint(len(v.Holds))))
							id, machine, volume, kind = "", "", "", ""
						}
						if len(s.Versions) == 0 {
							t.Add(screen.Text(id), screen.Text(machine), screen.Text(volume), screen.Text(kind))
						}
					}
					t.Print(w, a.style)
				})
				return nil
			})
		},
	})
}

func secretColour(state string) string {
	switch state {
	case "active":
		return screen.Green
	case "compromised":
		return screen.Alarm
	case "destroyed":
		return screen.Dim
	default:
		return screen.Plain
	}
}

func (a *app) secretShow() *cobra.Command {
	return a.leaf(command{
		use: "show SECRET", short: "Show a secret, its versions and the recovery points that need them",
		long:    "SECRET is an id, or a machine's name where it has one secret. The secret's bytes\nare never shown; 'secret release' hands them out.",
		example: "lockstep secret show web01",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				s, err := c.Secret(ctx, args[0])
				if err != nil {
					return operationError("secret show", err)
				}
				a.emit(s, func(w io.Writer) { a.printSecret(w, s) })
				return nil
			})
		},
	})
}

func (a *app) printSecret(w io.Writer, s api.Secret) {
	_, _ = fmt.Fprintln(w, a.style.Paint(screen.Bold, screen.CleanLine(s.ID)))
	var f screen.Facts
	f.Add("kind", s.Kind)
	f.Add("machine", s.Machine)
	f.Add("volume", s.Volume)
	f.Print(w, "  ", a.style)
	for _, v := range s.Versions {
		_, _ = fmt.Fprintf(w, "\n  version %d  %s\n", v.Version, a.style.Paint(secretColour(v.State), screen.CleanLine(v.State)))
		var f screen.Facts
		f.Add("created", screen.Stamp(v.Created))
		f.Add("expires", screen.StampOr(v.Expires, ""))
		for _, h := range v.History {
			line := screen.Stamp(h.At) + "  " + h.State
			if h.Reason != "" {
				line += ": " + h.Reason
			}
			f.Add("since", line)
		}
		f.Print(w, "    ", a.style)
		if len(v.Holds) == 0 {
			_, _ = fmt.Fprintln(w, "    no recovery point needs it")
			continue
		}
		t := screen.NewTable("    ", "NEEDED BY", "MACHINE", "SINCE", "REPOSITORY")
		for _, h := range v.Holds {
			t.Add(screen.Text(h.Point), screen.Text(h.Machine), screen.Text(screen.Stamp(h.Since)), screen.Text(h.Repository))
		}
		t.Print(w, a.style)
	}
}

func (a *app) secretVersions() *cobra.Command {
	return a.leaf(command{
		use: "versions SECRET", short: "List the versions of a secret",
		example: "lockstep secret versions web01",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				s, err := c.Secret(ctx, args[0])
				if err != nil {
					return operationError("secret versions", err)
				}
				emitList(a, s.Versions, func(w io.Writer) {
					t := screen.NewTable("", "VERSION", "STATE", "CREATED", "EXPIRES", "RECOVERY POINTS")
					for _, v := range s.Versions {
						ref := v.Ref
						if ref == "" {
							ref = fmt.Sprintf("%s@%d", s.ID, v.Version)
						}
						t.Add(screen.Text(ref), screen.Painted(v.State, secretColour(v.State)), screen.Text(screen.Stamp(v.Created)),
							screen.Text(screen.StampOr(v.Expires, "–")), screen.Number(fmt.Sprint(len(v.Holds))))
					}
					t.Print(w, a.style)
				})
				return nil
			})
		},
	})
}

// secretChange is disable, enable and destroy.
func (a *app) secretChange(verb, short, long, example string, do func(*api.Client, context.Context, string, string) (api.Secret, error)) *cobra.Command {
	var reason string
	cmd := a.leaf(command{
		use: verb + " SECRET[@VERSION] [--reason TEXT]", short: short, long: long,
		example: "lockstep secret " + verb + " " + example,
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				s, err := do(c, ctx, args[0], reason)
				if err != nil {
					return operationError("secret "+verb, err)
				}
				a.emit(s, func(w io.Writer) {
					if a.quiet {
						return
					}
					for _, v := range s.Versions {
						_, _ = fmt.Fprintf(w, "secret %s@%d is %s\n", screen.CleanLine(s.ID), v.Version, screen.CleanLine(v.State))
					}
				})
				if verb == "destroy" {
					a.warnCopies(s.SealedCopies)
				}
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "no reason given", "why, `TEXT`, for the audit log")
	return cmd
}

// warnCopies says that destroyed is not gone: deleted recovery points leave
// their key packages in the repository.
func (a *app) warnCopies(copies []api.SealedCopy) {
	if len(copies) == 0 {
		return
	}
	a.warnf("warning: sealed copies remain in the key packages of deleted recovery points until space is reclaimed; the recovery kit opens them:")
	for _, c := range copies {
		a.warnf("  - %s, recovery point %s of %s: %s", screen.CleanLine(c.Ref), screen.CleanLine(c.Point), screen.CleanLine(c.Machine), screen.CleanLine(c.Object))
	}
}

func (a *app) secretRelease() *cobra.Command {
	var reason, to string
	cmd := a.leaf(command{
		use:   "release SECRET[@VERSION] --reason TEXT [--to FILE]",
		short: "Hand a secret out",
		long: `The secret goes into a new file with mode 0600, never over another one, or to
standard output, byte for byte: if that is no terminal, or --to - says so. The
release and its reason are in the audit log for ever.`,
		example: "lockstep secret release web01@1 --reason 'restore of March' --to web01.key",
		exits:   []int{api.ExitRefused, api.ExitTarget},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usageError(cmd, "secret release: --reason TEXT is missing; it goes into the audit log")
			}
			if to == "" && a.env.IsTerminal(a.env.Stdout) {
				return WithHint(usageError(cmd, "secret release: standard output is a terminal, which would show the secret"),
					"--to FILE makes a file of it; --to - shows it all the same")
			}
			// Found out before the release, which is audited and cannot be undone.
			if to != "" && to != "-" {
				if _, err := os.Lstat(to); err == nil {
					return fmt.Errorf("secret release: %w", &os.PathError{Op: "create", Path: to, Err: os.ErrExist})
				}
			}
			return a.withClient(ctx, func(c *api.Client) error {
				r, err := c.ReleaseSecret(ctx, args[0], reason)
				if err != nil {
					return operationError("secret release", err)
				}
				defer clear(r.Data)
				return a.handOut(r, to)
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, `TEXT`, for the audit log")
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make, - for standard output")
	return cmd
}

func (a *app) handOut(r api.Released, to string) error {
	if to == "" || to == "-" {
		if a.json() {
			a.printJSON(r)
			return nil
		}
		if _, err := a.env.Stdout.Write(r.Data); err != nil {
			return fmt.Errorf("secret release: %w", err)
		}
		return nil
	}
	err := files.CreateNew(to, func(w io.Writer) error {
		_, err := w.Write(r.Data)
		return err
	})
	if err != nil {
		return fmt.Errorf("secret release: %w", err)
	}
	a.done(map[string]any{"ref": r.Ref, "kind": r.Kind, "to": to, "size_bytes": len(r.Data)},
		"secret %s (%s) is in %s, %s", screen.CleanLine(r.Ref), screen.CleanLine(r.Kind), screen.CleanLine(to), screen.Size(int64(len(r.Data))))
	return nil
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
