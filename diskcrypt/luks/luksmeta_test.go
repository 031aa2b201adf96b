package luks_test

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
)

// TestLUKSMeta: clevis on LUKS1 keeps what it needs behind the key slots.
func TestLUKSMeta(t *testing.T) {
	// Eight aligned areas of a 256-bit key behind the header.
	const at = 4096 + 8*131072
	for _, c := range []struct {
		name  string
		table []byte
		typ   string
		slots string
	}{
		{"none", nil, "", ""},
		{"something", []byte("LUKSMETA"), "luksmeta", ""},
		{"clevis for slot 1", append(append([]byte("LUKSMETA"), make([]byte, 8+32)...), "\xcb\x6e\x89\x04\x81\xff\x40\xda\xa8\x4a\x07\xab\x9a\xb5\x71\x5e"...), "clevis", "slot-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory(bytes.Clone(sound(t, 1)))
			copy(m[at:], c.table)
			v, err := luks.Format{}.Inspect(context.Background(), m.place())
			if err != nil {
				t.Fatal(err)
			}
			typ, slots := "", ""
			for _, token := range v.Tokens {
				typ, slots = token.Type, strings.Join(token.Slots, " ")
			}
			if typ != c.typ || slots != c.slots || v.Protectors[1].Offline != (slots == "") || !v.Protectors[0].Offline {
				t.Fatalf("%+v %+v", v.Tokens, v.Protectors)
			}
		})
	}
}
