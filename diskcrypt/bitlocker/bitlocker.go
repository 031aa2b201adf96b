// Package bitlocker reads BitLocker volumes of Windows Vista to 11 and of
// BitLocker To Go: what the metadata say, which secret opens them, the plaintext,
// and, from any working secret, the recovery passwords and startup keys of that
// volume. It never writes to a volume (the formatter for tests is
// bitlockerformat). Its invariant: what opens was authenticated by the
// metadata's own boxes, and nothing is stretched before its cost was checked
// against Limits.
package bitlocker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/fingerprint"
)

// Format implements diskcrypt.Format for BitLocker.
type Format struct{}

var (
	_ diskcrypt.Format  = Format{}
	_ diskcrypt.Deriver = Format{}
	_ diskcrypt.Speller = Format{}
)

// Name is "bitlocker".
func (Format) Name() string { return "bitlocker" }

// Kinds of protectors that no kind of secret names.
const (
	kindClearKey      = "clear-key"
	kindTPM           = "tpm"
	kindTPMPIN        = "tpm-pin"
	kindTPMKey        = "tpm-startup-key"
	kindTPMPINKey     = "tpm-pin-startup-key"
	kindSmartCard     = "smart-card"
	kindNetworkUnlock = "network-unlock"
	kindOther         = "other"
)

// Inspect reads the boot sector and every copy of the metadata.
func (Format) Inspect(ctx context.Context, p diskcrypt.Place) (*diskcrypt.Volume, error) {
	m, err := read(ctx, p)
	switch {
	case err != nil && m == nil:
		return nil, err
	case err != nil:
		return &diskcrypt.Volume{
			Type: diskcrypt.TypeBitLocker, Range: disk.Range{Length: p.Size}, Protectors: []diskcrypt.Protector{},
			Unsupported: err.Error(), Warnings: append(m.warnings, err.Error()),
		}, err
	}
	return m.describe(), nil
}

func (m *metadata) describe() *diskcrypt.Volume {
	b := m.block
	v := &diskcrypt.Volume{
		Type: diskcrypt.TypeBitLocker, UUID: b.GUID.String(), Range: disk.Range{Length: m.size}, SectorSize: int(m.sector),
		SequenceID: uint64(b.NextNonce), HeaderDigest: m.digest(), Conversion: m.conversion(), Unsupported: m.unsupported(),
		Protectors: []diskcrypt.Protector{}, Warnings: append([]string(nil), m.warnings...),
	}
	if d, ok := fve.First(b.Datums, fve.RoleDescription, fve.TypeUnicode); ok {
		v.Label = d.Text()
	}
	if how, ok := methods[b.Method]; ok {
		v.Cipher, v.KeyBits = how.name, how.keyBits
	} else if b.State != fve.StateDecrypted {
		v.Cipher = fmt.Sprintf("method-%04x", b.Method)
	}
	portable := false
	for _, k := range m.protectors() {
		p := k.describe(b.GUID)
		portable = portable || p.Offline
		v.Protectors = append(v.Protectors, p)
		if k.Protection.Kind() == fve.ByClearKey {
			v.SelfOpening = "clear key: protection is suspended, the volume master key lies on the volume unencrypted"
		}
	}
	if b.State == fve.StateDecrypted {
		v.SelfOpening = "decrypted: BitLocker's metadata are still there, the data are plain"
	}
	if m.eowFailed != nil && b.State != fve.StateDecrypted {
		v.Undecidable = fmt.Sprintf("nobody can tell which parts of it are encrypted: %v; only the boot area is given out", m.eowFailed)
	}
	if v.SelfOpening == "" && !portable {
		v.Warnings = append(v.Warnings, noPortable(v.Protectors))
	}
	v.HeaderRanges, v.HeaderEssential = m.headerRanges()
	return v
}

