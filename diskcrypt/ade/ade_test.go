package ade_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"hash"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/ade"
)

// show is a secret as "az keyvault secret show" prints it.
func show(t *testing.T, value, contentType string, tags map[string]string) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{
		"attributes": map[string]any{"enabled": true}, "contentType": contentType,
		"id":    "https://vault.example/secrets/0123/4567",
		"value": value, "tags": tags,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var (
	bek    = append([]byte{0x9c, 0, 0, 0, 1, 0, 0, 0}, bytes.Repeat([]byte{0xa5}, 148)...)
	random = bytes.Repeat([]byte{0xfb, 7, 0xff}, 43)[:127]
	// The Linux extension's: 127 random bytes as text.
	passphrase = base64.StdEncoding.EncodeToString(random)

	windowsTags = map[string]string{"DiskEncryptionKeyFileName": "0123.BEK", "VolumeLetter": `C:\`}
	linuxTags   = map[string]string{"DiskEncryptionKeyFileName": "LinuxPassPhraseFileName", "MachineName": "web01"}
)

func with(tags map[string]string, pairs ...string) map[string]string {
	out := map[string]string{"DiskEncryptionKeyEncryptionKeyURL": "https://vault.example/keys/kek/1"}
	for k, v := range tags {
		out[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = pairs[i+1]
	}
	return out
}

func TestDecode(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(k *rsa.PrivateKey) []byte {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
	}
	pkcs1 := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	oaep := func(h hash.Hash, plain []byte) string {
		b, err := rsa.EncryptOAEP(h, rand.Reader, &key.PublicKey, plain, nil)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	//lint:ignore SA1019 some vaults wrap so
	old, err := rsa.EncryptPKCS1v15(rand.Reader, &key.PublicKey, bek)
	if err != nil {
		t.Fatal(err)
	}
	if len(passphrase) != 172 {
		t.Fatalf("passphrase of %d characters", len(passphrase))
	}
	twice := base64.StdEncoding.EncodeToString([]byte(passphrase))

	for _, c := range []struct {
		name string
		text []byte
		kek  []byte
		kind diskcrypt.Kind
		want []string
		err  error
	}{
		{"windows", show(t, base64.StdEncoding.EncodeToString(bek), "BEK", windowsTags), nil, diskcrypt.KindStartupKey, []string{string(bek)}, nil},
		{"windows without tags", show(t, base64.StdEncoding.EncodeToString(bek), "BEK", nil), nil, diskcrypt.KindStartupKey, []string{string(bek)}, nil},
		{"linux", show(t, twice, "BEK", linuxTags), nil, diskcrypt.KindKeyFile, []string{passphrase, string(random)}, nil},
		{"linux, further disks", show(t, twice, "BEK", map[string]string{"DiskEncryptionKeyFileName": "LinuxPassPhraseFileName_1_0"}), nil, diskcrypt.KindKeyFile, []string{passphrase, string(random)}, nil},
		{"windows wrapped", show(t, oaep(sha1.New(), bek), "Wrapped BEK", with(windowsTags, "DiskEncryptionKeyEncryptionAlgorithm", "RSA-OAEP")), pkcs8(key), diskcrypt.KindStartupKey, []string{string(bek)}, nil},
		{"wrapped, OAEP-256, PKCS 1 key", show(t, oaep(sha256.New(), bek), "Wrapped BEK", with(windowsTags, "DiskEncryptionKeyEncryptionAlgorithm", "RSA-OAEP-256")), pkcs1, diskcrypt.KindStartupKey, []string{string(bek)}, nil},
		{"wrapped, RSA1_5", show(t, base64.RawURLEncoding.EncodeToString(old), "Wrapped BEK", with(windowsTags, "DiskEncryptionKeyEncryptionAlgorithm", "RSA1_5")), pkcs8(key), diskcrypt.KindStartupKey, []string{string(bek)}, nil},
		{"linux wrapped", show(t, oaep(sha1.New(), []byte(passphrase)), "Wrapped BEK", with(linuxTags)), pkcs8(key), diskcrypt.KindKeyFile, []string{passphrase, string(random)}, nil},
		{"linux wrapped, dual pass", show(t, oaep(sha1.New(), []byte(twice)[:190]), "Wrapped BEK", with(linuxTags)), pkcs8(key), diskcrypt.KindKeyFile, []string{twice[:190]}, nil},
		{"wrapped, no key", show(t, oaep(sha1.New(), bek), "Wrapped BEK", with(windowsTags)), nil, "", nil, ade.ErrWrapped},
		{"wrapped, another key", show(t, oaep(sha1.New(), bek), "Wrapped BEK", with(windowsTags)), pkcs8(other), "", nil, ade.ErrUnwrap},
		{"wrapped, another algorithm", show(t, oaep(sha256.New(), bek), "Wrapped BEK", with(windowsTags)), pkcs8(key), "", nil, ade.ErrUnwrap},
		{"unknown algorithm", show(t, oaep(sha1.New(), bek), "Wrapped BEK", with(windowsTags, "DiskEncryptionKeyEncryptionAlgorithm", "A256KW")), pkcs8(key), "", nil, diskcrypt.ErrUnsupported},
		{"no key in the PEM", show(t, oaep(sha1.New(), bek), "Wrapped BEK", with(windowsTags)), []byte("x"), "", nil, ade.ErrUnwrap},
		{"not base64", show(t, "!!", "BEK", linuxTags), nil, "", nil, ade.ErrForm},
		{"no value", []byte(`{"contentType":"BEK"}`), nil, "", nil, ade.ErrForm},
		{"no JSON", []byte(passphrase), nil, "", nil, ade.ErrForm},
	} {
		t.Run(c.name, func(t *testing.T) {
			forms, err := ade.Decode(c.text, c.kek)
			if !errors.Is(err, c.err) || err == nil != (c.err == nil) {
				t.Fatal(err)
			}
			if err != nil && strings.Contains(err.Error(), passphrase[:20]) {
				t.Error("the error holds the secret")
			}
			if len(forms) < len(c.want) {
				t.Fatalf("%d forms", len(forms))
			}
			for i, w := range c.want {
				if forms[i].Kind != c.kind || string(forms[i].Secret.Expose()) != w {
					t.Errorf("form %d is a %s of %d bytes", i, forms[i].Kind, forms[i].Secret.Len())
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"value":"QUJD","contentType":"BEK","tags":{"DiskEncryptionKeyFileName":"LinuxPassPhraseFileName"}}`), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text, kek []byte) {
		forms, err := ade.Decode(text, kek)
		if err == nil && len(forms) == 0 {
			t.Fatal("neither secret nor error")
		}
	})
}
