package main

import (
	"bytes"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

// writeKit writes the recovery kit. It is an age identity file whose comments
// are for people, so that lockstep-recover and age itself read it as it is.
// Unfinished, it holds the identity and nothing else: nothing may be sealed to
// an identity that a crash could still lose.
func (i *initialiser) writeKit(unfinished bool) error {
	var b strings.Builder
	say := func(format string, args ...any) {
		for line := range strings.SplitSeq(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n") {
			b.WriteString(strings.TrimRight("# "+line, " ") + "\n")
		}
	}
	say("LOCKSTEP RECOVERY KIT\n")
	if unfinished {
		say("\n'lockstep init' has not ended yet: run it again.\n")
	} else {
		i.describe(say)
	}
	size := b.Len() + i.identity.Len() + 1
	// In memory that can be wiped: the identity opens everything.
	text := make([]byte, 0, size)
	text = append(text, b.String()...)
	if i.identity.Len() > 0 {
		text = append(text, identityLine(i.identity)...)
		text = append(text, '\n')
	}
	defer clear(text)
	if unfinished {
		return envelope.WriteNewFileDurable(i.plan.KitFile, text, 0o600)
	}
	if i.identity.Len() == 0 && !i.again {
		return envelope.WriteNewFileDurable(i.plan.KitFile, text, 0o600)
	}
	return envelope.WriteFileDurable(i.plan.KitFile, text, 0o600)
}

// identityLine finds the identity in a text with comments.
func identityLine(identity envelope.Secret) []byte {
	for line := range bytes.Lines(identity.Expose()) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return line
		}
	}
	return nil
}

func (i *initialiser) describe(say func(string, ...any)) {
	c := i.config
	say("\nmade: %s", c.Created.Format(time.RFC3339))
	say("repository-id: %s", c.Repository.ID)
	say("repository-url: %s", i.result.Repository)
	say("trust-root: %s", c.Repository.TrustRoot)
	for _, k := range i.publicKeys() {
		say("public-key: %s", k)
	}
	for _, r := range c.Recipients {
		say("recipient: %s", r)
	}
	say("\nKeep this where neither fire nor a thief who takes the backup host finds it: printed,\n" +
		"or on a medium in a safe. Then remove the file from the host.")
	if i.identity.Len() > 0 {
		say("\nThe last line is the recovery identity. With it and a copy of the repository everything\n" +
			"can be restored, disks and the secrets that open them, without the backup host, its\n" +
			"database or its key manager. So whoever has both can read everything.")
	} else {
		say("\nThe recovery identities are not in this kit: they belong to the recipients above. Keep a\n" +
			"copy of one beside it.")
	}
	say("\nHow to restore:\n\n" +
		"1. Get the program lockstep-recover of this or a later version.\n" +
		"2. Bring a copy of the repository within its reach (repository-url above says where it was).\n" +
		"3. List what is there:\n" +
		"     lockstep-recover list --repository REPOSITORY --kit THIS-FILE\n" +
		"4. Write a disk back, and take out the secrets that open it:\n" +
		"     lockstep-recover restore --repository REPOSITORY --kit THIS-FILE POINT --disk vda=/path/to/new.img\n" +
		"     lockstep-recover secrets --repository REPOSITORY --kit THIS-FILE POINT --to FOLDER\n" +
		"   'lockstep-recover --help' says the rest.\n" +
		"5. trust-root pins who may sign in this repository: lockstep-recover refuses another one.")
	say("\nThis file is an age identity file as well (https://age-encryption.org): key packages in the\n" +
		"repository open with any age program.\n")
}

// publicKeys are the lines of the installation's public keys.
func (i *initialiser) publicKeys() []string {
	var out []string
	for _, path := range []string{i.dir.writerKey(), i.dir.proverKey(), i.dir.custodianKey()} {
		k, err := envelope.ReadSigningKeyFile(path)
		if err != nil {
			continue // init has just made it; the trust root vouches for it all the same
		}
		out = append(out, k.Public().String())
		k.Wipe()
	}
	return out
}
