package envelope

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"filippo.io/age"
)

func TestSealToRecipients(t *testing.T) {
	for name, generate := range map[string]func() (Secret, string, error){
		"x25519": GenerateIdentity, "hybrid": GenerateHybridIdentity,
	} {
		t.Run(name, func(t *testing.T) {
			id, recipient, err := generate()
			if err != nil {
				t.Fatal(err)
			}
			other, second, err := generate()
			if err != nil {
				t.Fatal(err)
			}
			sealed, err := SealToRecipients([]byte("package"), []string{recipient, second})
			if err != nil {
				t.Fatal(err)
			}
			text := NewSecret([]byte("# kit of 2026\n\n" + string(other.Expose()) + "\r\n"))
			for _, ids := range []Secret{id, text} {
				if got, err := OpenWithIdentities(sealed, ids); err != nil || string(got.Expose()) != "package" {
					t.Errorf("open: %v", err)
				}
			}
			if got, err := RecipientsOf(id); err != nil || len(got) != 1 || got[0] != recipient {
				t.Errorf("recipients %v, %v", got, err)
			}
			stranger, _, err := GenerateIdentity()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := OpenWithIdentities(sealed, stranger); !errors.Is(err, ErrNoIdentity) {
				t.Errorf("stranger: %v", err)
			}
			for i := range sealed {
				flipped := bytes.Clone(sealed)
				flipped[i] ^= 1
				if _, err := OpenWithIdentities(flipped, id); err == nil {
					t.Errorf("byte %d flipped: opened", i)
				}
			}
			if _, err := OpenWithIdentities(sealed[:len(sealed)-1], id); !errors.Is(err, ErrSealed) {
				t.Errorf("cut: %v", err)
			}
		})
	}
}

func TestSealRefusals(t *testing.T) {
	_, x, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	_, pq, err := GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SealToRecipients(nil, nil); !errors.Is(err, ErrRecipient) {
		t.Errorf("no recipient: %v", err)
	}
	if _, err := SealToRecipients(nil, []string{x[:len(x)-1]}); !errors.Is(err, ErrRecipient) {
		t.Errorf("cut recipient: %v", err)
	}
	if _, err := SealToRecipients(nil, []string{x, pq}); err == nil {
		t.Error("both kinds in one file: sealed")
	}
	if _, err := SealToRecipients(make([]byte, MaxSealed+1), []string{x}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := CheckRecipient(pq); err != nil {
		t.Error(err)
	}
}

func TestIdentityErrorsDoNotQuote(t *testing.T) {
	id, _, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	broken := strings.Replace(string(id.Expose()), "1", "1Q", 1)
	_, err = OpenWithIdentities(nil, NewSecret([]byte("# x\n"+broken)))
	if !errors.Is(err, ErrIdentity) || strings.Contains(err.Error(), broken[20:30]) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v", err)
	}
	if _, err := OpenWithIdentities(nil, NewSecret([]byte("# nothing"))); !errors.Is(err, ErrIdentity) {
		t.Errorf("no identity: %v", err)
	}
}

func TestOpenBoundsPlaintext(t *testing.T) {
	id, _, err := GenerateIdentity()
	if err != nil {
		t.Fatal(err)
	}
	identity, err := age.ParseX25519Identity(string(id.Expose()))
	if err != nil {
		t.Fatal(err)
	}
	var big bytes.Buffer
	w, err := age.Encrypt(&big, identity.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, MaxSealed+1)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenWithIdentities(big.Bytes(), id); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestSealWithPassphrase(t *testing.T) {
	passphrase := NewSecret([]byte("correct horse"))
	sealed, err := SealWithPassphrase([]byte("kek"), passphrase, 4)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := OpenWithPassphrase(sealed, passphrase); err != nil || string(got.Expose()) != "kek" {
		t.Errorf("open: %v", err)
	}
	if _, err := OpenWithPassphrase(sealed, NewSecret([]byte("wrong"))); !errors.Is(err, ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	hostile := bytes.Replace(sealed, []byte(" 4\n"), []byte(" 21\n"), 1)
	if _, err := OpenWithPassphrase(hostile, passphrase); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "work factor") {
		t.Errorf("work factor 21: %v", err)
	}
	if _, err := SealWithPassphrase(nil, passphrase, MaxWorkFactor+1); err == nil {
		t.Error("sealed with a work factor that no reader accepts")
	}
	if _, err := SealWithPassphrase(nil, Secret{}, 4); err == nil {
		t.Error("sealed under an empty passphrase")
	}
}
