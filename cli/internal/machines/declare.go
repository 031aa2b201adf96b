package machines

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

// declaring is what the help texts say of declarations.
const declaring = `Nothing on a disk shows VeraCrypt, TrueCrypt or plain dm-crypt: such a volume is
opaque until it is declared. DISK alone is the whole disk; VOLUME is p1, p2, ….
  veracrypt[,hash=HASH][,cipher=CIPHER][,system=yes]
      hash and cipher spare the trying of all; system: a disk with its boot loader
  dm-crypt,cipher=CIPHER,size=BITS,hash=HASH[,offset=SECTORS][,skip=SECTORS]
          [,sector-size=BYTES][,iv-large-sectors=yes]
      as crypttab and cryptsetup name them; hash=plain takes the secret as the key
Recovery points keep the declaration. Those made before it are proven by the one
that the machine has now.`

const declareUsage = "what a volume is that nothing shows, `DISK[/VOLUME]=TYPE[,NAME=VALUE]…`; once for each volume"

// declarations reads --declare flags.
func declarations(cmd *cobra.Command, flags []string) (map[string]string, error) {
	var out map[string]string
	for _, s := range flags {
		place, text, ok := strings.Cut(s, "=")
		if !ok || place == "" || text == "" {
			return nil, shell.UsageError(cmd, "machine %s: %q is not of the form DISK[/VOLUME]=TYPE[,NAME=VALUE]…", cmd.Name(), s)
		}
		if _, twice := out[place]; twice {
			return nil, shell.UsageError(cmd, "machine %s: %s is declared twice", cmd.Name(), place)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[place] = text
	}
	return out, nil
}

// declareNew puts the declarations into the disks of a machine that is new.
func declareNew(cmd *cobra.Command, disks []api.DiskDef, declared map[string]string) error {
	for place, text := range declared {
		id, volume, ok := strings.Cut(place, "/")
		if !ok {
			volume = "disk"
		}
		i := slices.IndexFunc(disks, func(d api.DiskDef) bool { return d.ID == id })
		if i < 0 {
			return shell.UsageError(cmd, "machine %s: --declare %s: there is no --disk %s", cmd.Name(), place, id)
		}
		if disks[i].Declared == nil {
			disks[i].Declared = map[string]string{}
		}
		if _, twice := disks[i].Declared[volume]; twice {
			return shell.UsageError(cmd, "machine %s: %s/%s is declared twice", cmd.Name(), id, volume)
		}
		disks[i].Declared[volume] = text
	}
	return nil
}
