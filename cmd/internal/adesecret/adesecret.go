// Package adesecret gives the command line the reader of Azure Disk
// Encryption's secrets. It decides nothing: which of the forms is meant, opening
// tells. Its invariant: what it hands out is the caller's to clear, and nothing
// else keeps it.
package adesecret

import (
	"errors"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt/ade"
)

// Decode is cli.Env's DecodeADE.
func Decode(shown, kek []byte) ([]cli.SecretForm, error) {
	forms, err := ade.Decode(shown, kek)
	switch {
	case errors.Is(err, ade.ErrWrapped):
		return nil, cli.WithHint(err, "give the private key that unwraps it with --kek FILE")
	case errors.Is(err, ade.ErrForm):
		return nil, cli.WithHint(err, "give what `az keyvault secret show` prints of the disk's secret, as JSON")
	case errors.Is(err, ade.ErrUnwrap):
		return nil, cli.WithHint(err, "it takes the key, and the version of it, that wrapped the secret")
	case err != nil:
		return nil, err
	}
	var out []cli.SecretForm
	for _, f := range forms {
		out = append(out, cli.SecretForm{Kind: string(f.Kind), Data: f.Secret.Expose()})
	}
	return out, nil
}
