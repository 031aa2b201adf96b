package luks_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

func (m memory) place() diskcrypt.Place { return diskcrypt.Place{Data: m, Size: int64(len(m))} }

const copySize = 16 << 10

// sound is a small LUKS volume with slots 0 ("one") and 1 ("two"), and a token.
func sound(t testing.TB, version int) memory {
	t.Helper()
	m := make(memory, 3<<20)
	v, err := luksformat.Format(m, int64(len(m)), luksformat.Options{Version: version, KeyslotsSize: 1 << 20, UUID: "3f2b6a8e-0000-4000-8000-000000000001", Cipher: "aes-xts-plain64", KeyBits: 256})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, s := range []string{"one", "two"} {
		if _, err := v.AddKey(context.Background(), pass(s), luksformat.KDF{}); err != nil {
			t.Fatal(err)
		}
	}
	if version == 2 {
		if _, err := v.AddToken(json.RawMessage(`{"type":"x","keyslots":["0"]}`)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

type object = map[string]any

func at(o object, path ...string) object {
	for _, p := range path {
		o = o[p].(object)
	}
	return o
}

func set(value any, path ...string) func(object) {
	return func(o object) { at(o, path[:len(path)-1]...)[path[len(path)-1]] = value }
}

func unset(path ...string) func(object) {
	return func(o object) { delete(at(o, path[:len(path)-1]...), path[len(path)-1]) }
}

// metadata changes the JSON of the copies and makes the checksums right again.
func metadata(change func(object)) func(memory) {
	return text(func(s string) string {
		var o object
		if err := json.Unmarshal([]byte(s), &o); err != nil {
			panic(err)
		}
		change(o)
		b, err := json.Marshal(o)
		if err != nil {
			panic(err)
		}
		return string(b)
	})
}

func text(change func(string) string) func(memory) {
	return func(m memory) {
		for i := range 2 {
			raw := m[i*copySize:][:copySize]
			old, _, _ := strings.Cut(string(raw[4096:]), "\x00")
			clear(raw[4096:])
			copy(raw[4096:], change(old))
			luksformat.Checksum(raw)
		}
	}
}

func replace(old, with string) func(memory) {
	return text(func(s string) string {
		if !strings.Contains(s, old) {
			panic(old + " is not in " + s)
		}
		return strings.Replace(s, old, with, 1)
	})
}

// primary and both change the binary headers; the checksums are made right.
func primary(change func(raw []byte)) func(memory) {
	return func(m memory) { change(m[:copySize]); luksformat.Checksum(m[:copySize]) }
}

func secondary(change func(raw []byte)) func(memory) {
	return func(m memory) { change(m[copySize : 2*copySize]); luksformat.Checksum(m[copySize : 2*copySize]) }
}

func both(change func(raw []byte)) func(memory) {
	return func(m memory) { primary(change)(m); secondary(change)(m) }
}

func flip(offsets ...int) func(memory) {
	return func(m memory) {
		for _, o := range offsets {
			m[o] ^= 1
		}
	}
}

func put64(off int, v uint64) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint64(b[off:], v) }
}

func slot1(number int, off int, v uint32) func(memory) {
	return func(m memory) { binary.BigEndian.PutUint32(m[208+48*number+off:], v) }
}

func field1(off int, v uint32) func(memory) {
	return func(m memory) { binary.BigEndian.PutUint32(m[off:], v) }
}

// Outcomes of a mutation.
const (
	isDamaged     = "damaged"     // Inspect: ErrDamaged; Open too
	isWarned      = "warned"      // sound, with a warning that says …; opens
	isUnsupported = "unsupported" // Inspect sound, Unsupported says …; Open: ErrUnsupported
	isLimited     = "limited"     // Open: ErrLimit before any work
	isSound       = "sound"       // no defect in our eyes
	isNone        = "none"        // ErrNotThisFormat
)

// stricter marks what we refuse and cryptsetup reads; laxer the opposite.
const (
	stricter = "stricter"
	laxer    = "laxer"
)

var mutations = []struct {
	name    string
	version int
	defect  func(memory)
	outcome string
	says    string
	versus  string // deviation from cryptsetup, "" for none
}{
	// binary header
	{"primary checksum", 2, flip(5000), isWarned, "primary header is not valid: checksum", ""},
	{"secondary checksum", 2, flip(copySize + 5000), isWarned, "secondary header at 16384 is not valid: checksum", ""},
	{"both checksums", 2, flip(5000, copySize+5000), isDamaged, "checksum", ""},
	{"primary salt", 2, flip(110), isWarned, "primary header is not valid", ""},
	{"primary hdr_offset", 2, primary(put64(256, 4096)), isWarned, "hdr_offset", ""},
	{"secondary hdr_offset", 2, secondary(put64(256, 0)), isWarned, "hdr_offset", ""},
	{"hdr_size 0", 2, both(put64(8, 0)), isDamaged, "hdr_size", ""},
	{"hdr_size odd", 2, both(put64(8, copySize+512)), isDamaged, "hdr_size", ""},
	{"hdr_size huge", 2, both(put64(8, 1<<63)), isDamaged, "hdr_size", ""},
	{"hdr_size 8 MiB", 2, both(put64(8, 8<<20)), isDamaged, "hdr_size", ""},
	{"primary hdr_size other", 2, primary(put64(8, 32<<10)), isWarned, "primary header is not valid", ""},
	{"secondary newer", 2, secondary(put64(16, 99)), isWarned, "seqid 4 and 99", ""},
	{"primary newer", 2, primary(put64(16, 99)), isWarned, "seqid 99 and 4", ""},
	{"same seqid, other label", 2, primary(func(b []byte) { copy(b[24:], "other") }), isWarned, "same seqid", ""},
	{"other uuid", 2, secondary(func(b []byte) { b[168] = '9' }), isWarned, "different UUIDs", ""},
	{"primary gone", 2, func(m memory) { clear(m[:copySize]) }, isWarned, "no magic", ""},
	{"primary page gone", 2, func(m memory) { clear(m[:4096]) }, isWarned, "no magic", ""},
	{"secondary gone", 2, func(m memory) { clear(m[copySize : 2*copySize]) }, isWarned, "no magic", ""},
	{"both gone", 2, func(m memory) { clear(m[:2*copySize]) }, isNone, "", ""},
	{"version 3", 2, both(func(b []byte) { b[7] = 3 }), isDamaged, "version 3", ""},
	{"version 0", 2, both(func(b []byte) { b[7] = 0 }), isDamaged, "version 0", ""},
	{"checksum algorithm", 2, both(func(b []byte) { copy(b[72:], "crc32\x00\x00") }), isDamaged, "checksum algorithm", ""},
	{"uuid without end", 2, both(func(b []byte) { copy(b[168:208], bytes.Repeat([]byte("a"), 40)) }), isDamaged, "uuid", stricter},

	// JSON area
	{"no NUL", 2, both(func(b []byte) {
		for i := bytes.IndexByte(b[4096:], 0) + 4096; i < len(b); i++ {
			b[i] = ' '
		}
	}), isDamaged, "NUL", ""},
	{"byte behind the JSON", 2, both(func(b []byte) { b[len(b)-1] = 1 }), isDamaged, "not zero behind", ""},
	{"no JSON", 2, both(func(b []byte) { clear(b[4096:]) }), isDamaged, "does not start", ""},
	{"leading space", 2, text(func(s string) string { return " " + s }), isDamaged, "does not start", ""},
	{"array", 2, text(func(string) string { return "[]" }), isDamaged, "does not start", ""},
	{"cut short", 2, text(func(s string) string { return s[:len(s)-1] }), isDamaged, "JSON", ""},
	{"something behind", 2, text(func(s string) string { return s + "{}" }), isDamaged, "follows", ""},
	{"deep", 2, replace(`"type":"x"`, `"type":"x","d":`+strings.Repeat("[", 40)+strings.Repeat("]", 40)), isDamaged, "nested", ""},
	{"slot twice", 2, replace(`"1":{"af"`, `"0":{"af"`), isDamaged, "twice", ""},
	{"member twice", 2, replace(`"stripes":4000`, `"stripes":4000,"stripes":4000`), isDamaged, "twice", stricter},
	{"json_size", 2, metadata(set("8192", "config", "json_size")), isDamaged, "json_size", ""},
	{"json_size a number", 2, metadata(set(12288, "config", "json_size")), isDamaged, "json_size", ""},
	{"keyslots_size odd", 2, metadata(set("1048577", "config", "keyslots_size")), isDamaged, "keyslots_size", ""},
	{"keyslots_size huge", 2, metadata(set("18446744073709551615", "config", "keyslots_size")), isDamaged, "keyslots_size", ""},
	{"keyslots_size over the data", 2, metadata(set("2097152", "config", "keyslots_size")), isDamaged, "lies in the header", ""},
	{"no config", 2, metadata(unset("config")), isDamaged, `"config"`, ""},
	{"no keyslots", 2, metadata(unset("keyslots")), isDamaged, `"keyslots"`, ""},
	{"no digests", 2, metadata(unset("digests")), isDamaged, `"digests"`, ""},
	{"no tokens", 2, metadata(unset("tokens")), isDamaged, `"tokens"`, ""},
	{"no segments", 2, metadata(unset("segments")), isDamaged, `"segments"`, ""},
	{"keyslots an array", 2, metadata(set([]any{}, "keyslots")), isDamaged, `"keyslots"`, ""},
	{"unknown requirement", 2, metadata(set(object{"mandatory": []any{"req0"}}, "config", "requirements")), isUnsupported, `"req0"`, ""},
	{"requirements an array", 2, metadata(set([]any{"req0"}, "config", "requirements")), isUnsupported, `"req0"`, laxer},
	{"requirements a text", 2, metadata(set("req0", "config", "requirements")), isDamaged, "requirements", ""},
	{"requirement a number", 2, metadata(set(object{"mandatory": []any{1}}, "config", "requirements")), isDamaged, "mandatory", ""},
	{"opal", 2, metadata(set(object{"mandatory": []any{"opal"}}, "config", "requirements")), isUnsupported, "OPAL", ""},
	{"offline re-encryption", 2, metadata(set(object{"mandatory": []any{"offline-reencrypt"}}, "config", "requirements")), isUnsupported, "re-encryption in progress", ""},

	// key slots
	{"slot id 32", 2, metadata(func(o object) { at(o, "keyslots")["32"] = at(o, "keyslots")["1"]; delete(at(o, "keyslots"), "1") }), isDamaged, "not a number below 32", ""},
	{"slot id -1", 2, metadata(func(o object) { at(o, "keyslots")["-1"] = at(o, "keyslots")["1"]; delete(at(o, "keyslots"), "1") }), isDamaged, "not a number", ""},
	{"slot id x", 2, metadata(func(o object) { at(o, "keyslots")["x"] = at(o, "keyslots")["1"]; delete(at(o, "keyslots"), "1") }), isDamaged, "not a number", ""},
	{"slot without type", 2, metadata(unset("keyslots", "0", "type")), isDamaged, `"type"`, ""},
	{"slot without digest", 2, metadata(set([]any{"0"}, "digests", "0", "keyslots")), isDamaged, "key slot 1 has no digest", ""},
	{"slot with two digests", 2, metadata(func(o object) {
		at(o, "digests")["1"] = object{"type": "pbkdf2", "keyslots": []any{"0"}, "segments": []any{}, "hash": "sha256", "iterations": 1000, "salt": at(o, "digests", "0")["salt"], "digest": at(o, "digests", "0")["digest"]}
	}), isDamaged, "more than one digest", ""},
	{"unknown slot type", 2, metadata(set("luks9", "keyslots", "1", "type")), isSound, "", ""},
	{"key_size 0", 2, metadata(set(0, "keyslots", "0", "key_size")), isDamaged, "key_size", stricter},
	{"key_size negative", 2, metadata(set(-1, "keyslots", "0", "key_size")), isDamaged, "key_size", ""},
	{"key_size huge", 2, metadata(set(1<<31, "keyslots", "0", "key_size")), isDamaged, "key_size", stricter},
	{"key_size a text", 2, metadata(set("32", "keyslots", "0", "key_size")), isDamaged, "key_size", ""},
	{"area overlaps", 2, metadata(func(o object) { at(o, "keyslots", "1", "area")["offset"] = "36864" }), isDamaged, "overlap", ""},
	{"area in the header", 2, metadata(set("4096", "keyslots", "0", "area", "offset")), isDamaged, "not inside", ""},
	{"area behind the areas", 2, metadata(set("1048576", "keyslots", "1", "area", "offset")), isDamaged, "not inside", ""},
	{"area offset huge", 2, metadata(set("18446744073709551104", "keyslots", "1", "area", "offset")), isDamaged, "larger than any device", ""},
	{"area offset overflow", 2, metadata(set("18446744073709551616", "keyslots", "1", "area", "offset")), isDamaged, "64-bit", ""},
	{"area offset negative", 2, metadata(set("-4096", "keyslots", "1", "area", "offset")), isDamaged, "64-bit", ""},
	{"area offset a number", 2, metadata(set(32768, "keyslots", "0", "area", "offset")), isDamaged, "decimal", ""},
	{"area size 0", 2, metadata(set("0", "keyslots", "0", "area", "size")), isDamaged, "too small", ""},
	{"area too small", 2, metadata(set("4096", "keyslots", "0", "area", "size")), isDamaged, "too small", stricter},
	{"area type", 2, metadata(set("cooked", "keyslots", "0", "area", "type")), isDamaged, "cooked", ""},
	{"no area", 2, metadata(unset("keyslots", "0", "area")), isDamaged, `"area"`, ""},
	{"stripes", 2, metadata(set(4001, "keyslots", "0", "af", "stripes")), isDamaged, "stripes", stricter},
	{"af type", 2, metadata(set("luks9", "keyslots", "0", "af", "type")), isDamaged, "luks9", ""},
	{"no af", 2, metadata(unset("keyslots", "0", "af")), isDamaged, `"af"`, ""},
	{"salt no base64", 2, metadata(set("***", "keyslots", "0", "kdf", "salt")), isDamaged, "salt", stricter},
	{"salt huge", 2, metadata(set(strings.Repeat("A", 4000), "keyslots", "0", "kdf", "salt")), isDamaged, "salt", stricter},
	{"iterations 0", 2, metadata(set(0, "keyslots", "0", "kdf", "iterations")), isDamaged, "iterations", stricter},
	{"iterations negative", 2, metadata(set(-1000, "keyslots", "0", "kdf", "iterations")), isDamaged, "iterations", stricter},
	{"iterations a fraction", 2, metadata(set(1000.5, "keyslots", "0", "kdf", "iterations")), isDamaged, "iterations", ""},
	{"iterations 2^40", 2, metadata(set(1<<40, "keyslots", "0", "kdf", "iterations")), isDamaged, "iterations", stricter},
	{"iterations absurd", 2, metadata(set(4_000_000_000, "keyslots", "0", "kdf", "iterations")), isLimited, "key slot 0", ""},
	{"digest iterations absurd", 2, metadata(set(4_000_000_000, "digests", "0", "iterations")), isLimited, "key slot", ""},
	{"unknown kdf", 2, metadata(set(object{"type": "scrypt", "salt": "AAAA"}, "keyslots", "0", "kdf")), isUnsupported, "", ""},
	{"unknown hash", 2, metadata(set("md5", "keyslots", "0", "kdf", "hash")), isUnsupported, "", ""},
	{"argon2 memory absurd", 2, metadata(set(object{"type": "argon2id", "salt": "AAAAAAAAAAAAAAAAAAAAAA==", "time": 4, "memory": 1 << 30, "cpus": 4}, "keyslots", "0", "kdf")), isLimited, "key slot 0", ""},
	{"argon2 time absurd", 2, metadata(set(object{"type": "argon2i", "salt": "AAAAAAAAAAAAAAAAAAAAAA==", "time": 1 << 31, "memory": 1 << 20, "cpus": 4}, "keyslots", "0", "kdf")), isLimited, "key slot 0", ""},
	{"argon2 time 0", 2, metadata(set(object{"type": "argon2i", "salt": "AAAA", "time": 0, "memory": 64, "cpus": 1}, "keyslots", "0", "kdf")), isDamaged, "time", stricter},
	{"argon2 cpus 0", 2, metadata(set(object{"type": "argon2i", "salt": "AAAA", "time": 4, "memory": 64, "cpus": 0}, "keyslots", "0", "kdf")), isDamaged, "cpus", stricter},
	{"priority 3", 2, metadata(set(3, "keyslots", "0", "priority")), isDamaged, "priority", stricter},
	{"area cipher", 2, metadata(set("camellia-xts-plain64", "keyslots", "0", "area", "encryption")), isUnsupported, "", ""},

	// digests, segments, tokens
	{"digest lists no slot that exists", 2, metadata(set([]any{"0", "1", "7"}, "digests", "0", "keyslots")), isDamaged, "does not exist", ""},
	{"digest lists no segment that exists", 2, metadata(set([]any{"0", "3"}, "digests", "0", "segments")), isDamaged, "does not exist", ""},
	{"digest of no segment", 2, metadata(set([]any{}, "digests", "0", "segments")), isDamaged, "no digest", ""},
	{"short digest", 2, metadata(set("AAAA", "digests", "0", "digest")), isDamaged, "digest of 3 bytes", stricter},
	{"digest iterations 0", 2, metadata(set(0, "digests", "0", "iterations")), isDamaged, "iterations", stricter},
	{"segment size 0", 2, metadata(set("0", "segments", "0", "size")), isDamaged, "size is 0", ""},
	{"segment size odd", 2, metadata(set("1000", "segments", "0", "size")), isDamaged, "whole number of sectors", ""},
	{"segment offset odd", 2, metadata(set("1081345", "segments", "0", "offset")), isDamaged, "whole number of sectors", ""},
	{"segment offset huge", 2, metadata(set("18446744073709551104", "segments", "0", "offset")), isDamaged, "larger than any device", stricter},
	{"segment in the header", 2, metadata(set("65536", "segments", "0", "offset")), isDamaged, "lies in the header", ""},
	{"segment behind the device", 2, metadata(set("1099511627776", "segments", "0", "offset")), isWarned, "beyond the device", ""},
	{"segment numbers with a gap", 2, metadata(func(o object) {
		at(o, "segments")["1"] = at(o, "segments")["0"]
		delete(at(o, "segments"), "0")
		at(o, "digests", "0")["segments"] = []any{"1"}
	}), isDamaged, "segment 0 is missing", ""},
	{"two segments", 2, metadata(func(o object) {
		at(o, "segments", "0")["size"] = "4096"
		at(o, "segments")["1"] = object{"type": "crypt", "offset": "1085440", "size": "dynamic", "iv_tweak": "8", "encryption": "aes-xts-plain64", "sector_size": 512}
		at(o, "digests", "0")["segments"] = []any{"0", "1"}
	}), isSound, "", ""},
	{"encrypted and plain segments", 2, metadata(func(o object) {
		at(o, "segments", "0")["size"] = "4096"
		at(o, "segments")["1"] = object{"type": "linear", "offset": "1085440", "size": "dynamic"}
	}), isUnsupported, `"linear"`, ""},
	{"marked as on the move", 2, metadata(set([]any{"in-reencryption"}, "segments", "0", "flags")), isUnsupported, "nothing else says so", ""},
	{"hw-opal-crypt", 2, metadata(set("hw-opal-crypt", "segments", "0", "type")), isUnsupported, "hw-opal-crypt", ""},
	{"inline tags", 2, metadata(set(object{"mandatory": []any{"inline-hw-tags"}}, "config", "requirements")), isUnsupported, "integrity tags in hardware sectors", ""},
	{"re-encryption of version 1", 2, metadata(set(object{"mandatory": []any{"online-reencrypt"}}, "config", "requirements")), isUnsupported, "not authenticated", laxer},
	{"re-encryption of version 9", 2, metadata(set(object{"mandatory": []any{"online-reencrypt-v9"}}, "config", "requirements")), isUnsupported, `"-v9"`, ""},
	{"re-encryption without its record", 2, metadata(set(object{"mandatory": []any{"online-reencrypt-v2"}}, "config", "requirements")), isUnsupported, "without a record", laxer},
	{"aead", 2, metadata(func(o object) {
		at(o, "segments", "0")["integrity"] = object{"type": "aead", "journal_encryption": "none", "journal_integrity": "none"}
		at(o, "segments", "0")["encryption"] = "aes-gcm-random"
	}), isUnsupported, `integrity "aead" with cipher "aes-gcm-random"`, ""},
	{"endless segment in the middle", 2, metadata(func(o object) {
		at(o, "segments")["1"] = object{"type": "crypt", "offset": "1085440", "size": "dynamic", "iv_tweak": "8", "encryption": "aes-xts-plain64", "sector_size": 512}
	}), isDamaged, "has no end", ""},
	{"segment type", 2, metadata(set("blob", "segments", "0", "type")), isUnsupported, `"blob"`, ""},
	{"hw-opal", 2, metadata(set("hw-opal", "segments", "0", "type")), isUnsupported, "hw-opal", ""},
	{"linear", 2, metadata(set("linear", "segments", "0", "type")), isUnsupported, `"linear"`, ""},
	{"sector size 768", 2, metadata(set(768, "segments", "0", "sector_size")), isDamaged, "sector_size", ""},
	{"sector size 8192", 2, metadata(set(8192, "segments", "0", "sector_size")), isDamaged, "sector_size", stricter},
	{"no encryption", 2, metadata(unset("segments", "0", "encryption")), isDamaged, "encryption", ""},
	{"no iv_tweak", 2, metadata(unset("segments", "0", "iv_tweak")), isDamaged, "iv_tweak", ""},
	{"flags a text", 2, metadata(set("x", "segments", "0", "flags")), isDamaged, "flags", ""},
	{"integrity", 2, metadata(set(object{"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}, "segments", "0", "integrity")), isUnsupported, "hmac(sha256)", ""},
	{"camellia", 2, metadata(set("camellia-xts-plain64", "segments", "0", "encryption")), isUnsupported, "camellia", ""},
	{"token without type", 2, metadata(unset("tokens", "0", "type")), isDamaged, `"type"`, ""},
	{"token without keyslots", 2, metadata(unset("tokens", "0", "keyslots")), isDamaged, `"keyslots"`, ""},
	{"token lists no slot that exists", 2, metadata(set([]any{"9"}, "tokens", "0", "keyslots")), isDamaged, "does not exist", ""},
	{"token id 32", 2, metadata(func(o object) { at(o, "tokens")["32"] = object{"type": "x", "keyslots": []any{}} }), isDamaged, "not a number", stricter},

	// LUKS1
	{"luks1 version 3", 1, func(m memory) { m[7] = 3 }, isDamaged, "version 3", ""},
	{"luks1 stripes", 1, slot1(3, 44, 3999), isDamaged, "stripes", ""},
	{"luks1 stripes of a used slot", 1, slot1(0, 44, 0), isDamaged, "stripes", ""},
	{"luks1 area in the header", 1, slot1(0, 40, 1), isDamaged, "lies in the header", ""},
	{"luks1 area in the data", 1, slot1(7, 40, 4000), isDamaged, "reaches into the data", ""},
	{"luks1 areas overlap", 1, slot1(1, 40, 9), isDamaged, "overlap", ""},
	{"luks1 area behind the device", 1, slot1(7, 40, 1<<31), isDamaged, "beyond the device", ""},
	{"luks1 slot state", 1, slot1(2, 0, 0x1234), isWarned, "neither active nor inactive", ""},
	{"luks1 iterations 0", 1, slot1(0, 4, 0), isWarned, "0 iterations", ""},
	{"luks1 iterations absurd", 1, slot1(0, 4, 4_000_000_000), isLimited, "key slot 0", ""},
	{"luks1 digest iterations 0", 1, field1(164, 0), isDamaged, "0 iterations", stricter},
	{"luks1 digest iterations absurd", 1, field1(164, 4_000_000_000), isLimited, "key slot", ""},
	{"luks1 key of 0 bytes", 1, field1(108, 0), isDamaged, "volume key of 0 bytes", ""},
	{"luks1 key huge", 1, field1(108, 1<<30), isDamaged, "volume key of", ""},
	{"luks1 payload in the areas", 1, field1(104, 100), isDamaged, "reaches into the data", ""},
	{"luks1 payload behind the device", 1, field1(104, 1<<31), isSound, "", ""},
	{"luks1 hash", 1, func(m memory) { copy(m[72:], "tiger\x00\x00\x00\x00") }, isUnsupported, "tiger", laxer},
	{"luks1 cipher", 1, func(m memory) { copy(m[8:], "camellia\x00") }, isUnsupported, "camellia", ""},
	{"luks1 mode", 1, func(m memory) { copy(m[40:], "lrw-benbi\x00\x00\x00") }, isUnsupported, "lrw-benbi", ""},
	{"luks1 no uuid", 1, func(m memory) { clear(m[168:208]) }, isWarned, "uuid is empty", ""},
	{"luks1 being re-encrypted", 1, func(m memory) { copy(m[4:], "\xde\xad") }, isUnsupported, "re-encryption", laxer},
	{"luks1 area overwritten", 1, func(m memory) { clear(m[8192:8704]) }, isWarned, "do not look encrypted", ""},
	{"luks2 area overwritten", 2, func(m memory) { clear(m[2*copySize+8192:][:512]) }, isWarned, "do not look encrypted", ""},
}

// TestMutations: one defect each, its class, and what cryptsetup thinks of it.
func TestMutations(t *testing.T) {
	ctx := context.Background()
	base := map[int]memory{1: sound(t, 1), 2: sound(t, 2)}
	for _, c := range mutations {
		t.Run(c.name, func(t *testing.T) {
			m := bytes.Clone(base[c.version])
			c.defect(m)
			p := memory(m).place()
			v, err := luks.Format{}.Inspect(ctx, p)
			_, openErr := luks.Format{}.Open(ctx, p, diskcrypt.KindPassphrase, pass("neither"), diskcrypt.Limits{})
			says := func(s string) {
				if !strings.Contains(s, c.says) {
					t.Errorf("%q does not say %q", s, c.says)
				}
			}
			switch c.outcome {
			case isNone:
				if !errors.Is(err, diskcrypt.ErrNotThisFormat) {
					t.Fatal(err)
				}
			case isDamaged:
				if !errors.Is(err, diskcrypt.ErrDamaged) || v == nil || v.Unsupported == "" || !errors.Is(openErr, diskcrypt.ErrDamaged) {
					t.Fatalf("inspect: %v (%+v), open: %v", err, v, openErr)
				}
				says(err.Error())
			case isWarned:
				if err != nil || len(v.Warnings) == 0 {
					t.Fatalf("%v %+v", err, v)
				}
				says(strings.Join(v.Warnings, "\n"))
			case isUnsupported:
				if err != nil || !errors.Is(openErr, diskcrypt.ErrUnsupported) {
					t.Fatalf("inspect: %v, open: %v", err, openErr)
				}
				says(v.Unsupported)
			case isLimited:
				if err != nil || !errors.Is(openErr, diskcrypt.ErrLimit) {
					t.Fatalf("inspect: %v, open: %v", err, openErr)
				}
				says(openErr.Error())
			case isSound:
				if err != nil {
					t.Fatal(err)
				}
			}
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, m, 0o600); err != nil {
				t.Fatal(err)
			}
			out, dumpErr := exec.Command(judge.Tool(t, "cryptsetup"), "-q", "luksDump", path).CombinedOutput()
			we, they := err == nil, dumpErr == nil
			versus := ""
			if they && !we {
				versus = stricter
			} else if we && !they {
				versus = laxer
			}
			if versus != c.versus {
				t.Errorf("we accept: %v (%v), cryptsetup: %v: deviation %q, known %q\n%s", we, err, they, versus, c.versus, out)
			}
			judge.Decided(t, "cryptsetup luksDump")
		})
	}
}
