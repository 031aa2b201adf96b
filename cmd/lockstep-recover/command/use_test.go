package command

import (
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/rescue"
)

// Each secret of a BitLocker volume is for another option, and the volume
// master key for another program.
func TestUseOfBitLockerSecrets(t *testing.T) {
	v := rescue.Volume{Disk: "sda", Volume: diskcrypt.Volume{ID: "p3", Type: diskcrypt.TypeBitLocker}}
	for kind, want := range map[diskcrypt.Kind]string{
		diskcrypt.KindPassphrase:       "cryptsetup open --type bitlk PARTITION sda-p3 < F",
		diskcrypt.KindRecoveryPassword: "cryptsetup open --type bitlk PARTITION sda-p3 < F",
		diskcrypt.KindStartupKey:       "cryptsetup open --type bitlk --key-file F PARTITION sda-p3",
		diskcrypt.KindVolumeKey:        "cryptsetup open --type bitlk --volume-key-file F PARTITION sda-p3",
		diskcrypt.KindVolumeMasterKey:  "dislocker-file -V PARTITION -K F -- sda-p3.img",
	} {
		if got := useText(v, kind, "F"); got != want {
			t.Errorf("%s: %s, want %s", kind, got, want)
		}
	}
}
