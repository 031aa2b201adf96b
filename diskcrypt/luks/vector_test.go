package luks_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

func jwe(head string) string { return base64.RawURLEncoding.EncodeToString([]byte(head)) }

// vectors are Epoch, fingerprint and area of slot 0, header digest; for LUKS2
// also the fingerprint of slot 5 and the token's digest. They were computed a
// second time, from the text of the specification, by a program not in Go.
var vectors = map[int][]string{
	1: {
		"v1:c8643107c77ceb697d99266ab769e41680df3799507f3d91183436921cbe9d8b",
		"v1:f84988725ec4abfb2dd9aa71ece59d45e3a1c23d5064b35ff409d3211a4dcbfe",
		"sha256:c334a1a65151f077d9168d68c37f8a5d4cf8c524a6889ac83db2adfcbd13606c",
		"sha256:8cb951bb4ee1a31cc7957ad7a762cb882fe7f0fa752bff08ace6b7b8f2f9f370",
	},
	2: {
		"v1:0c8ed8c2a33403c60232045a808635b39354f36a2b6b74a0c57b95e9f450efd0",
		"v1:0f6e365462643de1cdadf4e0786270d827e3eb9b81f9365398f7280c18c68d69",
		"sha256:0ea2320f5f332b1c11d57dbd7f4bdeed033762a30f17dfa6d4e0cdda33e5fda8",
		"sha256:8743aae0bc216f9910bda327353d2d548efd0d7b0bb787f1f13ad4745b72759c",
		"v1:2ba78852a3c4430e19260933b09ec92c0817835d27448d314fd41d5fe246929e",
		"sha256:6cea09c8a2e92eb4ad5e4c79f4d5f4dd029511b29fd7802e0c8b48b498ea344d",
	},
}

// fixed is a header in which nothing is random: salts, digests and areas are
// counted bytes. It opens with nothing and is read like any other.
func fixed(t *testing.T, version int) memory {
	t.Helper()
	m := make(memory, 3<<20)
	for i := range m {
		m[i] = byte(i*131 + i>>8 + i>>16)
	}
	if version == 1 {
		clear(m[:4096])
		copy(m, "LUKS\xba\xbe\x00\x01")
		copy(m[8:], "aes")
		copy(m[40:], "xts-plain64")
		copy(m[72:], "SHA256")
		binary.BigEndian.PutUint32(m[104:], 4096)
		binary.BigEndian.PutUint32(m[108:], 32)
		counted(m[112:164])
		binary.BigEndian.PutUint32(m[164:], 1000)
		copy(m[168:], "3f2b6a8e-0000-4000-8000-000000000001")
		for i := range 8 {
			s := m[208+48*i:]
			binary.BigEndian.PutUint32(s, 0xDEAD)
			binary.BigEndian.PutUint32(s[40:], uint32(8+256*i))
			binary.BigEndian.PutUint32(s[44:], 4000)
		}
		binary.BigEndian.PutUint32(m[208:], 0x00AC71F3)
		binary.BigEndian.PutUint32(m[212:], 2000)
		counted(m[216:248])
		return m
	}
	bytes64 := func(n int) string {
		b := make([]byte, n)
		counted(b)
		return base64.StdEncoding.EncodeToString(b)
	}
	slot := func(offset string, kdf object) object {
		return object{
			"type": "luks2", "key_size": 32, "kdf": kdf, "af": object{"type": "luks1", "stripes": 4000, "hash": "sha256"},
			"area": object{"type": "raw", "offset": offset, "size": "131072", "encryption": "aes-xts-plain64", "key_size": 32},
		}
	}
	text, err := json.Marshal(object{
		"keyslots": object{
			"0": slot("32768", object{"type": "argon2id", "time": 4, "memory": 65536, "cpus": 2, "salt": bytes64(32)}),
			"5": slot("163840", object{"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": bytes64(32)}),
		},
		"tokens":   object{"0": json.RawMessage(`{"type":"t","keyslots":["0"],"b":[1, 2.50, {"y":null,"x":true}],"a":"é/<\u0001"}`)},
		"segments": object{"0": object{"type": "crypt", "offset": "1081344", "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64", "sector_size": 512}},
		"digests":  object{"0": object{"type": "pbkdf2", "keyslots": []any{"0", "5"}, "segments": []any{"0"}, "hash": "sha256", "iterations": 1000, "salt": bytes64(32), "digest": bytes64(32)}},
		"config":   object{"json_size": "12288", "keyslots_size": "1048576"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, magic := range []string{"LUKS\xba\xbe\x00\x02", "SKUL\xba\xbe\x00\x02"} {
		raw := m[i*copySize:][:copySize]
		clear(raw)
		copy(raw, magic)
		binary.BigEndian.PutUint64(raw[8:], copySize)
		binary.BigEndian.PutUint64(raw[16:], 7)
		copy(raw[72:], "sha256")
		copy(raw[168:], "3f2b6a8e-0000-4000-8000-000000000001")
		binary.BigEndian.PutUint64(raw[256:], uint64(i*copySize))
		copy(raw[4096:], text)
		luksformat.Checksum(raw)
	}
	return m
}

func counted(b []byte) {
	for i := range b {
		b[i] = byte(i + 1)
	}
}
