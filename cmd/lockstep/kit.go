package main

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/kit"
)

// writeUnfinishedKit keeps the recovery identity where the kit will be, before
// anything is sealed to it: nothing may be sealed to an identity that a crash
// could still lose. It is an age identity file, and not a kit yet.
func (i *initialiser) writeUnfinishedKit() error {
	const head = "# 'lockstep init' has not ended yet: run it again, and this file becomes the recovery kit.\n"
	// In memory that can be wiped: the identity opens everything.
	text := make([]byte, 0, len(head)+i.identity.Len()+1)
	text = append(append(append(text, head...), i.identity.Expose()...), '\n')
	defer clear(text)
	return envelope.WriteNewFileDurable(i.plan.KitFile, text, 0o600)
}

// readKit reads the identity from the kit of an interrupted init.
func (i *initialiser) readKit() (envelope.Secret, error) {
	text, err := envelope.ReadSecretFile(i.plan.KitFile, false, nil)
	if err != nil {
		return envelope.Secret{}, err
	}
	defer text.Wipe()
	if kit.Is(text) {
		k, err := kit.Parse(text)
		return k.Identity, err
	}
	for line := range bytes.Lines(text.Expose()) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return envelope.CopySecret(line), nil
		}
	}
	return envelope.Secret{}, fmt.Errorf("%s: %w", i.plan.KitFile, envelope.ErrIdentity)
}

// writeKit writes the recovery kit in the place of the unfinished one.
func (i *initialiser) writeKit() error {
	k := kit.Kit{
		Identity: i.identity, Recipients: i.config.Recipients, Repository: i.config.Repository.ID,
		Locations: []string{i.result.Repository}, TrustRoot: i.config.Repository.TrustRoot, Created: i.config.Created,
	}
	for _, path := range []string{i.dir.writerKey(), i.dir.proverKey(), i.dir.custodianKey()} {
		key, err := envelope.ReadSigningKeyFile(path)
		if err != nil {
			return fmt.Errorf("write recovery kit: %w", err)
		}
		k.Keys = append(k.Keys, key.Public())
		key.Wipe()
	}
	// A kit that is there was written by this init before it was interrupted
	// (decide has seen to that); it stays, if it is about this repository.
	if old, err := kit.Read(i.plan.KitFile); err == nil {
		defer old.Identity.Wipe()
		if old.Repository != k.Repository || old.TrustRoot != k.TrustRoot || !slices.Equal(old.Recipients, k.Recipients) {
			return taken(fmt.Sprintf("init: %s is the recovery kit of another repository", i.plan.KitFile), "move it away first")
		}
		return nil
	}
	if i.identity.Len() == 0 {
		return kit.Write(i.plan.KitFile, k)
	}
	text, err := kit.Encode(k)
	if err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	defer text.Wipe()
	// In the place of the unfinished one.
	if err := envelope.WriteFileDurable(i.plan.KitFile, text.Expose(), 0o600); err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	return nil
}
