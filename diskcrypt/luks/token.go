package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
)

// supplier is what a token means for the slots it lists.
type supplier struct {
	meaning  string
	portable bool
	kind     string // of the protector, "" to leave it a passphrase
}

// tokens describes the tokens and marks the protectors whose secret only a
// token can supply.
func (v *volume) tokens(protectors []diskcrypt.Protector) []diskcrypt.Token {
	var out []diskcrypt.Token
	for _, t := range v.h.Tokens {
		s := meaningOf(t)
		sum := sha256.Sum256(header.Canonical(t.Raw))
		token := diskcrypt.Token{
			ID: strconv.Itoa(t.Number), Type: t.Type, Digest: "sha256:" + hex.EncodeToString(sum[:]),
			Meaning: s.meaning, Portable: s.portable,
		}
		for _, n := range t.Slots {
			id := slotID(n)
			token.Slots = append(token.Slots, id)
			for i := range protectors {
				p := &protectors[i]
				if p.ID != id || s.kind == "" || p.Kind != kindPassphrase {
					continue
				}
				p.Kind, p.Offline = s.kind, s.portable
				p.Note = strings.TrimPrefix(p.Note+"; "+s.meaning, "; ")
			}
		}
		out = append(out, token)
	}
	return out
}

// luksMetaBytes are the head of a LUKSMeta area and its table of eight slots.
const luksMetaBytes = 16 + 8*32

// clevisUUID marks what clevis keeps for a slot in a LUKSMeta area.
var clevisUUID = []byte{0xcb, 0x6e, 0x89, 0x04, 0x81, 0xff, 0x40, 0xda, 0xa8, 0x4a, 0x07, 0xab, 0x9a, 0xb5, 0x71, 0x5e}

// luksMeta is what clevis keeps behind the key slots of LUKS1, which has no tokens.
func (v *volume) luksMeta(protectors []diskcrypt.Protector) []diskcrypt.Token {
	at := luks1BackupSize(v.h)
	b := make([]byte, luksMetaBytes)
	if v.h.Version != 1 || at > v.h.Extent-luksMetaBytes {
		return nil
	}
	if n, _ := v.head.ReadAt(b, at); n < len(b) || !bytes.HasPrefix(b, []byte("LUKSMETA")) {
		return nil
	}
	sum := sha256.Sum256(b)
	token := diskcrypt.Token{
		ID: "luksmeta", Type: "luksmeta", Digest: "sha256:" + hex.EncodeToString(sum[:]),
		Meaning: "LUKSMeta behind the key slots: something else may supply a passphrase",
	}
	for i := range 8 {
		if !bytes.HasPrefix(b[16+32*i:], clevisUUID) {
			continue
		}
		id := slotID(i)
		token.Type, token.Slots = "clevis", append(token.Slots, id)
		token.Meaning = "clevis, in LUKSMeta: a tang server or the machine's TPM supplies the passphrase; elsewhere it may not be to be had"
		for j := range protectors {
			if p := &protectors[j]; p.ID == id {
				p.Offline = false
				p.Note = strings.TrimPrefix(p.Note+"; "+token.Meaning, "; ")
			}
		}
	}
	return []diskcrypt.Token{token}
}

// meaningOf reads the types that systemd, clevis and cryptsetup document.
func meaningOf(t header.Token) supplier {
	switch t.Type {
	case "luks2-keyring":
		return supplier{fmt.Sprintf("the passphrase is taken from the kernel keyring, key %q; elsewhere it must be given", member(t.Raw, "key_description")), true, ""}
	case "systemd-tpm2":
		return supplier{"sealed to the machine's TPM" + withPIN(t) + ": opens only there, not on a restored machine", false, "tpm"}
	case "systemd-fido2":
		return supplier{"needs the FIDO2 security key it was enrolled with", true, "fido2"}
	case "systemd-pkcs11":
		return supplier{"needs the smart card or token it was enrolled with", true, "smart-card"}
	case "systemd-recovery":
		return supplier{"recovery key that was shown once to the user", true, ""}
	case "clevis":
		return clevis(jwePins(t.Raw["jwe"], 0))
	}
	return supplier{"not known: something else may supply the passphrase", false, ""}
}

// withPIN says that the TPM asks for a PIN too.
func withPIN(t header.Token) string {
	if pin, _ := t.Raw["tpm2-pin"].(bool); pin {
		return " and a PIN"
	}
	return ""
}

func member(m map[string]any, name string) string {
	s, _ := m[name].(string)
	if len(s) > 200 {
		s = s[:200]
	}
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, s)
}

// pins are what a clevis token asks for, inside a threshold too.
type pins struct {
	tang      []string // server addresses
	tpm       bool
	other     []string
	threshold int // 0: no sharing
	shares    int
}

const maxJWEDepth = 4

// jwePins reads the protected headers of a JWE, object or compact, and of
// those nested in an sss pin.
func jwePins(jwe any, depth int) pins {
	var p pins
	if depth > maxJWEDepth {
		return p
	}
	var encoded string
	switch j := jwe.(type) {
	case map[string]any:
		encoded, _ = j["protected"].(string)
	case string:
		encoded, _, _ = strings.Cut(j, ".")
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(encoded, "="))
	if err != nil {
		return p
	}
	var head struct {
		Clevis struct {
			Pin  string `json:"pin"`
			Tang struct {
				URL string `json:"url"`
			} `json:"tang"`
			SSS struct {
				T   int   `json:"t"`
				JWE []any `json:"jwe"`
			} `json:"sss"`
		} `json:"clevis"`
	}
	if json.Unmarshal(raw, &head) != nil {
		return p
	}
	switch c := head.Clevis; c.Pin {
	case "tang":
		p.tang = append(p.tang, member(map[string]any{"url": c.Tang.URL}, "url"))
	case "tpm2":
		p.tpm = true
	case "sss":
		p.threshold, p.shares = c.SSS.T, len(c.SSS.JWE)
		for _, share := range c.SSS.JWE[:min(len(c.SSS.JWE), 16)] {
			q := jwePins(share, depth+1)
			p.tang = append(p.tang, q.tang...)
			p.tpm = p.tpm || q.tpm
			p.other = append(p.other, q.other...)
		}
	default:
		p.other = append(p.other, member(map[string]any{"pin": c.Pin}, "pin"))
	}
	return p
}

func clevis(p pins) supplier {
	var parts []string
	if len(p.tang) > 0 {
		slices.Sort(p.tang)
		parts = append(parts, "the tang servers "+strings.Join(slices.Compact(p.tang), ", "))
	}
	if p.tpm {
		parts = append(parts, "the machine's TPM")
	}
	for _, o := range p.other {
		parts = append(parts, fmt.Sprintf("the clevis pin %q", o))
	}
	if len(parts) == 0 {
		return supplier{"clevis: cannot tell from what it takes the passphrase", false, ""}
	}
	how := "needs "
	if p.threshold > 0 {
		how = fmt.Sprintf("needs %d of %d shares from ", p.threshold, p.shares)
	}
	kind := ""
	switch {
	case len(p.tang) > 0:
		kind = "network"
	case p.tpm:
		kind = "tpm"
	}
	return supplier{how + strings.Join(parts, " and "), false, kind}
}
