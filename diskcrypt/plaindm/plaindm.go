// Package plaindm reads dm-crypt volumes without a header, as "cryptsetup open
// --type plain" and crypttab make them. Nothing on the disk says anything of
// them: cipher, key size and hash are declared by the user. No check of the key
// exists either. Its invariant: a volume counts as opened only where something
// is recognised behind the key, and the key check says that this is all there is
// to it.
package plaindm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/fingerprint"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/opened"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Format implements diskcrypt.Format for plain dm-crypt.
type Format struct{}

var _ diskcrypt.Format = Format{}

// Name is "dm-crypt".
func (Format) Name() string { return diskcrypt.TypePlain }

// keyProtector is the id of the one protector: the key is made from the secret.
const keyProtector = "key"

// startBytes is how much of the volume stands for the header that it does not
// have: all that recognising what is behind it looks at, but at the end.
const startBytes = 128 << 10

// params is a declaration, understood.
type params struct {
	cipher       string
	keyBytes     int
	hash         keyHash
	offset, skip int64 // sectors of 512 bytes
	sectorSize   int
	largeIV      bool
	unsupported  string
}

// understand checks the values of a declaration. What is well formed and cannot
// be opened is in unsupported.
func understand(m map[string]string) (params, error) {
	p := params{cipher: m["cipher"], sectorSize: disk.SectorSize}
	bad := func(format string, args ...any) (params, error) {
		return p, fmt.Errorf("%w: %s", diskcrypt.ErrDeclaration, fmt.Sprintf(format, args...))
	}
	if err := diskcrypt.CheckDeclaration(m); err != nil {
		return p, err
	}
	for _, name := range []string{"cipher", "size", "hash"} {
		if m[name] == "" {
			return bad("%s is missing; the defaults of cryptsetup were cipher=aes-cbc-essiv:sha256,size=256,hash=ripemd160 before 2.7, and are cipher=aes-xts-plain64,size=256,hash=sha256 since", name)
		}
	}
	number := func(name string, most int64) (int64, bool) {
		if m[name] == "" {
			return 0, true
		}
		n, err := strconv.ParseInt(m[name], 10, 64)
		return n, err == nil && n >= 0 && n <= most
	}
	bits, ok := number("size", 4096)
	if !ok || bits == 0 || bits%8 != 0 {
		return bad("size is the key's in bits, a multiple of 8")
	}
	p.keyBytes = int(bits / 8)
	if p.offset, ok = number("offset", math.MaxInt64/disk.SectorSize); !ok {
		return bad("offset is a number of sectors of 512 bytes")
	}
	if p.skip, ok = number("skip", math.MaxInt64); !ok {
		return bad("skip is a number of sectors of 512 bytes")
	}
	if m["sector-size"] != "" {
		n, ok := number("sector-size", 4096)
		if !ok || n < disk.SectorSize || n&(n-1) != 0 {
			return bad("sector-size is 512, 1024, 2048 or 4096")
		}
		p.sectorSize = int(n)
	}
	switch m["iv-large-sectors"] {
	case "", "no":
	case "yes":
		p.largeIV = p.sectorSize != disk.SectorSize
	default:
		return bad("iv-large-sectors is yes or no")
	}
	var err error
	if p.hash, err = parseHash(m["hash"], p.keyBytes); err != nil {
		return bad("%v", err)
	}
	p.unsupported = p.cannot(m["hash"])
	return p, nil
}

// cannot names why the volume cannot be opened, "" if it can.
func (p params) cannot(hashName string) string {
	spec, err := dmcrypt.ParseSpec(p.cipher)
	switch {
	case err != nil:
		return fmt.Sprintf("cipher %q", p.cipher)
	case spec.Null():
		return "null cipher: the data are not encrypted"
	case !spec.KeySizeOK(p.keyBytes):
		return fmt.Sprintf("cipher %q with a key of %d bits", p.cipher, p.keyBytes*8)
	case !p.hash.known():
		return fmt.Sprintf("hash %q", hashName)
	}
	return ""
}

// size of the plaintext in a place of so many bytes.
func (p params) size(place int64) int64 {
	return max(0, place-p.offset*disk.SectorSize) / int64(p.sectorSize) * int64(p.sectorSize)
}

