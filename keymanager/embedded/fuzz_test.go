package embedded

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

func fuzzKeys() *keys { return newKeys(envelope.NewSecret(slices.Repeat([]byte{7}, 32))) }

func FuzzKEKFile(f *testing.F) {
	h := header{Format: formatName, Version: formatVersion, KEK: strings.Repeat("0", 32), Sealer: "key-file"}
	line, err := h.line()
	must(f, err)
	data, err := encodeKEKFile(line, []byte("blob"))
	must(f, err)
	f.Add(data)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		h, line, blob, err := decodeKEKFile(data)
		if err != nil {
			if !errors.Is(err, keymanager.ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("error %v is not typed", err)
			}
			return
		}
		if h.Version != formatVersion || len(line)+len(blob) > len(data) {
			t.Errorf("header %+v, %d + %d bytes out of %d", h, len(line), len(blob), len(data))
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(`{"format":"lockstep-keymanager","version":1,"kek":"00112233445566778899aabbccddeeff"}`))
	f.Add([]byte(`{"format":"lockstep-keymanager","version":1,"must_understand":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := parseHeader(data); err == nil && (len(h.KEK) != 32 || len(h.MustUnderstand) > 0) {
			t.Errorf("took %+v", h)
		}
	})
}

// FuzzSealedKEK feeds the sealers: no cost may be out of bounds.
func FuzzSealedKEK(f *testing.F) {
	f.Add(append([]byte{tagPassphrase, 1, 0, 0, 0, 64, 0, 0, 0, 1}, make([]byte, 64)...))
	f.Add(append([]byte{tagPassphrase, 255, 255, 255, 255, 255, 255, 255, 255, 255}, make([]byte, 64)...))
	f.Add(append([]byte{tagPassphrase}, make([]byte, 64)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		cost, err := passphraseCost(data)
		if err == nil && (cost.memory > 256<<10 || cost.passes > 16 || cost.lanes > 16 || cost.passes*cost.memory*uint32(cost.lanes) == 0) {
			t.Errorf("took the cost %+v", cost)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"records":{"000102030405060708090a0b0c0d0e0f":3},"wiping":[{"name":"000102030405060708090a0b0c0d0e0f","version":1}]}`))
	f.Add([]byte(`{"records":null,"wiping":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := parseIndex(data)
		if err != nil {
			return
		}
		for name := range x.Records {
			if !validName(name) || strings.ContainsAny(name, "./\\") {
				t.Errorf("took the name %q", name)
			}
		}
		wantRoundTrip(t, x, parseIndex)
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"alpha","kind":"passphrase","labels":{"a":"b"},"generation":3,"versions":[{"version":1,"state":"active",` +
		`"created":"2026-01-02T03:04:05Z","history":[{"state":"active","at":"2026-01-02T03:04:05Z","reason":"r"}],"holds":[]}]}`))
	f.Add([]byte(`{"id":"alpha","generation":1,"versions":[null]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRecord(data)
		if err != nil {
			return
		}
		_ = r.info()
		wantRoundTrip(t, r, parseRecord)
	})
}

func wantRoundTrip[T any](t *testing.T, x *T, parse func([]byte) (*T, error)) {
	t.Helper()
	first, err := json.Marshal(x)
	must(t, err)
	again, err := parse(first)
	if err != nil {
		t.Fatalf("does not take its own: %v", err)
	}
	second, err := json.Marshal(again)
	must(t, err)
	if !bytes.Equal(first, second) {
		t.Errorf("written %s, then %s", first, second)
	}
}

func FuzzVersion(f *testing.F) {
	k := fuzzKeys()
	name := k.nameOf("alpha")
	b := birth{ID: "alpha", Kind: "passphrase", Version: 1, State: keymanager.Active}
	data, err := encodeVersion(k, name, b, envelope.CopySecret([]byte("x")))
	must(f, err)
	f.Add(data)
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, other []byte) {
		got, secret, err := decodeVersion(k, name, 1, other)
		if err != nil {
			if !errors.Is(err, keymanager.ErrDamaged) {
				t.Errorf("error %v is not typed", err)
			}
			return
		}
		// Each process of the fuzzer has sealed a file of its own: all are authentic.
		if string(secret.Expose()) != "x" || !reflect.DeepEqual(got, b) {
			t.Errorf("took what was not sealed: %+v", got)
		}
	})
}

func FuzzVersionBody(f *testing.F) {
	body := func(born, rest string) []byte { return []byte(born + rest) }
	f.Add(body("\x2a\x00\x00\x00"+`{"id":"a","version":1,"state":"active"}   `, "\x01\x00\x00\x00x\x00\x00"))
	f.Add(body("\x02\x00\x00\x00{}", "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, secret, err := parseVersion(data)
		if err == nil && (secret.Len() == 0 || secret.Len() > len(data) || b.Version < 1) {
			t.Errorf("took %+v with %d bytes", b, secret.Len())
		}
	})
}

// FuzzBackup feeds the archive inside a backup, as whoever seals one can.
func FuzzBackup(f *testing.F) {
	var archive bytes.Buffer
	files := backupFiles{
		{backupHeader, []byte(`{"format":"lockstep-keymanager","version":1,"kek":"00112233445566778899aabbccddeeff"}`)},
		{backupKEK, slices.Repeat([]byte{7}, 32)},
		{indexFile, []byte("index")},
		{secretsFolder + "/000102030405060708090a0b0c0d0e0f/1.sealed", []byte("version")},
	}
	must(f, files.writeTo(&archive))
	f.Add(archive.Bytes())
	f.Add(archive.Bytes()[:600])
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &backupReader{archive: tar.NewReader(bytes.NewReader(data))}
		_, k, err := r.prologue()
		if err != nil {
			if !errors.Is(err, keymanager.ErrDamaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("error %v is not typed", err)
			}
			return
		}
		k.wipe()
		for {
			file, err := r.next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				if !errors.Is(err, keymanager.ErrDamaged) {
					t.Errorf("error %v is not typed", err)
				}
				return
			}
			if backupName.MatchString(file.name) && strings.Contains(file.name, "..") {
				t.Errorf("took the name %q", file.name)
			}
		}
	})
}
