package custody

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// ChangeKind is a kind of change in custody between two recovery points.
type ChangeKind string

// The kinds.
const (
	ChangeNone             ChangeKind = "unchanged"
	ChangeHeader           ChangeKind = "header changed" // neither protectors nor volume key: tokens, labels
	ChangeCredentialAdded  ChangeKind = "credential added"
	ChangeProtectorRemoved ChangeKind = "protector removed"
	ChangeProtectorRotated ChangeKind = "protector rotated" // some added, some removed
	ChangeNewEpoch         ChangeKind = "new epoch"         // another volume key
	ChangeConversion       ChangeKind = "conversion"        // in progress
	ChangeHeaderLoss       ChangeKind = "header loss"
	ChangeHeaderErased     ChangeKind = "header erased"   // no key slot is left
	ChangeHeaderRollback   ChangeKind = "header rollback" // an earlier header is back
	ChangeAreaDamage       ChangeKind = "area damage"     // a wrapped key differs although its protector does not
	ChangeEncryptionOn     ChangeKind = "encryption on"
	ChangeEncryptionOff    ChangeKind = "encryption off"
	ChangeVolumeGone       ChangeKind = "volume gone"     // and nothing is in its place
	ChangeVolumeReplaced   ChangeKind = "volume replaced" // another volume stands in its place
	ChangeOpaque           ChangeKind = "opaque"          // random data without a header appeared
	ChangeHeaderReturned   ChangeKind = "header returned" // after it was lost or erased
	ChangeDiskResized      ChangeKind = "disk resized"
)

// DiskVolumes is what an inspection found on one disk.
type DiskVolumes struct {
	Disk    string
	Point   string // the recovery point it was found in, "" where that is not listed any more
	Size    int64  // of the disk in bytes, 0 = not known
	Volumes []diskcrypt.Volume
	// Areas are all places that were looked at, the volumes' too. A volume that is
	// gone from a place that now is plain was decrypted or put to another use; gone
	// from one where nothing is recognised, it lost its header.
	Areas []diskcrypt.Area
}

// Change is one thing that changed, in words for people.
type Change struct {
	Disk       string
	Volume     string
	Kind       ChangeKind
	Protectors []string // ids concerned
	Text       string
}

func (c Change) String() string {
	name := c.Disk
	if c.Volume != "" {
		name = VolumeKey{Disk: c.Disk, Volume: c.Volume}.String()
	}
	if strings.HasPrefix(c.Text, string(c.Kind)) {
		return name + ": " + c.Text
	}
	return fmt.Sprintf("%s: %s: %s", name, c.Kind, c.Text)
}

// WithKeys takes the vkproofs of a recovery point's volumes, hex by volume, for
// epochs where the header tells none (BitLocker's): Compare then tells a new volume
// key from the same one, if both recovery points were proven. Only proofs of
// one installation may be compared.
func (d DiskVolumes) WithKeys(vkproofs map[string]string) DiskVolumes {
	d.Volumes = slices.Clone(d.Volumes)
	for i, v := range d.Volumes {
		if mac := vkproofs[v.ID]; v.Epoch == "" && v.HeaderDigest != "" && mac != "" {
			d.Volumes[i].Epoch = "vkproof:" + mac
		}
	}
	return d
}

// Compare says what changed in custody from the parent recovery point to this
// one. history holds what was found in older recovery points, newest first; it
// tells a reverted guest from a new volume key, and a header that was lost and
// came back from another volume. Pure. A volume without change gives one ChangeNone.
func Compare(parent, now []DiskVolumes, history ...[]DiskVolumes) []Change {
	oldest := slices.Clone(history)
	slices.Reverse(oldest)
	c := comparison{older: history, known: HistoryOf(append(oldest, parent)...)}
	before := map[string]DiskVolumes{}
	for _, d := range parent {
		before[d.Disk] = d
	}
	for _, d := range now {
		old, had := before[d.Disk]
		delete(before, d.Disk)
		c.disk(old, d, had)
	}
	for _, d := range parent {
		if _, gone := before[d.Disk]; !gone {
			continue
		}
		for _, v := range d.Volumes {
			c.add(d.Disk, v.ID, ChangeVolumeGone, "the disk is not part of this recovery point")
		}
	}
	return c.out
}

type comparison struct {
	older [][]DiskVolumes // than the parent, newest first
	known History         // up to the parent
	out   []Change
}

func (c *comparison) add(disk, volume string, kind ChangeKind, text string) {
	c.out = append(c.out, Change{Disk: disk, Volume: volume, Kind: kind, Text: text})
}

