package luks

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

const conversionSeed = `{"keyslots":{"0":{"type":"luks2","key_size":32,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":"raw","offset":"32768","size":"131072","encryption":"aes-xts-plain64","key_size":32},"kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"AAAA"}},` +
	`"2":{"type":"reencrypt","key_size":1,"mode":"reencrypt","direction":"forward","area":{"type":"checksum","offset":"163840","size":"4096","hash":"sha256","sector_size":4096}}},"tokens":{},` +
	`"segments":{"0":{"type":"crypt","offset":"1048576","size":"65536","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512},` +
	`"1":{"type":"crypt","offset":"1114112","size":"65536","iv_tweak":"128","encryption":"aes-xts-plain64","sector_size":512,"flags":["in-reencryption"]},` +
	`"2":{"type":"crypt","offset":"1179648","size":"dynamic","iv_tweak":"256","encryption":"aes-xts-plain64","sector_size":512},` +
	`"3":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512,"flags":["backup-previous"]},` +
	`"4":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":512,"flags":["backup-final"]}},` +
	`"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["1","2","3"],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},` +
	`"1":{"type":"pbkdf2","keyslots":[],"segments":["0","1","4"],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},` +
	`"2":{"type":"pbkdf2","keyslots":["2"],"segments":[],"hash":"sha256","iterations":1000,"salt":"AAAA","digest":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}},` +
	`"config":{"json_size":"12288","keyslots_size":"1015808","requirements":{"mandatory":["online-reencrypt-v2"]}}}`

// FuzzLayout: whatever segments and conversions a header names, the map of the
// plaintext is consistent, and reading ends.
func FuzzLayout(f *testing.F) {
	f.Add([]byte(conversionSeed))
	for _, change := range [][2]string{
		{`"checksum","offset":"163840","size":"4096","hash":"sha256","sector_size":4096`, `"journal","offset":"163840","size":"65536"`},
		{`"checksum","offset":"163840","size":"4096","hash":"sha256","sector_size":4096`, `"datashift","offset":"163840","size":"4096","shift_size":"1048576"`},
		{`"checksum","offset":"163840","size":"4096","hash":"sha256","sector_size":4096`, `"none","offset":"163840","size":"4096"`},
		{`"sector_size":4096}`, `"sector_size":512}`},
		{`,"requirements":{"mandatory":["online-reencrypt-v2"]}`, ``},
	} {
		f.Add(bytes.Replace([]byte(conversionSeed), []byte(change[0]), []byte(change[1]), 1))
	}
	const size = 2 << 20
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 12287 {
			return
		}
		raw := make([]byte, size)
		for i, magic := range []string{"LUKS\xba\xbe", "SKUL\xba\xbe"} {
			c := raw[i*16384:][:16384]
			copy(c, magic)
			c[7] = 2
			binary.BigEndian.PutUint64(c[8:], 16384)
			binary.BigEndian.PutUint64(c[16:], 1)
			copy(c[72:], "sha256")
			copy(c[168:], "3f2b6a8e-0000-4000-8000-000000000001")
			binary.BigEndian.PutUint64(c[256:], uint64(i)*16384)
			copy(c[4096:], text)
			luksformat.Checksum(c)
		}
		v, err := read(diskcrypt.Place{Data: bytes.NewReader(raw), Size: size})
		if err != nil || v.describe().Unsupported != "" {
			return
		}
		need, err := v.needed()
		if err != nil {
			return
		}
		keys := keyring{}
		for _, d := range need {
			n := v.keyBytes(d)
			if n == 0 {
				n = 32
			}
			keys[d.Number] = heldKey{"slot-0", make([]byte, n)}
		}
		if v.h.Reencrypting() {
			r, slot := v.h.Reencryption()
			if _, err := v.conversionState(r, slot, keys); err != nil {
				return
			}
			if v.checkSegments(r) != nil {
				return
			}
		}
		o, err := v.view(keys)
		if err != nil {
			return
		}
		defer o.Close()
		p := make([]byte, 10000)
		for _, off := range []int64{0, 60000, 65536, 131000, o.Size() - 5000} {
			n, err := o.ReadAt(p, max(0, off))
			if n < len(p) && err == nil || n > len(p) {
				t.Fatalf("%d bytes, %v", n, err)
			}
		}
		if _, err := o.ReadAt(p, o.Size()); err != io.EOF {
			t.Fatalf("at the end: %v", err)
		}
	})
}
