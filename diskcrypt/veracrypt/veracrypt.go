// Package veracrypt reads VeraCrypt and TrueCrypt volumes. Nothing on the disk
// shows them: a place is looked at only where the user declared it. What the
// header says is behind the secret, so Inspect names the places where headers
// may be, and only opening tells the volume, its hidden volume, the backup
// headers and chance apart. It reads XTS volumes of AES, Serpent, Twofish and
// their cascades; other ciphers, Streebog, and the modes of TrueCrypt 4 and
// before are named, not read. Its invariant: a volume is opened only by a header
// whose magic and both checksums are right.
package veracrypt

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/fingerprint"
)

// Format implements diskcrypt.Format for VeraCrypt and TrueCrypt.
type Format struct{}

var _ diskcrypt.Format = Format{}

// Name is "veracrypt".
func (Format) Name() string { return diskcrypt.TypeVeraCrypt }

// declared is what the user declared, understood.
type declared struct {
	cipher, hash string // "" = not said
	system       bool
}

// understand checks the values of a declaration.
func understand(m map[string]string) (declared, error) {
	if err := diskcrypt.CheckDeclaration(m); err != nil {
		return declared{}, err
	}
	d := declared{cipher: strings.ToLower(m["cipher"]), hash: strings.ToLower(m["hash"])}
	switch m["system"] {
	case "", "no":
	case "yes":
		d.system = true
	default:
		return d, fmt.Errorf("%w: system is yes or no", diskcrypt.ErrDeclaration)
	}
	return d, nil
}

// unsupported names why what is declared cannot be opened, "" if it can.
func (d declared) unsupported() string {
	var why []string
	if d.cipher != "" && len(chainsOf(d.cipher)) == 0 {
		why = append(why, fmt.Sprintf("cipher %q; can be read: %s, in XTS mode", d.cipher, strings.Join(chainNames(), ", ")))
	}
	if d.hash != "" && len(kdfsOf(d.hash, d.system, nil)) == 0 {
		why = append(why, fmt.Sprintf("hash %q; can be read: %s", d.hash, strings.Join(hashNames(), ", ")))
	}
	return strings.Join(why, "; ")
}

// Inspect looks at the places of the headers; what they say is behind the secret.
func (Format) Inspect(ctx context.Context, p diskcrypt.Place) (*diskcrypt.Volume, error) {
	if !p.DeclaredAs(diskcrypt.TypeVeraCrypt) {
		return nil, diskcrypt.ErrNotThisFormat
	}
	d, err := understand(p.Declared)
	if err != nil {
		return nil, fmt.Errorf("inspect veracrypt volume: %w", err)
	}
	places := headerPlaces(p.Size, d.system)
	if len(places) == 0 {
		return nil, diskcrypt.ErrNotThisFormat
	}
	v := &diskcrypt.Volume{
		Type: diskcrypt.TypeVeraCrypt, Range: disk.Range{Length: p.Size}, Declared: maps.Clone(p.Declared),
		Cipher: d.cipher, SectorSize: disk.SectorSize, Protectors: []diskcrypt.Protector{}, Unsupported: d.unsupported(),
	}
	digest := fingerprint.New("veracrypt-header")
	for _, name := range slices.Sorted(maps.Keys(p.Declared)) {
		digest.Field([]byte(name))
		digest.Field([]byte(p.Declared[name]))
	}
	for i, place := range places {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b := make([]byte, headerSize)
		if _, err := io.ReadFull(io.NewSectionReader(p.Data, place.offset, headerSize), b); err != nil {
			if i == 0 {
				return nil, fmt.Errorf("inspect veracrypt volume: read header: %w", err)
			}
			v.Warnings = append(v.Warnings, fmt.Sprintf("%s header: cannot be read: %v", place.id, err))
			continue
		}
		digest.Field([]byte(place.id))
		digest.Field(b)
		f := fingerprint.New("veracrypt-place")
		f.Field([]byte(place.id))
		f.Field(b)
		note := place.note
		if mostFrequent(b) >= plainByte {
			note += "; does not look encrypted: it was probably overwritten"
		}
		v.Protectors = append(v.Protectors, diskcrypt.Protector{
			ID: place.id, Kind: string(diskcrypt.KindVeraCrypt), Fingerprint: f.V1(), Offline: true, Note: note,
		})
		if !place.atEnd {
			v.HeaderRanges = append(v.HeaderRanges, disk.Range{Offset: place.offset, Length: headerSize})
		}
	}
	slices.SortFunc(v.HeaderRanges, func(a, b disk.Range) int { return int(a.Offset - b.Offset) })
	v.HeaderEssential = slices.Clone(v.HeaderRanges)
	v.HeaderDigest = digest.Digest()
	return v, nil
}

// plainByte is how often one value in a header's 512 bytes is no chance.
const plainByte = 32

func mostFrequent(b []byte) (most int) {
	var count [256]int
	for _, c := range b {
		count[c]++
		most = max(most, count[c])
	}
	return most
}
