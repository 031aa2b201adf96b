package luks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/diskcrypttest"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

// TestConformance runs the suite of diskcrypttest on volumes of our own making.
func TestConformance(t *testing.T) {
	ctx := context.Background()
	var volumes []diskcrypttest.Volume
	for _, c := range []struct {
		name     string
		opts     luksformat.Options
		kdf      luksformat.KDF
		detached bool
	}{
		{"luks2", luksformat.Options{}, luksformat.KDF{}, false},
		{"luks2 4096 argon2id", luksformat.Options{SectorSize: 4096}, luksformat.KDF{Type: "argon2id", Time: 4, MemoryKiB: 64, Lanes: 1}, false},
		{"luks2 detached cbc", luksformat.Options{Cipher: "aes-cbc-essiv:sha256", DataOffset: -1}, luksformat.KDF{}, true},
		{"luks1 detached", luksformat.Options{Version: 1, DataOffset: -1}, luksformat.KDF{}, true},
		{"luks1", luksformat.Options{Version: 1, Hash: "sha1", KeyBits: 256}, luksformat.KDF{}, false},
	} {
		m := make(memory, 3<<20)
		c.opts.KeyslotsSize = 1 << 20
		v, err := luksformat.Format(m, int64(len(m)), c.opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"one", "two", "one"} {
			if _, err := v.AddKey(ctx, pass(s), c.kdf); err != nil {
				t.Fatal(err)
			}
		}
		place := m.place()
		var payload *luksformat.Payload
		if c.detached {
			data := make(memory, 1<<20)
			place = diskcrypt.Place{Data: data, Size: int64(len(data)), Header: m, HeadSize: int64(len(m))}
			payload, err = v.Payload(data, int64(len(data)))
		} else {
			payload, err = v.Payload(nil, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		plain := make([]byte, payload.Size())
		_, _ = rand.NewChaCha8([32]byte{4}).Read(plain)
		if _, err := payload.WriteAt(plain, 0); err != nil {
			t.Fatal(err)
		}
		key := v.VolumeKey()
		volume := diskcrypttest.Volume{
			Name: c.name, Place: place, Type: diskcrypt.TypeLUKS2, Plain: plain,
			Secrets: []diskcrypttest.Secret{
				{Kind: diskcrypt.KindPassphrase, Bytes: []byte("one"), Protectors: []string{"slot-0", "slot-2"}},
				{Kind: diskcrypt.KindKeyFile, Bytes: []byte("two"), Protectors: []string{"slot-1"}},
				{Kind: diskcrypt.KindVolumeKey, Bytes: key.Expose(), Protectors: []string{"volume-key"}},
			},
			Wrong: diskcrypttest.Secret{Kind: diskcrypt.KindPassphrase, Bytes: []byte("neither")},
		}
		if c.opts.Version == 1 {
			volume.Type = diskcrypt.TypeLUKS1
		}
		volumes = append(volumes, volume)
	}
	diskcrypttest.Run(t, luks.Format{}, volumes)
}

// TestLimitedSlotDoesNotHideOthers: one absurd slot must not make the others useless.
func TestLimitedSlotDoesNotHideOthers(t *testing.T) {
	m := sound(t, 2)
	metadata(set(4_000_000_000, "keyslots", "0", "kdf", "iterations"))(m)
	o, err := luks.Format{}.Open(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("two"), diskcrypt.Limits{})
	if err != nil || o.Protector() != "slot-1" {
		t.Fatal(err)
	}
	ids, err := luks.Format{}.OpensAll(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("two"), diskcrypt.Limits{})
	if !errors.Is(err, diskcrypt.ErrLimit) || strings.Join(ids, " ") != "slot-1" {
		t.Fatalf("%v %v", ids, err)
	}
}

// TestLimitHoldsForAllSlotsTogether: many slots that are each just affordable.
func TestLimitHoldsForAllSlotsTogether(t *testing.T) {
	m := sound(t, 2)
	// One slot costs 1000 iterations × 1 block, its digest the same.
	lim := diskcrypt.Limits{KDFWork: 3000 << 10}
	if _, err := (luks.Format{}).Open(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("one"), lim); err != nil {
		t.Fatal(err)
	}
	if _, err := (luks.Format{}).Open(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("two"), lim); !errors.Is(err, diskcrypt.ErrLimit) {
		t.Fatal(err)
	}
}

func TestNullCipherOpensItself(t *testing.T) {
	m := sound(t, 2)
	metadata(set("cipher_null-ecb", "segments", "0", "encryption"))(m)
	v, err := luks.Format{}.Inspect(context.Background(), m.place())
	if err != nil || !strings.Contains(v.SelfOpening, "null cipher") || v.Unsupported != "" {
		t.Fatalf("%+v %v", v, err)
	}
	m = sound(t, 2)
	metadata(set("cipher_null-ecb", "keyslots", "0", "area", "encryption"))(m)
	if v, err = (luks.Format{}).Inspect(context.Background(), m.place()); err != nil || !strings.Contains(v.SelfOpening, "key slot 0") {
		t.Fatalf("%+v %v", v, err)
	}
	// It would open with anything: that must not count as a proof of a secret.
	if _, err := (luks.Format{}).Open(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("anything"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) {
		t.Fatal(err)
	}
}

func TestTokens(t *testing.T) {
	for _, c := range []struct {
		token, says, kind string
		portable, offline bool
	}{
		{`{"type":"luks2-keyring","keyslots":["0"],"key_description":"a:b\u0007"}`, `"a:b?"`, "passphrase", true, true},
		{`{"type":"systemd-tpm2","keyslots":["0"]}`, "TPM", "tpm", false, false},
		{`{"type":"systemd-fido2","keyslots":["0"]}`, "FIDO2", "fido2", true, true},
		{`{"type":"systemd-pkcs11","keyslots":["0"]}`, "smart card", "smart-card", true, true},
		{`{"type":"systemd-recovery","keyslots":["0"]}`, "recovery key", "passphrase", true, true},
		{`{"type":"luks2-ssh","keyslots":["0"]}`, "not known", "passphrase", false, true},
		{`{"type":"clevis","keyslots":["0"],"jwe":{"protected":"` + jwe(`{"clevis":{"pin":"tang","tang":{"url":"http://t1","adv":{}}}}`) + `"}}`, "tang servers http://t1", "network", false, false},
		{`{"type":"clevis","keyslots":["0"],"jwe":{"protected":"` + jwe(`{"clevis":{"pin":"tpm2"}}`) + `"}}`, "machine's TPM", "tpm", false, false},
		{`{"type":"clevis","keyslots":["0"],"jwe":{"protected":"` + jwe(`{"clevis":{"pin":"sss","sss":{"t":1,"jwe":["`+jwe(`{"clevis":{"pin":"tpm2"}}`)+`.a.b.c","`+jwe(`{"clevis":{"pin":"tang","tang":{"url":"http://t2"}}}`)+`.a.b.c"]}}}`) + `"}}`, "1 of 2 shares from the tang servers http://t2 and the machine's TPM", "network", false, false},
		{`{"type":"clevis","keyslots":["0"],"jwe":{"protected":"!"}}`, "clevis", "passphrase", false, true},
		{`{"type":"clevis","keyslots":["0"]}`, "clevis", "passphrase", false, true},
	} {
		t.Run(c.token, func(t *testing.T) {
			m := sound(t, 2)
			var token object
			if err := json.Unmarshal([]byte(c.token), &token); err != nil {
				t.Fatal(err)
			}
			metadata(set(token, "tokens", "0"))(m)
			v, err := luks.Format{}.Inspect(context.Background(), m.place())
			if err != nil || len(v.Tokens) != 1 {
				t.Fatalf("%+v %v", v, err)
			}
			got, p := v.Tokens[0], v.Protectors[0]
			if !strings.Contains(got.Meaning, c.says) || got.Portable != c.portable || p.Kind != c.kind || p.Offline != c.offline || got.Slots[0] != "slot-0" {
				t.Fatalf("%+v\n%+v", got, p)
			}
		})
	}
}

// TestFingerprintVectors pins docs/spec/fingerprints.md: these never change.
func TestFingerprintVectors(t *testing.T) {
	for _, version := range []int{1, 2} {
		m := fixed(t, version)
		v, err := luks.Format{}.Inspect(context.Background(), m.place())
		if err != nil {
			t.Fatal(err)
		}
		got := []string{v.Epoch, v.Protectors[0].Fingerprint, v.Protectors[0].AreaDigest, v.HeaderDigest}
		if version == 2 {
			got = append(got, v.Protectors[1].Fingerprint, v.Tokens[0].Digest)
		}
		want := vectors[version]
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("version %d:\n%s\nwant\n%s", version, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func FuzzInspect(f *testing.F) {
	// Without the zeroes at the end: the fuzzer works on small inputs only.
	add := func(b []byte) { f.Add(bytes.TrimRight(b, "\x00")) }
	for _, version := range []int{1, 2} {
		m := sound(f, version)
		add(m[:copySize])
		add(m[:592])
	}
	m := sound(f, 2)
	metadata(set(object{"mandatory": []any{"online-reencrypt-v2"}}, "config", "requirements"))(m)
	add(m[:copySize])
	clear(m[:copySize])
	add(m[:2*copySize])
	f.Fuzz(func(t *testing.T, b []byte) {
		// A device longer than its content, and checksums made right, so that
		// the fuzzer reaches what lies behind them.
		m := make(memory, 256<<10)
		copy(m, b)
		for _, fix := range []bool{false, true} {
			if fix {
				luksformat.Checksum(m[:copySize])
				luksformat.Checksum(m[copySize : 2*copySize])
			}
			v, err := luks.Format{}.Inspect(context.Background(), m.place())
			if err == nil && v == nil {
				t.Fatal("neither volume nor error")
			}
			if err != nil && !errors.Is(err, diskcrypt.ErrNotThisFormat) && !errors.Is(err, diskcrypt.ErrDamaged) {
				t.Fatal(err)
			}
			o, err := luks.Format{}.Open(context.Background(), m.place(), diskcrypt.KindPassphrase, pass("x"), diskcrypt.Limits{KDFMemory: 1 << 20, KDFWork: 4 << 20})
			if err == nil {
				_, _ = o.ReadAt(make([]byte, 5000), 100)
				o.Close()
			}
			_, _ = luks.Format{}.ExportHeader(context.Background(), m.place(), &bytes.Buffer{})
		}
	})
}