// Inspect says what is declared. The start of the ciphertext stands for the
// header in HeaderDigest: as long as it is the same, so is what a secret opens.
func (Format) Inspect(ctx context.Context, place diskcrypt.Place) (*diskcrypt.Volume, error) {
	if !place.DeclaredAs(diskcrypt.TypePlain) {
		return nil, diskcrypt.ErrNotThisFormat
	}
	p, err := understand(place.Declared)
	if err != nil {
		return nil, fmt.Errorf("inspect plain dm-crypt volume: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if p.size(place.Size) == 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	start := make([]byte, min(startBytes, p.size(place.Size)))
	if _, err := io.ReadFull(io.NewSectionReader(place.Data, p.offset*disk.SectorSize, int64(len(start))), start); err != nil {
		return nil, fmt.Errorf("inspect plain dm-crypt volume: %w", err)
	}
	declared := fingerprint.New("dm-crypt-declared")
	digest := fingerprint.New("dm-crypt-start")
	for _, name := range slices.Sorted(maps.Keys(place.Declared)) {
		for _, f := range []fingerprint.Hash{declared, digest} {
			f.Field([]byte(name))
			f.Field([]byte(place.Declared[name]))
		}
	}
	digest.Field(start)
	return &diskcrypt.Volume{
		Type: diskcrypt.TypePlain, Range: disk.Range{Length: place.Size}, Declared: maps.Clone(place.Declared),
		Cipher: p.cipher, KeyBits: p.keyBytes * 8, SectorSize: p.sectorSize, Unsupported: p.unsupported,
		HeaderDigest: digest.Digest(),
		Protectors: []diskcrypt.Protector{{
			ID: keyProtector, Kind: diskcrypt.TypePlain, Fingerprint: declared.V1(), Offline: true,
			Note: "no header and no check of the key: opened is what something is recognised behind",
		}},
	}, nil
}

// errUnrecognised: there is no way to tell a wrong secret from data that carry
// no signature.
var errUnrecognised = errors.New("nothing is recognised behind it: the secret or the declaration is wrong, or the volume holds what has no signature")

// Open makes the key from the secret, and looks for something known behind it.
func (Format) Open(ctx context.Context, place diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) (diskcrypt.Opened, error) {
	o, err := open(ctx, place, kind, secret)
	if err != nil {
		return nil, fmt.Errorf("open plain dm-crypt volume: %w", err)
	}
	return o, nil
}

// OpensAll is Open: there is one way to make the key.
func (f Format) OpensAll(ctx context.Context, place diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]string, error) {
	o, err := f.Open(ctx, place, kind, secret, lim)
	if err != nil {
		return nil, err
	}
	return []string{o.Protector()}, o.Close()
}

func open(ctx context.Context, place diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret) (*opened.Volume, error) {
	if !place.DeclaredAs(diskcrypt.TypePlain) {
		return nil, diskcrypt.ErrNotThisFormat
	}
	p, err := understand(place.Declared)
	if err != nil {
		return nil, err
	}
	if p.unsupported != "" {
		return nil, fmt.Errorf("%w: %s", diskcrypt.ErrUnsupported, p.unsupported)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := p.size(place.Size)
	if size == 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	key, err := p.key(kind, secret.Expose())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, err)
	}
	cipher, err := p.newCipher(key)
	if err != nil {
		envelope.Wipe(key)
		return nil, err
	}
	o := &opened.Volume{Format: "plain dm-crypt", Key: key, ID: keyProtector, Wipe: cipher.Wipe}
	if kind == diskcrypt.KindVolumeKey {
		o.ID = string(diskcrypt.KindVolumeKey)
	}
	o.View = plainview.New(place.Data, size, plainview.Runs{{
		Length: size, Kind: plainview.Crypt, From: p.offset * disk.SectorSize, Unit: uint64(p.skip), Cipher: cipher,
	}})
	if o.Check, err = recognise(o.View, size); err != nil || o.Check == "" {
		_ = o.Close()
		if err == nil {
			err = fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, errUnrecognised)
		}
		return nil, err
	}
	return o, nil
}

// recognise names the signature that speaks for the key, "" where there is none.
func recognise(r io.ReaderAt, size int64) (string, error) {
	found, err := blockstack.Identify(r, size)
	if err != nil {
		return "", err
	}
	for _, s := range found {
		switch {
		case s.Broken, s.Class == blockstack.Empty:
		case s.Confirmed:
			return "plain-checksum-" + s.Class, nil
		case s.Class == blockstack.MBR: // two bytes, unless its partitions fit
			if l, err := disk.ReadLayout(r, size); err == nil && len(l.Partitions) > 0 && len(l.Warnings) == 0 {
				return "plain-signature-" + s.Class, nil
			}
		default:
			return "plain-signature-" + s.Class, nil
		}
	}
	return "", nil
}
