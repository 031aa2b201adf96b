//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/source"
	sourceimage "github.com/lockstep-backup/lockstep/source/image"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/localdir"
	"github.com/lockstep-backup/lockstep/target"
	targetimage "github.com/lockstep-backup/lockstep/target/image"
	"github.com/lockstep-backup/lockstep/verify"
)

// engine runs one operation in a process of its own, so that its CPU and
// memory can be told: backup REPO IMAGE [CHANGED-RANGES], restore REPO FILE
// [NUMBER-OF-POINT], verify REPO.
func engine(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errors.New("engine: an operation and a repository are needed")
	}
	r, machine, err := openRepository(ctx, args[1])
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case args[0] == "backup" && len(args) == 3:
		return backup(ctx, r, machine, args[2], nil)
	case args[0] == "backup" && len(args) == 4:
		list, err := os.ReadFile(args[3])
		if err != nil {
			return err
		}
		return backup(ctx, r, machine, args[2], list)
	case args[0] == "restore" && len(args) >= 3:
		ps, err := r.Points(ctx, machine)
		if err != nil {
			return err
		}
		n := len(ps) - 1
		if len(args) == 4 {
			if n, err = strconv.Atoi(args[3]); err != nil || n < 0 || n >= len(ps) {
				return fmt.Errorf("recovery point %s of %d: %w", args[3], len(ps), err)
			}
		}
		m, err := r.Manifest(ctx, ps[n])
		if err != nil {
			return err
		}
		_, err = restore.Run(ctx, restore.Request{
			Repository: r, Manifest: m, Targets: []restore.Target{{Disk: "vda", Target: args[2]}},
			Open: func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
				return targetimage.Opener{}.Open(ctx, spec, size, o)
			},
		})
		return err
	case args[0] == "verify":
		res, err := verify.Run(ctx, verify.Request{Repository: r})
		if err == nil && len(res.Damage) > 0 {
			err = fmt.Errorf("%d damaged", len(res.Damage))
		}
		return err
	}
	return fmt.Errorf("engine: %q is not known", args)
}

// backup makes a recovery point; list names the changed ranges, nil = read all.
func backup(ctx context.Context, r *repository.Repository, machine, image string, list []byte) error {
	in := repository.DiskInput{ID: "vda", Unreadable: source.IsUnreadable, Known: list != nil, Why: "bench"}
	for text := range strings.Lines(string(list)) {
		var g disk.Range
		if _, err := fmt.Sscan(text, &g.Offset, &g.Length); err != nil {
			return fmt.Errorf("list of changed ranges: %w", err)
		}
		in.Changed = append(in.Changed, g)
	}
	s, err := sourceimage.Opener{}.Open(ctx, image, source.Options{})
	if err != nil {
		return err
	}
	defer s.Close()
	w, err := r.Begin(ctx, machine, repository.BeginOptions{})
	if err != nil {
		return err
	}
	in.Source = s
	d, err := w.WriteDisk(ctx, in)
	if err != nil {
		return err
	}
	_, err = w.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{d}})
	return err
}

// openRepository opens the repository, or makes a sealed one with keys beside it.
func openRepository(ctx context.Context, dir string) (*repository.Repository, string, error) {
	return openRepositoryOn(ctx, dir, func(s *localdir.Store) store.Store { return s })
}

// openRepositoryOn lets the store be wrapped.
func openRepositoryOn(ctx context.Context, dir string, wrap func(*localdir.Store) store.Store) (*repository.Repository, string, error) {
	keys := dir + ".keys"
	identity, writerFile := filepath.Join(keys, "identity"), filepath.Join(keys, "writer")
	_, err := os.Stat(filepath.Join(dir, "config"))
	fresh := errors.Is(err, os.ErrNotExist)
	if fresh {
		if err := create(ctx, dir, keys, identity, writerFile); err != nil {
			return nil, "", err
		}
	}
	st, err := localdir.Open(dir, localdir.Options{})
	if err != nil {
		return nil, "", err
	}
	id, err := os.ReadFile(identity)
	if err != nil {
		return nil, "", err
	}
	writer, err := envelope.ReadSigningKeyFile(writerFile)
	if err != nil {
		return nil, "", err
	}
	r, err := repository.Open(ctx, wrap(st), repository.OpenOptions{Unlock: repository.Unlocker{Identities: envelope.NewSecret(id)}, Writer: &writer})
	if err != nil {
		return nil, "", err
	}
	ms, err := r.Machines(ctx)
	if err != nil {
		return nil, "", err
	}
	if len(ms) == 0 {
		m, err := r.CreateMachine(ctx, "", "bench")
		return r, m.ID, err
	}
	return r, ms[0].ID, nil
}

func create(ctx context.Context, dir, keys, identity, writerFile string) error {
	if err := os.RemoveAll(keys); err != nil {
		return err
	}
	for _, d := range []string{dir, keys} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	st, err := localdir.Create(dir, localdir.Options{})
	if err != nil {
		return err
	}
	secret, recipient, err := envelope.GenerateIdentity()
	if err != nil {
		return err
	}
	if err := os.WriteFile(identity, secret.Expose(), 0o600); err != nil {
		return err
	}
	var key [3]envelope.SigningKey
	for i, role := range []string{envelope.RoleWriter, envelope.RoleProver, envelope.RoleCustodian} {
		if key[i], err = envelope.GenerateSigningKey(role); err != nil {
			return err
		}
	}
	if err := envelope.WriteSigningKeyFile(writerFile, key[0]); err != nil {
		return err
	}
	_, _, err = repository.Create(ctx, st, repository.CreateOptions{
		Writer: key[0].Public(), Prover: key[1].Public(), Custodian: key[2],
		Holders: []repository.NewHolder{{Name: "host", Recipient: recipient, Role: repository.RoleHost}},
	})
	return err
}
