package secrets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) secretAdd() *cobra.Command {
	var kind, file, secret string
	var keep, anew bool
	var vera veraCrypt
	var azure ade
	cmd := a.Leaf(shell.Command{
		Use:   "add NAME[/VOLUME] {--kind KIND | --ade} --file FILE",
		Short: "Take a secret into custody, and say what it opens",
		Long: `It is tried at once against every distinct header of the machine's recovery
points and the disk as it is now, newest first. What opens nothing is not kept,
unless --keep says so.

FILE - is standard input; on a terminal it is asked for without echo. A
passphrase and a recovery password end at the first newline; other kinds are
taken byte for byte. A mistyped recovery password is refused, and the group named.
VOLUME is DISK/VOLUME, a volume's id, or a unique prefix of it.

Of --kind veracrypt, FILE holds the password, a line; --pim, --keyfile and --hidden
go with it. A secret that was released is taken as it is.

With --ade, FILE is what "az keyvault secret show" prints of a secret of Azure
Disk Encryption; one that is wrapped needs --kek, the private key in PEM.`,
		Example: "lockstep secret add web01 --kind passphrase --file -",
		Exits:   []int{api.ExitWrongSecret, api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			machine, volume, hasVolume := strings.Cut(args[0], "/")
			if azure.on && kind == "" {
				kind = "passphrase" // or what the secret turns out to be
			}
			switch {
			case machine == "" || (hasVolume && volume == ""):
				return shell.UsageError(cmd, "secret add: %q is not of the form NAME or NAME/VOLUME", args[0])
			case !slices.Contains(secretKinds, kind):
				return shell.UsageError(cmd, "secret add: --kind is one of %s", strings.Join(secretKinds, ", "))
			case kind != "veracrypt" && vera.given():
				return shell.UsageError(cmd, "secret add: --pim, --keyfile and --hidden go with --kind veracrypt")
			case azure.kek != "" && !azure.on:
				return shell.UsageError(cmd, "secret add: --kek goes with --ade")
			case azure.on && cmd.Flags().Changed("kind"):
				return shell.UsageError(cmd, "secret add: --ade says what kind the secret is; leave --kind away")
			case file == "" && len(vera.keyFiles) == 0:
				return shell.UsageError(cmd, "secret add: --file FILE is missing; - is standard input")
			case secret != "" && anew:
				return shell.UsageError(cmd, "secret add: give either --secret or --new")
			}
			given, err := a.read(ctx, cmd, file, kind, machine, vera, azure)
			if err != nil {
				return shell.OperationError("secret add", err)
			}
			defer given.clear()
			return a.WithClient(ctx, func(c *api.Client) error {
				add := api.SecretAdd{Machine: machine, Volume: volume, Keep: keep, Secret: secret, New: anew}
				r, kind, data, err := given.add(ctx, c, add)
				if err != nil {
					return withReturnHint(shell.OperationError("secret add", err), kind, data)
				}
				a.Emit(r, func(w io.Writer) { a.printAdded(w, r, kind) })
				for _, m := range r.Messages {
					a.Sayf("%s", screen.Clean(m))
				}
				if len(r.Opens) == 0 && !keep {
					a.Warnf("lockstep: secret add: no protector opened with the given secret")
					a.Warnf("hint: %s", shell.GeneralHints[api.ExitWrongSecret])
					a.Note(api.ExitWrongSecret)
				}
				return nil
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&kind, "kind", "", "`KIND`: "+strings.Join(secretKinds, ", "))
	f.StringVar(&file, "file", "", "`FILE` that holds the secret, - for standard input")
	f.Uint64Var(&vera.pim, "pim", 0, "the PIM `N` of a VeraCrypt volume; 0 = the default")
	f.StringArrayVar(&vera.keyFiles, "keyfile", nil, "key `FILE` of a VeraCrypt volume; once for each")
	f.BoolVar(&vera.hidden, "hidden", false, "the VeraCrypt password is the hidden volume's, and must open no other")
	f.BoolVar(&azure.on, "ade", false, "FILE is a secret of Azure Disk Encryption, as the key vault shows it")
	f.StringVar(&azure.kek, "kek", "", "`FILE` of the private key that unwraps it, PEM")
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

func (a group) printAdded(w io.Writer, r api.SecretAddResult, kind string) {
	if !a.Quiet {
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
		t.Print(w, a.Style)
	} else {
		_, _ = fmt.Fprintln(w, "it opens nothing that is known here")
	}
	if len(r.Proven) > 0 {
		short := screen.Shorten(r.Proven)
		names := make([]string, len(r.Proven))
		for i, p := range r.Proven {
			names[i] = screen.CleanLine(short[p])
		}
		_, _ = fmt.Fprintf(w, "\n%s now: %s\n", a.Style.Paint(screen.Green, "proven"), strings.Join(names, ", "))
	}
}