// noPortable warns of a volume that only its own machine opens.
func noPortable(ps []diskcrypt.Protector) string {
	if len(ps) == 0 {
		return "no portable protector: the metadata list no key protector at all; only a volume master key or a volume key opens this volume"
	}
	var kinds []string
	for _, p := range ps {
		kinds = append(kinds, p.Kind)
	}
	return fmt.Sprintf("no portable protector: nothing but %s opens this volume, and a restored machine does not have that; add a recovery password (manage-bde -protectors -add X: -recoverypassword) and give it to custody",
		strings.Join(kinds, ", "))
}

// unsupported says why the data cannot be decrypted, "" if they can.
func (m *metadata) unsupported() string {
	b := m.block
	_, known := methods[b.Method]
	switch {
	case b.State == fve.StateDecrypted:
		return ""
	case !known:
		return fmt.Sprintf("encryption method %#04x: hardware encryption, or newer than this program", b.Method)
	case m.eowFailed != nil && (b.State != fve.StateEncrypted || b.Next != fve.StateEncrypted):
		return fmt.Sprintf("a conversion whose state cannot be read: %v", m.eowFailed)
	case b.Version == 1 && (b.State != fve.StateEncrypted || b.Next != fve.StateEncrypted):
		return "a volume of Windows Vista in the middle of a conversion"
	}
	return ""
}

// conversion names what is in progress, with its share.
func (m *metadata) conversion() string {
	b := m.block
	if m.eow != nil && m.eow.Chunks > 0 {
		if m.eow.Done == m.eow.Chunks || m.eow.Done == 0 && b.State == fve.StateDecrypted {
			return ""
		}
		return fmt.Sprintf("used-space-only conversion: %d %% of the volume is encrypted", m.eow.Done*100/m.eow.Chunks)
	}
	if m.eowFailed != nil {
		return "used-space-only conversion; how far it came is lost"
	}
	share := ""
	if b.Version == 2 && m.size > 0 {
		share = fmt.Sprintf(", %d %% of the volume is encrypted", int64(float64(min(b.StateOffset, m.size))/float64(m.size)*100))
	}
	direction := "encryption"
	if b.Next == fve.StateDecrypted {
		direction = "decryption"
	}
	switch {
	case (b.State == fve.StateDecrypted || b.State == fve.StateEncrypted) && b.State == b.Next:
		return ""
	case b.State == fve.StatePaused:
		return direction + " paused" + share
	}
	return direction + " in progress" + share
}

// protector is a VMK datum; their ids are the GUIDs.
type protector struct{ fve.Protector }

// protectors are all of the newest metadata, each GUID once.
func (m *metadata) protectors() (out []protector) {
	seen := map[fve.GUID]bool{}
	for _, d := range m.block.Datums {
		if p, ok := d.Protector(); ok && d.Role == fve.RoleVMK && !seen[p.GUID] {
			seen[p.GUID] = true
			out = append(out, protector{p})
		}
	}
	return out
}

func (p protector) id() string { return p.GUID.String() }

// salt is what its password is stretched with, nil where there is none.
func (p protector) salt() []byte {
	if d, ok := fve.First(p.Nested, -1, fve.TypeStretch); ok {
		_, salt, _ := d.Stretch()
		return salt
	}
	return nil
}

func (p protector) describe(volume fve.GUID) diskcrypt.Protector {
	out := diskcrypt.Protector{ID: p.id(), Fingerprint: p.fingerprint(volume), Created: fve.Time(p.FileTime)}
	var notes []string
	if d, ok := fve.First(p.Nested, -1, fve.TypeUnicode); ok && d.Text() != "" {
		notes = append(notes, fmt.Sprintf("named %q", d.Text()))
	}
	var means string
	out.Kind, out.Offline, means = kindOf(p.Protection)
	if means != "" {
		notes = append(notes, means)
	}
	if p.salt() != nil {
		out.KDF = "sha256 i=1048576"
	}
	if d, ok := fve.First(p.Nested, -1, fve.TypeBackup); ok {
		note := "Windows has backed it up"
		if len(d.Body) >= 8 {
			if at := fve.Time(binary.LittleEndian.Uint64(d.Body)); !at.IsZero() {
				note += " on " + at.Format(time.DateOnly)
			}
		}
		notes = append(notes, note)
	}
	if d, ok := fve.First(p.Nested, -1, fve.TypeCCM); ok {
		sum := sha256.Sum256(d.Raw)
		out.AreaDigest = "sha256:" + hex.EncodeToString(sum[:])
	}
	out.Note = strings.Join(notes, "; ")
	return out
}

