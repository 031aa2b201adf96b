package dmcrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/aead/serpent"
	"golang.org/x/crypto/twofish" //lint:ignore SA1019 a cipher of dm-crypt
	"golang.org/x/crypto/xts"
	"lukechampine.com/adiantum"
	"lukechampine.com/adiantum/hbsh"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

func seq(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// TestXTSAgainstXCrypto lets an implementation that is not ours decide every
// key size, sector size and a sector number beyond 32 bits.
func TestXTSAgainstXCrypto(t *testing.T) {
	for _, keyBytes := range []int{32, 64} {
		for _, size := range []int{512, 1024, 2048, 4096} {
			for _, unit := range []uint64{0, 8, 1<<32 + 16} {
				t.Run(fmt.Sprintf("%d/%d/%d", keyBytes*8, size, unit), func(t *testing.T) {
					key := seq(keyBytes)
					c, err := New("aes-xts-plain64", key, size)
					if err != nil {
						t.Fatal(err)
					}
					ref, err := xts.NewCipher(aes.NewCipher, key)
					if err != nil {
						t.Fatal(err)
					}
					plain := seq(4096 * 2)
					want := bytes.Clone(plain)
					for i := 0; i < len(want); i += size {
						ref.Encrypt(want[i:i+size], want[i:i+size], unit+uint64(i/512))
					}
					got := bytes.Clone(plain)
					c.Encrypt(got, unit)
					if !bytes.Equal(got, want) {
						t.Fatal("ciphertext differs from x/crypto/xts")
					}
					c.Decrypt(got, unit)
					if !bytes.Equal(got, plain) {
						t.Fatal("decrypting does not give the plaintext back")
					}
				})
			}
		}
	}
}

func TestCBCAgainstStandardLibrary(t *testing.T) {
	key := seq(32)
	salt := sha256.Sum256(key)
	essiv, _ := aes.NewCipher(salt[:])
	block, _ := aes.NewCipher(key)
	ivs := map[string]func(iv []byte, unit uint64){
		"plain":   func(iv []byte, u uint64) { binary.LittleEndian.PutUint32(iv, uint32(u)) },
		"plain64": func(iv []byte, u uint64) { binary.LittleEndian.PutUint64(iv, u) },
		"essiv:sha256": func(iv []byte, u uint64) {
			binary.LittleEndian.PutUint64(iv, u)
			essiv.Encrypt(iv, iv)
		},
	}
	for name, makeIV := range ivs {
		t.Run(name, func(t *testing.T) {
			c, err := New("aes-cbc-"+name, key, 512)
			if err != nil {
				t.Fatal(err)
			}
			plain := seq(2048)
			want := bytes.Clone(plain)
			unit := uint64(1<<32 + 3)
			for i := 0; i < len(want); i += 512 {
				iv := make([]byte, 16)
				makeIV(iv, unit+uint64(i/512))
				cipher.NewCBCEncrypter(block, iv).CryptBlocks(want[i:i+512], want[i:i+512])
			}
			got := bytes.Clone(plain)
			c.Encrypt(got, unit)
			if !bytes.Equal(got, want) {
				t.Fatal("ciphertext differs from crypto/cipher")
			}
			c.Decrypt(got, unit)
			if !bytes.Equal(got, plain) {
				t.Fatal("decrypting does not give the plaintext back")
			}
		})
	}
}

// TestEveryCipherModeAndIV holds each combination to the definition of its IV
// and to implementations of the mode that are not ours.
func TestEveryCipherModeAndIV(t *testing.T) {
	makers := map[string]func(key []byte) (cipher.Block, error){
		"aes": aes.NewCipher, "serpent": serpent.NewCipher,
		"twofish": func(key []byte) (cipher.Block, error) { return twofish.NewCipher(key) },
	}
	for name, maker := range makers {
		for _, mode := range []string{"xts", "cbc"} {
			for _, iv := range ivs[mode] {
				for _, size := range []int{512, 4096} {
					for _, large := range []bool{false, true} {
						for _, keyBytes := range []int{16, 24, 32} {
							unit := uint64(1<<32 - 16)
							if mode == "xts" {
								keyBytes *= 2
							}
							cipherString := name + "-" + mode + "-" + iv
							what := fmt.Sprintf("%s, %d-byte key, %d-byte sectors, large %v", cipherString, keyBytes, size, large)
							key := seq(keyBytes)
							var options []Option
							if large {
								options = append(options, IVLargeSectors)
							}
							c, err := New(cipherString, key, size, options...)
							if err != nil {
								t.Fatalf("%s: %v", what, err)
							}
							plain := seq(4096 * 6)
							want := bytes.Clone(plain)
							for i := 0; i < len(want); i += size {
								n := unit + uint64(i/512)
								if large {
									n /= uint64(size / 512)
								}
								reference(t, maker, mode, iv, key, want[i:i+size], n)
							}
							got := bytes.Clone(plain)
							c.Encrypt(got, unit)
							if !bytes.Equal(got, want) {
								t.Fatalf("%s: ciphertext differs", what)
							}
							c.Decrypt(got, unit)
							if !bytes.Equal(got, plain) {
								t.Fatalf("%s: decrypting does not give the plaintext back", what)
							}
							c.Wipe()
						}
					}
				}
			}
		}
	}
}

// reference encrypts one sector by the definition.
func reference(t *testing.T, maker func([]byte) (cipher.Block, error), mode, ivName string, key, sector []byte, n uint64) {
	t.Helper()
	must := func(b cipher.Block, err error) cipher.Block {
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	iv := make([]byte, 16)
	switch ivName {
	case "plain":
		binary.LittleEndian.PutUint32(iv, uint32(n))
	case "plain64":
		binary.LittleEndian.PutUint64(iv, n)
	case "plain64be":
		binary.BigEndian.PutUint64(iv[8:], n)
	case "benbi":
		binary.BigEndian.PutUint64(iv[8:], n*32+1)
	case "essiv:sha256":
		binary.LittleEndian.PutUint64(iv, n)
		salt := sha256.Sum256(key)
		must(maker(salt[:])).Encrypt(iv, iv)
	case "eboiv":
		binary.LittleEndian.PutUint64(iv, n*uint64(len(sector)))
		must(maker(key)).Encrypt(iv, iv)
	}
	if mode == "cbc" {
		cipher.NewCBCEncrypter(must(maker(key)), iv).CryptBlocks(sector, sector)
		return
	}
	data, tweak := must(maker(key[:len(key)/2])), must(maker(key[len(key)/2:]))
	tweak.Encrypt(iv, iv)
	for i := 0; i < len(sector); i += 16 {
		block := sector[i : i+16]
		subtle.XORBytes(block, block, iv)
		data.Encrypt(block, block)
		subtle.XORBytes(block, block, iv)
		carry := byte(0)
		for j := range iv {
			iv[j], carry = iv[j]<<1|carry, iv[j]>>7
		}
		iv[0] ^= carry * 0x87
	}
}

func TestAdiantum(t *testing.T) {
	for name, other := range map[string]func([]byte) *hbsh.HBSH{
		"xchacha12,aes-adiantum-plain64": adiantum.New, "xchacha20,aes-adiantum-plain64": adiantum.New20,
		"capi:adiantum(xchacha12,aes)-plain64": adiantum.New,
	} {
		for _, size := range []int{512, 4096} {
			key := seq(32)
			c, err := New(name, key, size)
			if err != nil {
				t.Fatal(err)
			}
			plain := seq(8192)
			want := bytes.Clone(plain)
			for i := 0; i < len(want); i += size {
				tweak := make([]byte, 32)
				binary.LittleEndian.PutUint64(tweak, 1<<33+uint64(i/512))
				copy(want[i:], other(key).Encrypt(bytes.Clone(want[i:i+size]), tweak))
			}
			got := bytes.Clone(plain)
			c.Encrypt(got, 1<<33)
			if !bytes.Equal(got, want) {
				t.Errorf("%s, %d: ciphertext differs", name, size)
			}
			if c.Decrypt(got, 1<<33); !bytes.Equal(got, plain) {
				t.Errorf("%s, %d: plaintext differs", name, size)
			}
		}
	}
}

// Names of the kernel's crypto API mean what the short ones do.
func TestAPINames(t *testing.T) {
	for long, short := range map[string]string{
		"capi:xts(aes)-plain64":               "aes-xts-plain64",
		"capi:xts(serpent)-plain64be":         "serpent-xts-plain64be",
		"capi:essiv(cbc(aes),sha256)-plain64": "aes-cbc-essiv:sha256",
		"capi:cbc(twofish)-plain":             "twofish-cbc-plain",
	} {
		a, err := ParseSpec(long)
		if err != nil {
			t.Errorf("%s: %v", long, err)
		}
		if b, _ := ParseSpec(short); a != b {
			t.Errorf("%s is %+v, %s is %+v", long, a, short, b)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, s := range []string{
		"camellia-xts-plain64", "aes-lrw-plain64", "aes-lrw-benbi", "aes-xts-essiv:wp256", "aes-xts-random", "aes-xts-eboiv",
		"aes-cbc-lmk", "aes:64-cbc-lmk", "aes-cbc-tcw", "aes-cbc-elephant", "aegis128-random", "aes-gcm-random", "aes-ccm-random",
		"capi:authenc(hmac(sha256),xts(aes))-plain64", "capi:rfc7539(chacha20,poly1305)-random", "xchacha12,aes-xts-plain64",
		"aes-adiantum-plain64", "xchacha12,aes-adiantum-essiv:sha256", "xchacha8,aes-adiantum-plain64", "paes-xts-plain64",
		"capi:essiv(cbc(aes),sha256)-essiv:sha256", "capi:xts(aes)", "capi:(", "capi:)-", "capi:xts(aes)-essiv:sha256",
		"aes", "aes-ecb", "", "-", "aes-xts", "capi:",
	} {
		if _, err := New(s, seq(64), 512); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v, want ErrUnsupported", s, err)
		}
	}
	if _, err := New("aes-lrw-benbi", seq(64), 512); !strings.Contains(fmt.Sprint(err), "LRW") {
		t.Errorf("LRW is not refused by name: %v", err)
	}
	for s, n := range map[string]int{"aes-xts-plain64": 31, "serpent-cbc-plain64": 64, "xchacha12,aes-adiantum-plain64": 64} {
		if _, err := New(s, seq(n), 512); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s, %d-byte key: %v", s, n, err)
		}
	}
	if _, err := New("aes-xts-plain64", seq(64), 8192); err == nil {
		t.Error("sector size 8192 accepted")
	}
}

// TestFixtures reads what the kernel wrote with each cipher, by the volume key.
func TestFixtures(t *testing.T) {
	folder := filepath.Join(judge.Fixtures(t), "luks")
	for name, offset := range map[string]int64{
		"luks2-serpent-xts-512-ext4": 2048 * 512, "luks1-twofish-xts-256-ripemd160-ext4": 4096 * 512,
		"luks2-aes-cbc-essiv-256-ext4": 2048 * 512,
	} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(folder, name+".txt"))
			if err != nil {
				judge.Missing(t, "fixture "+name)
			}
			// PT size sha256; then the table of the device, and its key.
			m := regexp.MustCompile(`(?s)PT (\d+) ([0-9a-f]{64}).*?\n\d+ \d+ crypt (\S+).*\n((?:[0-9a-f]{2} )+)\s*$`).FindSubmatch(text)
			if m == nil {
				t.Fatal("the fixture's text is not as expected")
			}
			size, _ := strconv.Atoi(string(m[1]))
			key, err := hex.DecodeString(strings.ReplaceAll(string(m[4]), " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			image, err := exec.Command(judge.Tool(t, "xz"), "-dc", filepath.Join(folder, name+".img.xz")).Output()
			if err != nil {
				t.Fatal(err)
			}
			c, err := New(string(m[3]), key, 512)
			if err != nil {
				t.Fatal(err)
			}
			data := image[offset : offset+int64(size)]
			c.Decrypt(data, 0)
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != string(m[2]) {
				t.Error("the decrypted volume is not what the kernel read")
			}
			judge.Decided(t, "kernel dm-crypt (fixture)")
		})
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"aes-xts-plain64", "capi:essiv(cbc(aes),sha256)-plain64", "xchacha12,aes-adiantum-plain64", "cipher_null", "capi:)-("} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := ParseSpec(s)
		if err != nil {
			return
		}
		for n := 0; n <= 64; n += 8 {
			c, err := New(s, make([]byte, n), 512)
			if (err == nil) != spec.KeySizeOK(n) {
				t.Fatalf("%q with %d bytes: %v", s, n, err)
			}
			if err == nil {
				b := seq(1024)
				c.Encrypt(b, 1<<32-1)
				if c.Decrypt(b, 1<<32-1); !bytes.Equal(b, seq(1024)) {
					t.Fatalf("%q: not its own inverse", s)
				}
			}
		}
	})
}