func (c *comparison) disk(old, now DiskVolumes, had bool) {
	if had && old.Size > 0 && now.Size > 0 && old.Size != now.Size {
		c.resized(old, now)
	}
	for _, v := range now.Volumes {
		i := slices.IndexFunc(old.Volumes, func(o diskcrypt.Volume) bool { return o.ID == v.ID })
		switch {
		case i >= 0:
			c.out = append(c.out, c.volume(now, old.Volumes[i], v)...)
		case had:
			c.appeared(now, v)
		}
	}
	missing := c.known.Missing(now)
	for _, e := range missing {
		c.add(now.Disk, e.Volume.ID, ChangeHeaderLoss, Loss{Earlier: e}.text(now.Disk))
	}
	for _, o := range old.Volumes {
		isMissing := slices.ContainsFunc(missing, func(e Earlier) bool { return e.Volume.ID == o.ID })
		if !isMissing && !slices.ContainsFunc(now.Volumes, func(v diskcrypt.Volume) bool { return v.ID == o.ID }) {
			c.vanished(now, o)
		}
	}
}

func (c *comparison) resized(old, now DiskVolumes) {
	text := fmt.Sprintf("the disk grew from %d to %d bytes", old.Size, now.Size)
	if now.Size < old.Size {
		text = fmt.Sprintf("the disk shrank from %d to %d bytes", old.Size, now.Size)
		for _, v := range old.Volumes {
			if v.ID != diskcrypt.WholeDisk && !v.Logical() && v.Range.End() > now.Size {
				text += fmt.Sprintf("; %s ended %d bytes behind its end now", v.ID, v.Range.End()-now.Size)
			}
		}
	}
	c.add(now.Disk, "", ChangeDiskResized, text)
}

func (c *comparison) appeared(now DiskVolumes, v diskcrypt.Volume) {
	e, known := c.known[VolumeKey{Disk: now.Disk, Volume: v.ID}]
	same, sure := sameFingerprint(e.Volume.Epoch, v.Epoch)
	switch {
	case !hasHeader(v) && known:
		c.add(now.Disk, v.ID, ChangeHeaderLoss, Loss{Earlier: e}.text(now.Disk))
	case v.Type == diskcrypt.TypeOpaque:
		c.add(now.Disk, v.ID, ChangeOpaque, "random data without a header stand where nothing was recognised as encrypted before: may be VeraCrypt, plain dm-crypt, or a volume whose header was lost")
	case known && sure && same, c.sawHeader(now.Disk, v):
		c.out = append(c.out, c.returned(now.Disk, v, e))
	case known:
		c.add(now.Disk, v.ID, ChangeVolumeReplaced, replacedText)
	default:
		c.add(now.Disk, v.ID, ChangeEncryptionOn, "encryption was switched on: this recovery point needs a secret for it")
	}
	if v.Conversion != "" {
		c.out = append(c.out, conversion(now.Disk, v))
	}
}

// returned says that a header, or at least its volume key, is back.
func (c *comparison) returned(disk string, v diskcrypt.Volume, e Earlier) Change {
	out := Change{Disk: disk, Volume: v.ID, Kind: ChangeHeaderReturned}
	if at, found := c.seenHeader(disk, v); found {
		out.Text = "returned to the header of " + pointWords(at)
	} else {
		out.Text = "returned to the epoch of " + pointWords(e.Point) + ", with other protectors: escrow those that are new"
	}
	return out
}

func (c *comparison) vanished(now DiskVolumes, o diskcrypt.Volume) {
	at, class := now.look(o)
	switch {
	case class == diskcrypt.ClassUnmapped:
		c.add(now.Disk, o.ID, ChangeVolumeGone, "the logical volume is there, and cannot be read from this disk any more: volume list and point show say why")
	case now.unread(o.ID):
		c.add(now.Disk, o.ID, ChangeVolumeGone, "what is in its place cannot be looked into, and may be encrypted: volume list and point show say why")
	case at == placeHeader && class != "":
		c.add(now.Disk, o.ID, ChangeVolumeReplaced, fmt.Sprintf("%s, a volume with a header, stands in its place", class))
	case at == placeOther && class != "" && o.Type == diskcrypt.TypeOpaque:
		c.add(now.Disk, o.ID, ChangeVolumeGone, fmt.Sprintf("was random data without a header, is now %s", class))
	case at == placeOther && class != "":
		c.add(now.Disk, o.ID, ChangeEncryptionOff, fmt.Sprintf("was %s, is now %s: encryption was switched off, or the place was formatted; this recovery point needs no secret for it", o.Type, class))
	case o.Type == diskcrypt.TypeOpaque && at == placeBare:
		c.add(now.Disk, o.ID, ChangeVolumeGone, "the random data are not there any more")
	case at == placeBare:
		c.add(now.Disk, o.ID, ChangeHeaderLoss, headerLoss)
	default:
		c.add(now.Disk, o.ID, ChangeVolumeGone, "nothing is in its place any more")
	}
}

