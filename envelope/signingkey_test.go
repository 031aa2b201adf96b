package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestSigningKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "prover.key")
	key, err := GenerateSigningKey(RoleProver)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSigningKeyFile(path, key); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSigningKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.ID() != key.ID() || got.Role() != RoleProver || !got.seed.Equal(key.seed) {
		t.Errorf("read %v, wrote %v", got, key)
	}
	if err := WriteSigningKeyFile(path, key); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting: %v", err)
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o610, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSigningKeyFile(path); !errors.Is(err, ErrKeyFileOpen) {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestSigningKeyFileRefusesEveryFlippedBit(t *testing.T) {
	text, err := EncodeSigningKey(testSigningKey(t, RoleWriter, 9))
	if err != nil {
		t.Fatal(err)
	}
	for i := range text.Len() {
		for bit := range 8 {
			flipped := CopySecret(text.Expose())
			flipped.Expose()[i] ^= 1 << bit
			if k, err := ParseSigningKey(flipped); err == nil && k.ID() == testSigningKey(t, RoleWriter, 9).ID() {
				t.Errorf("byte %d bit %d: accepted", i, bit)
			} else if err == nil {
				t.Errorf("byte %d bit %d: accepted as another key", i, bit)
			}
		}
	}
	for name, bad := range map[string]string{
		"leading text":  "x\n" + string(text.Expose()),
		"trailing text": string(text.Expose()) + "\n",
		"CRLF":          strings.ReplaceAll(string(text.Expose()), "\n", "\r\n"),
		"too long":      string(text.Expose()) + strings.Repeat(" ", 5000),
	} {
		if _, err := ParseSigningKey(NewSecret([]byte(bad))); !errors.Is(err, ErrKeyFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	key := testSigningKey(t, RoleWriter, 0xa7)
	secret := NewSecret([]byte("correct horse battery"))
	var log bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&log, nil))
	logger.Info("x", "key", key, "secret", secret)
	plain, err := json.Marshal(map[string]any{"k": key, "s": secret, "p": &key})
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(plain)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		out += fmt.Sprintf(verb+verb+verb+verb, key, &key, secret, []any{key, secret})
	}
	seed := key.seed.Expose()
	for _, leak := range []string{
		string(seed[:8]), hex.EncodeToString(seed[:8]), base64.StdEncoding.EncodeToString(seed[:9]), "167 167",
		"correct", hex.EncodeToString([]byte("correct")), base64.StdEncoding.EncodeToString([]byte("correct h")), "99 111 114",
	} {
		if strings.Contains(out, leak) {
			t.Errorf("%q leaks in %s", leak, out)
		}
	}
	if !strings.Contains(out, string(key.ID())) || !strings.Contains(out, "writer key") {
		t.Errorf("key is not named in %s", out)
	}
}

func TestPublicKeyLine(t *testing.T) {
	key := testSigningKey(t, RoleCustodian, 5).Public()
	got, err := ParsePublicKey(key.String())
	if err != nil || got.ID != key.ID || got.Role != key.Role || !bytes.Equal(got.Key, key.Key) {
		t.Errorf("got %v, %v", got, err)
	}
	line := key.String()
	for name, bad := range map[string]string{
		"empty":           "",
		"other version":   strings.Replace(line, "-v1:", "-v2:", 1),
		"unknown role":    strings.Replace(line, "custodian", "king", 1),
		"upper case":      "lockstep-key-v1:custodian:" + strings.ToUpper(hex.EncodeToString(key.Key)),
		"too short":       line[:len(line)-2],
		"not hex":         line[:len(line)-1] + "g",
		"something after": line + " ",
	} {
		if _, err := ParsePublicKey(bad); !errors.Is(err, ErrPublicKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Seed and public key of RFC 8032, section 7.1, test 1.
func TestSigningKeyVector(t *testing.T) {
	seed, _ := hex.DecodeString("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
	key, err := NewSigningKey(RoleWriter, NewSecret(seed))
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(key.Public().Key); got != "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a" {
		t.Errorf("public key %s", got)
	}
	_, sig, err := key.Sign(nil)
	want := "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
	if err != nil || hex.EncodeToString(sig) != want {
		t.Errorf("signature %x, %v", sig, err)
	}
}

func TestVerifySignature(t *testing.T) {
	writer, prover := testSigningKey(t, RoleWriter, 1), testSigningKey(t, RoleProver, 2)
	id, sig, err := writer.Sign([]byte("message"))
	if err != nil {
		t.Fatal(err)
	}
	if err := (KeySet{writer.Public()}).VerifySignature(id, []byte("message"), sig); err != nil {
		t.Error(err)
	}
	renamed := prover.Public()
	renamed.ID = writer.ID()
	for name, err := range map[string]error{
		"other message": KeySet{writer.Public()}.VerifySignature(id, []byte("massage"), sig),
		"other key":     KeySet{prover.Public()}.VerifySignature(string(prover.ID()), []byte("message"), sig),
		"unknown key":   KeySet{prover.Public()}.VerifySignature(id, []byte("message"), sig),
		"false ID":      KeySet{renamed}.VerifySignature(id, []byte("message"), sig),
		"no key":        KeySet{}.VerifySignature(id, []byte("message"), sig),
	} {
		if !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzKeyFile(f *testing.F) {
	for _, role := range []string{RoleWriter, RoleProver, RoleCustodian} {
		text, err := EncodeSigningKey(testSigningKey(f, role, 9))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text.Expose())
	}
	f.Add([]byte("-----BEGIN LOCKSTEP SIGNING KEY-----\nRole: writer\n\n-----END LOCKSTEP SIGNING KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseSigningKey(CopySecret(text))
		if err != nil {
			return
		}
		again, err := EncodeSigningKey(key)
		if err != nil || !bytes.Equal(again.Expose(), text) {
			t.Errorf("accepted a file that is not canonical: %v", err)
		}
	})
}
