package shell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// SecretKinds are the kinds of secrets that can be given.
var SecretKinds = []string{"passphrase", "key-file", "recovery-password", "startup-key", "volume-key", "volume-master-key", "veracrypt"}

// ReadSecretFile reads a secret from a file, from standard input (-), or from
// the terminal. whose is named there. The caller clears it.
func (a *Run) ReadSecretFile(ctx context.Context, file, kind, whose string) ([]byte, error) {
	line := kind == "passphrase" || kind == "recovery-password"
	var data []byte
	var err error
	switch {
	case file == "-" && a.Env.IsTerminal(a.Env.Stdin) && line:
		_, _ = fmt.Fprintf(a.Env.Stderr, "%s of %s: ", strings.ReplaceAll(kind, "-", " "), screen.CleanLine(whose))
		data, err = a.Env.ReadPassword(ctx)
		a.Warnf("")
	case file == "-":
		data, err = files.Interruptible(ctx, func() ([]byte, error) { return files.ReadSecret(a.Env.Stdin, line) })
	default:
		var f *os.File
		if f, err = os.Open(file); err != nil {
			return nil, err
		}
		data, err = files.Interruptible(ctx, func() ([]byte, error) { return files.ReadSecret(f, line) })
		_ = f.Close()
	}
	if kind == "recovery-password" { // of a file from Windows
		data = bytes.TrimSuffix(data, []byte("\r"))
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

// Unlock says by what the encrypted volumes of a recovery point are opened.
type Unlock struct {
	// Reason goes into the audit log with each secret that custody hands out; ""
	// = custody is not asked.
	Reason string
	// Secrets are given by the user; they are tried before those in custody.
	Secrets []GivenSecret
}

// GivenSecret is a secret for a volume.
type GivenSecret struct {
	Volume string // DISK/VOLUME, or VOLUME of whatever disk
	Kind   string
	Data   []byte
}

// Wipe clears the secrets.
func (u *Unlock) Wipe() {
	if u == nil {
		return
	}
	for _, s := range u.Secrets {
		clear(s.Data)
	}
}

// UnlockFlags are the flags of a command that opens encrypted volumes.
type UnlockFlags struct {
	Unlock bool
	Reason string
	Files  []string
	Kind   string
}

// Add adds the flags that say by what to open.
func (f *UnlockFlags) Add(cmd *cobra.Command) {
	p := cmd.Flags()
	p.StringVar(&f.Reason, "reason", "", "take the secrets from custody, for this reason, `TEXT`, for the audit log")
	p.StringArrayVar(&f.Files, "secret-file", nil, "secret of a volume, `VOLUME=FILE`, - for standard input; may be given again")
	p.StringVar(&f.Kind, "kind", "passphrase", "`KIND` of --secret-file: "+strings.Join(SecretKinds, ", "))
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(SecretKinds, cobra.ShellCompDirectiveNoFileComp))
}

// Read checks the flags and reads the secrets, which the caller wipes.
func (f *UnlockFlags) Read(ctx context.Context, a *Run, cmd *cobra.Command) (*Unlock, error) {
	op := Operation(cmd)
	u := &Unlock{Reason: strings.TrimSpace(f.Reason)}
	switch {
	case cmd.Flags().Changed("reason") && u.Reason == "":
		return nil, UsageError(cmd, "%s: the reason is empty; it goes into the audit log", op)
	case u.Reason == "" && len(f.Files) == 0:
		return nil, WithHint(UsageError(cmd, "%s: by which secrets?", op),
			"--reason TEXT takes them from custody, and goes into the audit log; --secret-file VOLUME=FILE gives one")
	case !slices.Contains(SecretKinds, f.Kind):
		return nil, UsageError(cmd, "%s: --kind is one of %s", op, strings.Join(SecretKinds, ", "))
	}
	stdin := 0
	for _, s := range f.Files {
		volume, file, ok := strings.Cut(s, "=")
		if !ok || volume == "" || file == "" {
			return nil, WithHint(UsageError(cmd, "%s: %q is not of the form VOLUME=FILE", op, s), "a secret itself is never an argument")
		}
		if file == "-" {
			stdin++
		}
	}
	if stdin > 1 {
		return nil, UsageError(cmd, "%s: standard input holds one secret", op)
	}
	for _, s := range f.Files {
		volume, file, _ := strings.Cut(s, "=")
		data, err := a.ReadSecretFile(ctx, file, f.Kind, volume)
		if err != nil {
			u.Wipe()
			return nil, OperationError(op, err)
		}
		u.Secrets = append(u.Secrets, GivenSecret{Volume: volume, Kind: f.Kind, Data: data})
	}
	return u, nil
}