const replacedText = "another volume stands in its place: expect a full-size incremental, and escrow its secret"

func pointWords(id string) string {
	if id == "" {
		return "a recovery point that is deleted"
	}
	return "recovery point " + id
}

const headerLoss = "the header is gone while the parent recovery point has it: restore the header from there (same epoch)"

func conversion(disk string, v diskcrypt.Volume) Change {
	return Change{
		Disk: disk, Volume: v.ID, Kind: ChangeConversion,
		Text: fmt.Sprintf("conversion in progress (%s): this recovery point needs the secrets of before and after", v.Conversion),
	}
}

func (c *comparison) volume(d DiskVolumes, old, now diskcrypt.Volume) []Change {
	disk := d.Disk
	one := func(kind ChangeKind, text string, ids ...string) Change {
		return Change{Disk: disk, Volume: now.ID, Kind: kind, Text: text, Protectors: ids}
	}
	if kind, text := declaredChange(old, now); kind != "" {
		return []Change{one(kind, text)}
	}
	e, known := c.known[VolumeKey{Disk: disk, Volume: now.ID}]
	same, sure := sameFingerprint(e.Volume.Epoch, now.Epoch)
	back := known && hasHeader(now) && !erased(now) && (sure && same || c.sawHeader(disk, now))
	lost := now.Type == diskcrypt.TypeOpaque || headed(now.Type) && now.HeaderDigest == ""
	switch {
	case lost && hasHeader(old):
		if known && e.Point != "" {
			return []Change{one(ChangeHeaderLoss, Loss{Earlier: e}.text(disk))}
		}
		return []Change{one(ChangeHeaderLoss, headerLoss)}
	case !hasHeader(old) && back:
		return []Change{c.returned(disk, now, e)}
	case old.Type == diskcrypt.TypeOpaque && now.Type != diskcrypt.TypeOpaque && known:
		return []Change{one(ChangeVolumeReplaced, replacedText)}
	case old.Type == diskcrypt.TypeOpaque && now.Type != diskcrypt.TypeOpaque:
		return []Change{one(ChangeVolumeReplaced, "a volume with a header stands where none was recognised before")}
	case erased(now) && !erased(old) && old.Epoch == now.Epoch:
		var gone []string
		for _, p := range old.Protectors {
			gone = append(gone, p.ID)
		}
		text := ReasonHeaderErased + "it has no key slot"
		if l := c.known.Lost(disk, now); l != nil {
			text = l.text(disk)
		}
		return []Change{one(ChangeHeaderErased, text, gone...)}
	}
	// A header that was there before the parent's, to the last bit, needs no more words.
	if at, found := c.seenHeader(disk, now); found && now.HeaderDigest != old.HeaderDigest {
		kind := ChangeHeaderRollback
		if erased(old) {
			kind = ChangeHeaderReturned
		}
		return []Change{one(kind, "returned to the header of "+pointWords(at)+": protectors of that time are valid again")}
	}
	var out []Change
	if now.Conversion != "" {
		out = append(out, conversion(disk, now))
	}
	sameEpoch, epochKnown := sameFingerprint(old.Epoch, now.Epoch)
	sameUUID := old.UUID == "" || now.UUID == "" || strings.EqualFold(old.UUID, now.UUID)
	switch {
	case !sameUUID && (!epochKnown || !sameEpoch):
		if at, found := c.seenEpoch(disk, now); found {
			return append(out, one(ChangeHeaderRollback, "returned to the epoch of "+pointWords(at)+": the secrets of that time open it"))
		}
		return append(out, one(ChangeVolumeReplaced, replacedText))
	case epochKnown && !sameEpoch:
		if at, found := c.seenEpoch(disk, now); found {
			return append(out, one(ChangeHeaderRollback, "returned to the epoch of "+pointWords(at)+", as after reverting to a snapshot: the secrets of that time open it"))
		}
		return append(out, one(ChangeNewEpoch, "new epoch: the volume key changed; expect a full-size incremental"))
	}
	if sameUUID && now.SequenceID != 0 && now.SequenceID < old.SequenceID {
		out = append(out, one(ChangeHeaderRollback, fmt.Sprintf("the header went back from sequence %d to %d: protectors of that time are valid again", old.SequenceID, now.SequenceID)))
	}
	out = append(out, compareProtectors(disk, old, now)...)
	if len(out) > 0 {
		return out
	}
	if old.HeaderDigest != now.HeaderDigest {
		if !epochKnown {
			return []Change{one(ChangeHeader, "the header changed, its protectors did not")}
		}
		return []Change{one(ChangeHeader, "the header changed, protectors and volume key did not")}
	}
	return []Change{one(ChangeNone, "the same header")}
}

