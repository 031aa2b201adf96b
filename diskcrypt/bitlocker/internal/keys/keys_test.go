package keys_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/keys"
)

func FuzzParseRecovery(f *testing.F) {
	f.Add([]byte("235818-357951-253979-013365-241120-245575-342914-591910"))
	f.Add([]byte("235818 357951 253979 013365 241120 245575 342914 59191"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := keys.ParseRecovery(b)
		var mistyped *keys.MistypedError
		if err != nil && (!errors.As(err, &mistyped) || mistyped.Group < 0 || mistyped.Group > 8) {
			t.Fatal(err)
		}
		if err == nil {
			if again, err := keys.ParseRecovery(keys.FormatRecovery(key)); err != nil || again != key {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestBoxes: any changed bit of a box is noticed.
func TestBoxes(t *testing.T) {
	key, nonce, plain := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 12), []byte("forty-four bytes as a datum with a key has..")
	tag, sealed, err := keys.Seal(key, nonce, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := keys.Open(key, nonce, tag, sealed); err != nil || !bytes.Equal(got, plain) {
		t.Fatal(err)
	}
	for _, part := range [][]byte{key, nonce, tag, sealed} {
		part[len(part)/2] ^= 4
		if _, err := keys.Open(key, nonce, tag, sealed); !errors.Is(err, keys.ErrWrong) {
			t.Errorf("opened: %v", err)
		}
		part[len(part)/2] ^= 4
	}
}
