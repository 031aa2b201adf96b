package kit

import (
	"fmt"
	"strings"
	"time"
)

// guideText is what a person reads who holds the kit in the hand, years later
// and at night. Every line is a comment to age and to Parse.
func guideText(k Kit) string {
	where := "REPOSITORY"
	if len(k.Locations) > 0 && !strings.ContainsAny(k.Locations[0], " '\"\\$`") {
		where = k.Locations[0]
	}
	with := "--identity THIS-FILE"
	identity := `It holds the recovery identity: the private key that opens the backups below
and the secrets (passphrases, keys) that open the disks in them. Whoever has
this file and a copy of the repository has everything. So:

  - print it, or copy it to a medium that goes into a safe;
  - keep it apart from the repository and from the machine that makes backups;
  - try it once a year, before it is needed:
      lockstep-recover verify --repository REPOSITORY --identity THIS-FILE
  - then remove every other copy.`
	if k.Identity.Len() == 0 {
		with = "--identity THIS-FILE --identity YOUR-IDENTITY-FILE"
		identity = `It holds no private key: the recovery identity is your own, which belongs to
the recipient below, and you need it, too. Give both:

  lockstep-recover list --identity THIS-FILE --identity YOUR-IDENTITY-FILE …

This file says whom to trust. Keep a copy apart from the repository.`
	}
	text := fmt.Sprintf(`LOCKSTEP RECOVERY KIT                                    %s

What this is
%s

How to restore, with nothing left but the repository and this file
1. Get the program lockstep-recover and a copy of the repository. It may be
   read-only: nothing is ever written to it. It was here:
%s
2. See what there is:
     lockstep-recover list --repository %s %s
3. Make sure that the recovery point opens (POINT is an id of that list, or
   NAME@latest, or NAME@TIME):
     lockstep-recover open-check POINT --repository %[4]s %[5]s
4. Write the disks back, still encrypted, as they were:
     lockstep-recover restore POINT --disk vda=FILE-OR-DEVICE --repository %[4]s %[5]s
5. Take out the secrets that open them; the command says which is for what:
     lockstep-recover secrets POINT --to NEW-FOLDER --repository %[4]s %[5]s
6. Boot the machine with the restored disks, or open one with cryptsetup as the
   last command told, then destroy the folder of secrets.

The lines from here on are for the program. Whoever types them from paper may
leave everything above out.`,
		k.Created.UTC().Format(time.DateOnly), identity, places(k.Locations), where, with)
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimRight("# "+line, " \n") + "\n")
	}
	b.WriteString("#\n")
	return b.String()
}

func places(locations []string) string {
	if len(locations) == 0 {
		return "     (no place was recorded)"
	}
	return "     " + strings.Join(locations, "\n     ")
}