// declaredChange is what changed of a volume that is not seen but declared, ""
// where headers tell it.
func declaredChange(old, now diskcrypt.Volume) (ChangeKind, string) {
	was, is := diskcrypt.FormatDeclaration(old.Declared), diskcrypt.FormatDeclaration(now.Declared)
	switch {
	case was == "" && is != "" && old.Type == diskcrypt.TypeOpaque:
		return ChangeHeader, "declared as " + is
	case was != "" && is == "" && now.Type == diskcrypt.TypeOpaque:
		return ChangeOpaque, "it is not declared any more: it was declared as " + was
	case was != "" && is != "" && was != is:
		return ChangeHeader, "declared as " + is + ", no more as " + was
	case is != "" && now.Type == diskcrypt.TypePlain:
		return ChangeNone, "no header, and declared as before"
	}
	return "", ""
}

func compareProtectors(disk string, old, now diskcrypt.Volume) []Change {
	var added, removed, damaged []string
	seen := map[string]diskcrypt.Protector{}
	for _, p := range old.Protectors {
		seen[p.Fingerprint] = p
	}
	still := map[string]bool{}
	for _, p := range now.Protectors {
		still[p.Fingerprint] = true
		was, ok := seen[p.Fingerprint]
		switch {
		case !ok:
			added = append(added, p.ID)
		case was.AreaDigest != "" && was.AreaDigest != p.AreaDigest:
			damaged = append(damaged, p.ID)
		}
	}
	for _, p := range old.Protectors {
		if !still[p.Fingerprint] {
			removed = append(removed, p.ID)
		}
	}
	one := func(kind ChangeKind, text string, ids []string) Change {
		slices.Sort(ids)
		return Change{Disk: disk, Volume: now.ID, Kind: kind, Text: text, Protectors: slices.Compact(ids)}
	}
	var out []Change
	if len(damaged) > 0 {
		out = append(out, one(ChangeAreaDamage, "the wrapped key of "+strings.Join(damaged, ", ")+" differs although its protector is the same: damage; restore the header of the parent recovery point", damaged))
	}
	switch {
	case len(added) > 0 && len(removed) > 0:
		out = append(out, one(ChangeProtectorRotated, "protector rotated: old recovery points still open with the old secret; escrow the new one", append(added, removed...)))
	case len(added) > 0:
		out = append(out, one(ChangeCredentialAdded, "credential added: secrets in custody still open it; escrow the new one", added))
	case len(removed) > 0:
		out = append(out, one(ChangeProtectorRemoved, "protector removed: old recovery points still open with its secret", removed))
	}
	return out
}

// sameFingerprint compares two fingerprints; known is false where one is
// missing or they are of different encodings, which is not the same as different.
func sameFingerprint(a, b string) (same, known bool) {
	va, _, oka := strings.Cut(a, ":")
	vb, _, okb := strings.Cut(b, ":")
	if !oka || !okb || va != vb {
		return false, false
	}
	return a == b, true
}

// seenHeader is the newest recovery point before the parent that has the same
// header, to the last bit, in the same place.
func (c *comparison) seenHeader(disk string, now diskcrypt.Volume) (point string, found bool) {
	return c.seen(disk, func(v diskcrypt.Volume) bool {
		return v.ID == now.ID && now.HeaderDigest != "" && v.HeaderDigest == now.HeaderDigest
	})
}

func (c *comparison) sawHeader(disk string, now diskcrypt.Volume) bool {
	_, found := c.seenHeader(disk, now)
	return found
}

// seenEpoch is the same for the volume key.
func (c *comparison) seenEpoch(disk string, now diskcrypt.Volume) (point string, found bool) {
	return c.seen(disk, func(v diskcrypt.Volume) bool {
		same, known := sameFingerprint(v.Epoch, now.Epoch)
		return v.ID == now.ID && known && same
	})
}

func (c *comparison) seen(disk string, is func(diskcrypt.Volume) bool) (point string, found bool) {
	for _, p := range c.older {
		for _, d := range p {
			if d.Disk == disk && slices.ContainsFunc(d.Volumes, is) {
				return d.Point, true
			}
		}
	}
	return "", false
}

// Found turns an inspection of one disk of a recovery point into what Compare
// and History take.
func Found(point, disk string, size int64, r *diskcrypt.Report) DiskVolumes {
	return DiskVolumes{Disk: disk, Point: point, Size: size, Volumes: r.Volumes, Areas: r.Areas}
}
