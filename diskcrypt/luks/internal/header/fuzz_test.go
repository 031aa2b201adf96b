package header

import (
	"bytes"
	"encoding/json"
	"testing"
)

const seed = `{"keyslots":{"0":{"type":"luks2","key_size":32,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"131072","encryption":"aes-xts-plain64","key_size":32},"kdf":{"type":"argon2id","time":4,"memory":65536,"cpus":2,"salt":"AAAA"}},"2":{"type":"reencrypt","key_size":1,"mode":"encrypt","direction":"backward","priority":0,"area":{"type":"none","offset":"163840","size":"4096"}}},"tokens":{"0":{"type":"clevis","keyslots":["0"],"jwe":{}}},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512,"flags":["in-reencryption"],"integrity":{"type":"x"}}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},"1":{"type":"pbkdf2","keyslots":["2"],"segments":[],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},"config":{"json_size":"12288","keyslots_size":"16744448","requirements":{"mandatory":["online-reencrypt-v2"]}}}`

func area(text string) []byte { return append([]byte(text), make([]byte, 16)...) }

func TestSeedIsValid(t *testing.T) {
	h, err := parseMetadata(area(seed), 16<<10, 32<<20, 32<<20)
	if err != nil || len(h.Slots) != 2 || len(h.Tokens) != 1 || !h.Reencrypting() {
		t.Fatalf("%+v %v", h, err)
	}
}

// FuzzLUKS2JSON: whatever the JSON says, a Header that is returned holds what
// the package promises of it.
func FuzzLUKS2JSON(f *testing.F) {
	f.Add(area(seed))
	f.Add(area(`{}`))
	f.Add(area(`{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{"json_size":"12288","keyslots_size":"0"}}`))
	f.Add(area(`{"keyslots":{"0":{}},"keyslots":{}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		const hdrSize, size = 16 << 10, 32 << 20
		h, err := parseMetadata(b, hdrSize, size, size)
		if err != nil {
			if h != nil {
				t.Fatal("header and error")
			}
			return
		}
		for _, s := range h.Slots {
			if s.Area.Offset < 2*hdrSize || s.Area.End() > 2*hdrSize+h.Areas || s.Area.End() < s.Area.Offset || h.Digest(s.Digest) == nil {
				t.Fatalf("%+v", s)
			}
			if s.Type == SlotLUKS2 && (s.Box.KeyBytes < 1 || s.Box.KeyBytes > 512 || len(s.Box.KDF.Salt) > maxSalt) {
				t.Fatalf("%+v", s.Box)
			}
			if c := Canonical(s.Raw); !json.Valid(c) || bytes.ContainsAny(c, "\n") {
				t.Fatalf("canonical form %q", c)
			}
		}
		for _, s := range h.Segments {
			if s.Offset < 0 || s.Size == 0 || s.SectorSize < 512 || s.SectorSize > 4096 {
				t.Fatalf("%+v", s)
			}
		}
		if h.Extent < 0 || h.Extent > size || len(h.Live()) > len(h.Segments) {
			t.Fatalf("%+v", h)
		}
	})
}
