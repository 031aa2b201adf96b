package secrets

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

// veraCrypt are the flags of a VeraCrypt volume's secret.
type veraCrypt struct {
	pim      uint64
	keyFiles []string
	hidden   bool
}

func (v veraCrypt) given() bool { return v.pim != 0 || len(v.keyFiles) > 0 || v.hidden }

// ade are the flags of Azure Disk Encryption.
type ade struct {
	on  bool
	kek string
}

// given is what the user gave: one secret, or the forms that one may have, the
// likeliest first. Which it is only opening tells.
type given []shell.SecretForm

func (g given) clear() {
	for _, f := range g {
		clear(f.Data)
	}
}

// add has the forms tried until one opens something; the last error counts
// where none does.
func (g given) add(ctx context.Context, c *api.Client, req api.SecretAdd) (r api.SecretAddResult, kind string, data []byte, err error) {
	keep := req.Keep
	for i, f := range g {
		req.Kind, req.Data, req.Keep = f.Kind, f.Data, keep && i == len(g)-1
		kind, data = f.Kind, f.Data
		r, err = c.AddSecret(ctx, req)
		var refused *api.Error
		if err == nil || !errors.As(err, &refused) || refused.Exit != api.ExitWrongSecret {
			return r, kind, data, err
		}
	}
	return r, kind, data, err
}

// read takes the secret from its files. The caller clears it.
func (a group) read(ctx context.Context, cmd *cobra.Command, file, kind, machine string, vera veraCrypt, azure ade) (given, error) {
	switch {
	case azure.on:
		return a.readADE(ctx, cmd, file, machine, azure)
	case kind == "veracrypt":
		data, err := a.readVeraCrypt(ctx, file, machine, vera)
		return given{{Kind: kind, Data: data}}, err
	}
	data, err := a.ReadSecretFile(ctx, file, kind, machine)
	return given{{Kind: kind, Data: data}}, err
}

func (a group) readADE(ctx context.Context, cmd *cobra.Command, file, machine string, azure ade) (given, error) {
	if a.Env.DecodeADE == nil {
		return nil, shell.UsageError(cmd, "secret add: this program does not read secrets of Azure Disk Encryption")
	}
	shown, err := a.ReadSecretFile(ctx, file, "key-file", machine)
	if err != nil {
		return nil, err
	}
	defer clear(shown)
	var kek []byte
	if azure.kek != "" {
		if kek, err = a.ReadSecretFile(ctx, azure.kek, "key-file", machine); err != nil {
			return nil, err
		}
		defer clear(kek)
	}
	forms, err := a.Env.DecodeADE(shown, kek)
	return given(forms), err
}

// Limits of docs/spec/veracrypt-secret.md.
const keyFileBytes = 1 << 20

// veraCryptSecret is the JSON of docs/spec/veracrypt-secret.md.
type veraCryptSecret struct {
	Format   int      `json:"format"`
	Password []byte   `json:"password,omitempty"`
	PIM      uint64   `json:"pim,omitempty"`
	KeyFiles [][]byte `json:"keyfiles,omitempty"`
	Hidden   bool     `json:"hidden,omitempty"`
}

// released is how a secret begins that was assembled before.
var released = []byte(`{"format":1,`)

func (a group) readVeraCrypt(ctx context.Context, file, machine string, vera veraCrypt) ([]byte, error) {
	s := veraCryptSecret{Format: 1, PIM: vera.pim, Hidden: vera.hidden}
	defer func() {
		clear(s.Password)
		for _, k := range s.KeyFiles {
			clear(k)
		}
	}()
	var err error
	if file != "" {
		if s.Password, err = a.ReadSecretFile(ctx, file, "passphrase", machine); err != nil {
			return nil, err
		}
		if bytes.HasPrefix(s.Password, released) && !vera.given() {
			return bytes.Clone(s.Password), nil
		}
	}
	for _, name := range vera.keyFiles {
		k, err := readKeyFile(ctx, name)
		if err != nil {
			return nil, err
		}
		s.KeyFiles = append(s.KeyFiles, k)
	}
	return json.Marshal(s)
}

// readKeyFile reads as much of a key file as VeraCrypt does: it may be any file,
// a film as well.
func readKeyFile(ctx context.Context, name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := files.Interruptible(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(f, keyFileBytes)) })
	if err == nil && len(b) == 0 {
		err = errors.New("there is nothing in it")
	}
	if err != nil {
		clear(b)
		return nil, fmt.Errorf("read key file %s: %w", name, err)
	}
	return b, nil
}