// kindOf names a protection, says whether it opens away from its machine with
// what we take, and, where it does not, what it needs.
func kindOf(p fve.Protection) (kind string, offline bool, note string) {
	const tpm = "opens only on the machine with this TPM, not on a restored one"
	switch p.Kind() {
	case fve.ByClearKey:
		return kindClearKey, true, "anybody can open the volume with it"
	case fve.ByTPM:
		return kindTPM, false, tpm
	case fve.ByTPM | fve.ByPIN:
		return kindTPMPIN, false, tpm
	case fve.ByTPM | fve.ByExternal:
		return kindTPMKey, false, tpm
	case fve.ByTPM | fve.ByPIN | fve.ByExternal:
		return kindTPMPINKey, false, tpm
	case fve.ByTPM | fve.ByPublicKey:
		return kindNetworkUnlock, false, "opens only with this TPM in the network of its unlock server"
	case fve.ByExternal:
		return string(diskcrypt.KindStartupKey), true, ""
	case fve.ByRecovery:
		return string(diskcrypt.KindRecoveryPassword), true, ""
	case fve.ByPassword:
		return string(diskcrypt.KindPassphrase), true, ""
	case fve.ByPublicKey:
		return kindSmartCard, false, "needs the smart card or the recovery agent's certificate that it was made for"
	}
	return kindOther, false, fmt.Sprintf("protection %#04x: an account or group of a domain, or newer than this program; not opened here", uint16(p))
}

func (p protector) fingerprint(volume fve.GUID) string {
	f := fingerprint.New("bitlocker-protector")
	f.Field([]byte(volume.String()))
	f.Field([]byte(p.GUID.String()))
	f.Number(uint64(p.Protection))
	f.Field(p.salt())
	box, _ := p.Box()
	f.Field(box.Nonce)
	return f.V1()
}

// digest covers everything that decides what opens and where the bytes lie.
func (m *metadata) digest() string {
	f := fingerprint.New("bitlocker-header")
	f.Field(m.bootSector)
	for _, c := range m.copies {
		f.Number(uint64(c.At))
		f.Field(c.Raw)
		f.Field(c.ValidationBytes())
	}
	if m.eow != nil {
		f.Field(m.eow.Digest)
	}
	return f.Digest()
}

// maxMoved bounds the moved boot area in what is kept of a header; To Go has 5 MiB.
const maxMoved = 8 << 20

// headerRanges are the boot sector, the metadata and what was moved for them,
// and of these the parts that hold anything.
func (m *metadata) headerRanges() (ranges, essential []disk.Range) {
	whole := disk.Normalize(disk.Range{Length: m.size})
	add := func(off, room, used int64) {
		ranges = append(ranges, disk.Range{Offset: off, Length: room})
		essential = append(essential, disk.Range{Offset: off, Length: used})
	}
	add(0, m.sector, m.sector)
	for _, c := range m.copies {
		add(c.At, c.Room(), c.Extent())
	}
	if n := m.block.VirtualSectors * m.sector; n <= maxMoved {
		add(m.block.VirtualOffset, n, n)
	}
	if m.eow != nil {
		for _, r := range m.eow.Reserved {
			if r.Length <= maxMoved {
				add(r.Offset, r.Length, r.Length)
			}
		}
	}
	return disk.Normalize(ranges...).Intersect(whole), disk.Normalize(essential...).Intersect(whole)
}
