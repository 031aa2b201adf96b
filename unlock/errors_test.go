package unlock_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Whatever is wrong with a disk, no text about it has a secret in it.
func TestNoSecretsInErrors(t *testing.T) {
	const right, wrong = "the-right-passphrase", "the-wrong-passphrase"
	sound := make(memory, 4*mib)
	v, err := luksformat.Format(sound, int64(len(sound)), luksformat.Options{KeyslotsSize: 256 * kib})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := v.AddKey(t.Context(), envelope.NewSecret([]byte(right)), luksformat.KDF{Type: "pbkdf2", Iterations: 1000}); err != nil {
		t.Fatal(err)
	}
	key := v.VolumeKey().Expose()
	secrets := []string{right, wrong, string(key), fmt.Sprintf("%x", key[:8]), fmt.Sprintf("%d", key[:8]), fmt.Sprintf("%x", right), fmt.Sprintf("%x", wrong)}

	overwrite := func(at, n int) func(memory) {
		return func(m memory) {
			for i := range n {
				m[at+i] ^= 0xff
			}
		}
	}
	both := func(f func(m memory)) func(memory) {
		return func(m memory) {
			f(m)
			f(m[16*kib:])
			for _, at := range []int{0, 16 * kib} {
				luksformat.Checksum(m[at : at+16*kib])
			}
		}
	}
	swap := func(from, to string) func(memory) {
		return both(func(m memory) {
			area := m[4*kib : 16*kib]
			copy(area, bytes.Replace(bytes.Clone(area), []byte(from), []byte(to), 1))
		})
	}
	texts := 0
	for name, damage := range map[string]func(memory){
		"none":           func(memory) {},
		"first header":   overwrite(0, 512),
		"both headers":   func(m memory) { overwrite(0, 512)(m); overwrite(16*kib, 512)(m) },
		"metadata":       func(m memory) { overwrite(4*kib, 100)(m); overwrite(20*kib, 100)(m) },
		"key area":       overwrite(32*kib, 128*kib),
		"cut short":      func(m memory) { clear(m[2*kib:]) },
		"hash":           swap(`"sha256"`, `"sha999"`),
		"cipher":         swap(`aes-xts-plain64`, `aes-xyz-plain64`),
		"kdf":            swap(`"pbkdf2"`, `"pbkdf9"`),
		"no data behind": swap(`"dynamic"`, `"7777777"`),
	} {
		t.Run(name, func(t *testing.T) {
			for _, keys := range [][]string{{wrong}, {wrong, right}, {right}, {}} {
				m := bytes.Clone(sound)
				damage(m)
				tree, err := unlock.Open(t.Context(), []unlock.Disk{vda(m)}, passphrasesUnnamed(keys...), options)
				said := fmt.Sprintf("%v %+v", err, err)
				if err == nil {
					said += strings.Join(tree.Warnings, "\n")
					for _, l := range tree.Locked {
						for e := l.Why; e != nil; e = errors.Unwrap(e) {
							said += fmt.Sprintf("%v %+v %#v", e, e, e)
						}
						said += fmt.Sprintf("%+v", l)
						texts++
					}
					said += fmt.Sprintf("%+v", tree.Devices)
					if err := tree.Close(); err != nil {
						said += err.Error()
					}
				}
				for _, s := range secrets {
					if strings.Contains(said, s) {
						t.Errorf("a secret is in:\n%s", said)
					}
				}
			}
		})
	}
	if texts < 15 {
		t.Errorf("only %d volumes stayed locked: the damage is none", texts)
	}
}

// passphrasesUnnamed are keys whose names say nothing of them.
func passphrasesUnnamed(list ...string) unlock.Keys {
	return func(context.Context, string, diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			for i, p := range list {
				if !yield(unlock.Key{Name: fmt.Sprintf("key %d", i), Kind: diskcrypt.KindPassphrase, Secret: envelope.NewSecret([]byte(p))}, nil) {
					return
				}
			}
		}
	}
}
