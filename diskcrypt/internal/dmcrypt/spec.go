package dmcrypt

import (
	"errors"
	"fmt"
	"strings"
)

// ErrUnsupported marks a cipher string that is understood to be one, and not offered here.
var ErrUnsupported = errors.New("cipher not supported")

// Spec is a parsed cipher string.
type Spec struct {
	Name string // "aes", "serpent", "twofish", "xchacha12,aes", "cipher_null"
	Mode string // "xts", "cbc", "adiantum"; "" for the null cipher
	IV   string // "plain64", "essiv:sha256"; "" for the null cipher
}

// ivs are the IVs of each mode. The combinations that are left out are those
// that nobody should have made, or that need more than a sector number.
var ivs = map[string][]string{
	"xts":      {"plain", "plain64", "plain64be", "essiv:sha256", "benbi", "null"},
	"cbc":      {"plain", "plain64", "plain64be", "essiv:sha256", "benbi", "null", "eboiv"},
	"adiantum": {"plain", "plain64", "plain64be", "null"},
}

// refused says why of what people meet in the field.
var refused = []struct{ part, why string }{
	{"lrw", "LRW is a legacy mode, superseded by XTS"},
	{"lmk", "loop-AES volumes are not read"},
	{"tcw", "TrueCrypt's old CBC volumes are not read"},
	{"random", "random IVs belong to authenticated encryption, which is not read"},
	{"authenc", "authenticated encryption is not read"},
	{"gcm", "authenticated encryption is not read"},
	{"ccm", "authenticated encryption is not read"},
	{"aegis", "authenticated encryption is not read"},
	{"morus", "authenticated encryption is not read"},
	{"poly1305", "authenticated encryption is not read"},
	{"ecb", "ECB shows which blocks are equal, and is not read"},
	{"elephant", "BitLocker's diffuser belongs to BitLocker volumes"},
	{"paes", "keys of this kind are bound to the machine"},
	{"camellia", "there is no implementation of Camellia here"},
	{"aria", "there is no implementation of ARIA here"},
	{"sm4", "there is no implementation of SM4 here"},
}

// ParseSpec reads "cipher-mode-iv", or the kernel's "capi:mode(cipher)-iv".
// ErrUnsupported for what Cipher does not do.
func ParseSpec(s string) (Spec, error) {
	spec := split(strings.ToLower(s))
	if spec.Null() {
		return spec, nil
	}
	known := false
	switch spec.Mode {
	case "xts", "cbc":
		known = blocks[spec.Name] != nil
	case "adiantum":
		known = rounds[spec.Name] != 0
	}
	if known {
		for _, iv := range ivs[spec.Mode] {
			if spec.IV == iv {
				return spec, nil
			}
		}
	}
	for _, r := range refused {
		if strings.Contains(strings.ToLower(s), r.part) {
			return spec, fmt.Errorf("%w: %q: %s", ErrUnsupported, s, r.why)
		}
	}
	return spec, fmt.Errorf("%w: %q", ErrUnsupported, s)
}

func split(s string) Spec {
	if api, ok := strings.CutPrefix(s, "capi:"); ok {
		return splitAPI(api)
	}
	parts := strings.SplitN(s, "-", 3)
	spec := Spec{Name: parts[0]}
	if len(parts) > 1 {
		spec.Mode = parts[1]
	}
	if len(parts) > 2 {
		spec.IV = parts[2]
	}
	return spec
}

// splitAPI reads "xts(aes)-plain64", "essiv(cbc(aes),sha256)-plain64",
// "adiantum(xchacha12,aes)-plain64". What does not fit gives a Spec that
// nothing supports.
func splitAPI(s string) Spec {
	end := strings.LastIndexByte(s, ')')
	if end < 0 {
		return Spec{}
	}
	iv, ok := strings.CutPrefix(s[end+1:], "-")
	if !ok {
		return Spec{}
	}
	mode, name, ok := strings.Cut(s[:end], "(")
	if !ok {
		return Spec{}
	}
	if mode == "essiv" {
		inner, hash, ok := strings.Cut(name, "),")
		if mode, name, _ = strings.Cut(inner, "("); !ok || iv != "plain64" {
			return Spec{}
		}
		iv = "essiv:" + hash
	}
	if strings.HasPrefix(iv, "essiv") && iv == s[end+2:] {
		return Spec{} // cipher_api names ESSIV by a template only
	}
	return Spec{Name: name, Mode: mode, IV: iv}
}

// Null reports a cipher that does not encrypt.
func (s Spec) Null() bool { return s.Name == "cipher_null" || s.Name == "null" }

// KeySizeOK reports whether keyBytes is a key size of this cipher.
func (s Spec) KeySizeOK(keyBytes int) bool {
	switch {
	case s.Null():
		return keyBytes >= 0
	case s.Mode == "adiantum":
		return keyBytes == 32
	case s.Mode == "xts":
		return keyBytes == 32 || keyBytes == 48 || keyBytes == 64
	}
	return keyBytes == 16 || keyBytes == 24 || keyBytes == 32
}
