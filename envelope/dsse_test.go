package envelope

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	judgedsse "github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

const statementType = "application/vnd.lockstep.test+json"

func testSigningKey(tb testing.TB, role string, fill byte) SigningKey {
	tb.Helper()
	k, err := NewSigningKey(role, NewSecret(bytes.Repeat([]byte{fill}, 32)))
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// theirs is our key seen by the independent implementation.
type theirs struct {
	key    SigningKey
	public ed25519.PublicKey
}

func (s theirs) Sign(_ context.Context, data []byte) ([]byte, error) {
	_, sig, err := s.key.Sign(data)
	return sig, err
}

func (s theirs) Verify(_ context.Context, data, sig []byte) error {
	if !ed25519.Verify(s.public, data, sig) {
		return errors.New("signature differs")
	}
	return nil
}
func (s theirs) KeyID() (string, error)   { return string(IDOfKey(s.public)), nil }
func (s theirs) Public() crypto.PublicKey { return s.public }

func TestDSSEAgainstSecureSystemsLab(t *testing.T) {
	key := testSigningKey(t, RoleProver, 3)
	peer := theirs{key, key.Public().Key}
	for _, payload := range []string{"", "{}", "hello world", strings.Repeat("\x00\xff", 40000)} {
		t.Run(fmt.Sprint(len(payload)), func(t *testing.T) {
			if got, want := PAE(statementType, []byte(payload)), judgedsse.PAE(statementType, []byte(payload)); !bytes.Equal(got, want) {
				t.Errorf("PAE %q, want %q", got, want)
			}
			raw, err := Sign(statementType, []byte(payload), key)
			if err != nil {
				t.Fatal(err)
			}
			var env judgedsse.Envelope
			if err := json.Unmarshal(raw, &env); err != nil {
				t.Fatal(err)
			}
			verifier, err := judgedsse.NewEnvelopeVerifier(peer)
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := verifier.Verify(t.Context(), &env)
			if err != nil || len(accepted) != 1 {
				t.Errorf("the judge refuses ours: %v", err)
			}
			if content, err := env.DecodeB64Payload(); err != nil || string(content) != payload {
				t.Errorf("the judge reads another payload: %v", err)
			}
			judge.Decided(t, "go-securesystemslib dsse verify")

			signer, err := judgedsse.NewEnvelopeSigner(peer)
			if err != nil {
				t.Fatal(err)
			}
			theirEnv, err := signer.SignPayload(t.Context(), statementType, []byte(payload))
			if err != nil {
				t.Fatal(err)
			}
			theirRaw, err := json.Marshal(theirEnv)
			if err != nil {
				t.Fatal(err)
			}
			content, id, err := Verify(theirRaw, statementType, KeySet{key.Public()})
			if err != nil || id != key.ID() || string(content) != payload {
				t.Errorf("we refuse the judge's: %v", err)
			}
			judge.Decided(t, "go-securesystemslib dsse sign")
		})
	}
}

// The vector of DSSE's protocol document.
func TestPAEVector(t *testing.T) {
	want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"
	if got := string(PAE("http://example.com/HelloWorld", []byte("hello world"))); got != want {
		t.Errorf("PAE %q, want %q", got, want)
	}
}

func TestVerifyRefusals(t *testing.T) {
	writer, prover := testSigningKey(t, RoleWriter, 1), testSigningKey(t, RoleProver, 2)
	keys := KeySet{writer.Public(), prover.Public()}
	raw, err := Sign(statementType, []byte("payload"), prover)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	sub := func(old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	payload := base64.StdEncoding.EncodeToString([]byte("payload"))
	forged := keys[0]
	forged.ID = prover.ID()
	many := sub(`"signatures":[`, `"signatures":[`+strings.Repeat(`{"sig":"AA=="},`, 64))
	for _, c := range []struct {
		name, raw, payloadType string
		keys                   KeySet
		want                   error
	}{
		{"other type asked for", text, "application/other", keys, ErrPayloadType},
		{"signer not of the role", text, statementType, keys.WithRole(RoleWriter), ErrSignature},
		{"no keys", text, statementType, nil, ErrSignature},
		{"key with a false ID", text, statementType, KeySet{forged}, ErrPublicKey},
		{"payload changed", sub(payload, "cGF5bG9hZQ=="), statementType, keys, ErrSignature},
		{"payload type changed in place", sub("vnd.lockstep.test", "vnd.lockstep.text"), "application/vnd.lockstep.text+json", keys, ErrSignature},
		{"key ID of another key", sub(string(prover.ID()), string(writer.ID())), statementType, keys, ErrSignature},
		{"field in another case", sub(`"payload":`, `"Payload":`), statementType, keys, ErrDSSE},
		{"field twice", sub(`"payload":`, `"payload":"eA==","payload":`), statementType, keys, ErrDSSE},
		{"field null", sub(`"`+payload+`"`, `null`), statementType, keys, ErrDSSE},
		{"payload missing", sub(`"payload":"`+payload+`",`, ``), statementType, keys, ErrDSSE},
		{"signatures missing", `{"payloadType":"x","payload":""}`, "x", keys, ErrDSSE},
		{"no signature", `{"payloadType":"x","payload":"","signatures":[]}`, "x", keys, ErrSignature},
		{"65 signatures", many, statementType, keys, ErrDSSE},
		{"something follows", text + "{}", statementType, keys, ErrDSSE},
		{"line break in base64", sub(payload, payload[:4]+`\n`+payload[4:]), statementType, keys, ErrDSSE},
		{"padding bits set", sub(payload, "cGF5bG9hZB=="), statementType, keys, ErrDSSE},
		{"invalid UTF-8", sub(`"payload"`, "\"x\":\"\xff\",\"payload\""), statementType, keys, ErrDSSE},
		{"cut", text[:len(text)-1], statementType, keys, ErrDSSE},
		{"empty", "", statementType, keys, ErrDSSE},
		{"too large", text + strings.Repeat(" ", MaxDSSE), statementType, keys, ErrDSSE},
		{"a list", "[]", statementType, keys, ErrDSSE},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, _, err := Verify([]byte(c.raw), c.payloadType, c.keys); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestVerifyAccepts(t *testing.T) {
	writer, prover := testSigningKey(t, RoleWriter, 1), testSigningKey(t, RoleProver, 2)
	content := []byte{0xfb, 0xff, 0xfe} // "+//+" and "-__-"
	raw, err := Sign(statementType, content, writer, prover)
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for _, c := range []struct {
		name, raw string
		keys      KeySet
		signer    KeyID
	}{
		{"first signer", text, KeySet{writer.Public()}, writer.ID()},
		{"second signer", text, KeySet{prover.Public()}, prover.ID()},
		{"unknown field", strings.Replace(text, `{`, `{"later":{"payload":1},`, 1), KeySet{prover.Public()}, prover.ID()},
		{"no key ID", strings.Replace(text, string(prover.ID()), "", 1), KeySet{writer.Public(), prover.Public()}[1:], prover.ID()},
		{"URL-safe base64", strings.Replace(text, "+//+", "-__-", 1), KeySet{prover.Public()}, prover.ID()},
		{"white space", " " + strings.ReplaceAll(text, ",", " ,\n") + "\n", KeySet{prover.Public()}, prover.ID()},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, id, err := Verify([]byte(c.raw), statementType, c.keys)
			if err != nil || id != c.signer || !bytes.Equal(got, content) {
				t.Errorf("got %x by %s, %v", got, id, err)
			}
		})
	}
}

func FuzzDSSEVerify(f *testing.F) {
	key := testSigningKey(f, RoleWriter, 1)
	keys := KeySet{key.Public()}
	raw, err := Sign(statementType, []byte("payload"), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"payloadType":"x","payload":"","signatures":[{"sig":""}]}`))
	f.Add([]byte(`{"signatures":[[[[`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		payload, id, err := Verify(raw, statementType, keys)
		if err == nil && (string(payload) != "payload" || id != key.ID()) {
			t.Errorf("accepted %q by %s", payload, id)
		}
		if s, err := ParseDSSE(raw); err == nil && len(s.Signatures) > maxSignatures {
			t.Error("too many signatures")
		}
	})
}