func TestNullCipherIsIdentity(t *testing.T) {
	c, err := New("cipher_null-ecb", nil, 512)
	if err != nil {
		t.Fatal(err)
	}
	b := seq(1024)
	c.Decrypt(b, 5)
	if !bytes.Equal(b, seq(1024)) {
		t.Fatal("the null cipher changed bytes")
	}
}

func TestDecryptAllocatesOncePerRun(t *testing.T) {
	c, _ := New("aes-xts-plain64", seq(64), 512)
	b := seq(1 << 20)
	if n := testing.AllocsPerRun(10, func() { c.Decrypt(b, 0) }); n > 4 {
		t.Fatalf("%v allocations for 2048 sectors", n)
	}
}

func BenchmarkDecrypt(b *testing.B) {
	for _, s := range []string{"aes-xts-plain64", "aes-cbc-essiv:sha256", "serpent-xts-plain64", "twofish-xts-plain64", "xchacha12,aes-adiantum-plain64"} {
		b.Run(s, func(b *testing.B) {
			key := seq(64)
			if !strings.Contains(s, "xts") {
				key = seq(32)
			}
			c, _ := New(s, key, 512)
			buf := seq(1 << 20)
			b.SetBytes(1 << 20)
			for b.Loop() {
				c.Decrypt(buf, 0)
			}
		})
	}
}
