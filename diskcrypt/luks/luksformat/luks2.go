package luksformat

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
	"github.com/lockstep-backup/lockstep/envelope"
)

const (
	luks2Binary = 4096
	luks2Slots  = 32
)

// object is a JSON object; members that this editor does not know are kept.
type object = map[string]any

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func (v *Volume) format2(o Options) error {
	end := 2*o.MetadataSize + o.KeyslotsSize
	if v.size < max(end, o.DataOffset) || o.DataOffset != 0 && o.DataOffset < end || o.KeyslotsSize%align != 0 || o.DataOffset%int64(o.SectorSize) != 0 {
		return fmt.Errorf("device of %d bytes or data at %d do not go with a header of %d bytes", v.size, o.DataOffset, end)
	}
	d, err := v.digest(o.Hash, 0)
	if err != nil {
		return err
	}
	meta := object{
		"keyslots": object{},
		"tokens":   object{},
		"segments": object{"0": object{
			"type": "crypt", "offset": decimal(o.DataOffset), "size": "dynamic", "iv_tweak": "0",
			"encryption": o.Cipher, "sector_size": o.SectorSize,
		}},
		"digests": object{"0": object{
			"type": keyslot.PBKDF2, "keyslots": []any{}, "segments": []any{"0"}, "hash": d.Hash,
			"iterations": d.Iterations, "salt": base64.StdEncoding.EncodeToString(d.Salt), "digest": base64.StdEncoding.EncodeToString(d.Sum),
		}},
		"config": object{"json_size": decimal(o.MetadataSize - luks2Binary), "keyslots_size": decimal(o.KeyslotsSize)},
	}
	raw := make([]byte, o.MetadataSize)
	binary.BigEndian.PutUint16(raw[6:], 2)
	binary.BigEndian.PutUint64(raw[8:], uint64(o.MetadataSize))
	copy(raw[24:71], o.Label)
	copy(raw[72:103], "sha256")
	copy(raw[168:207], o.UUID)
	return v.write2(raw, meta)
}

// write2 writes both copies of a header: raw, of which the checksum, the salt,
// the offset and the sequence id are made anew, and the metadata.
func (v *Volume) write2(raw []byte, meta object) error {
	text, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if len(text) >= len(raw)-luks2Binary {
		return errors.New("header metadata do not fit")
	}
	raw = slices.Clone(raw)
	clear(raw[luks2Binary:])
	copy(raw[luks2Binary:], text)
	binary.BigEndian.PutUint64(raw[16:], binary.BigEndian.Uint64(raw[16:])+1)
	for i, magic := range []string{"LUKS\xba\xbe", "SKUL\xba\xbe"} {
		offset := int64(i * len(raw))
		copy(raw, magic)
		binary.BigEndian.PutUint64(raw[256:], uint64(offset))
		if _, err := rand.Read(raw[104:168]); err != nil {
			return err
		}
		Checksum(raw)
		if _, err := v.dev.WriteAt(raw, offset); err != nil {
			return err
		}
	}
	return nil
}

// Checksum puts the SHA-256 checksum of one copy of a LUKS2 header, binary and
// JSON, into it: for tests that damage one thing and nothing else.
func Checksum(raw []byte) {
	clear(raw[448:512])
	sum := sha256.Sum256(raw)
	copy(raw[448:], sum[:])
}

// decoded returns the newest copy of the header and its metadata for editing.
func decoded(h *header.Header) (raw []byte, meta object, err error) {
	raw = h.Copies[0]
	if raw == nil || h.Copies[1] != nil && binary.BigEndian.Uint64(h.Copies[1][16:]) > binary.BigEndian.Uint64(raw[16:]) {
		raw = h.Copies[1]
	}
	d := json.NewDecoder(bytes.NewReader(bytes.TrimRight(raw[luks2Binary:], "\x00")))
	d.UseNumber()
	err = d.Decode(&meta)
	return raw, meta, err
}

func child(m object, name string) object {
	c, _ := m[name].(object)
	return c
}

func (v *Volume) setSlot2(ctx context.Context, h *header.Header, number int, secret envelope.Secret, kdf KDF) error {
	if number >= luks2Slots {
		return ErrFull
	}
	raw, meta, err := decoded(h)
	if err != nil {
		return err
	}
	segment := h.Live()[0]
	d := h.DigestOf(segment.Number)
	if d == nil {
		return errors.New("the data segment has no digest")
	}
	cipher := segment.Encryption
	size := roundUp(keyslot.MaterialSize(v.key.Len()), align)
	offset, ok := freeArea(h, size)
	if !ok {
		return ErrFull
	}
	box, err := v.box(kdf, "sha256", cipher)
	if err != nil {
		return err
	}
	area, err := box.Seal(ctx, secret.Expose(), v.key.Expose())
	if err != nil {
		return err
	}
	if _, err := v.dev.WriteAt(area, offset); err != nil {
		return err
	}
	k := object{"type": box.KDF.Type, "salt": base64.StdEncoding.EncodeToString(box.KDF.Salt)}
	if box.KDF.Type == keyslot.PBKDF2 {
		k["hash"], k["iterations"] = box.KDF.Hash, box.KDF.Iterations
	} else {
		k["time"], k["memory"], k["cpus"] = box.KDF.Time, box.KDF.MemoryKiB, box.KDF.Lanes
	}
	name := strconv.Itoa(number)
	child(meta, "keyslots")[name] = object{
		"type": "luks2", "key_size": v.key.Len(), "kdf": k,
		"af":   object{"type": "luks1", "stripes": keyslot.Stripes, "hash": box.AFHash},
		"area": object{"type": "raw", "offset": decimal(offset), "size": decimal(size), "encryption": cipher, "key_size": v.key.Len()},
	}
	digest := child(child(meta, "digests"), strconv.Itoa(d.Number))
	digest["keyslots"] = append(without(digest["keyslots"], name), name)
	return v.write2(raw, meta)
}

// freeArea is the first gap of the key slots area with room for size bytes.
func freeArea(h *header.Header, size int64) (int64, bool) {
	areas := make([]header.Area, 0, len(h.Slots)+1)
	for _, s := range h.Slots {
		areas = append(areas, s.Area)
	}
	slices.SortFunc(areas, func(a, b header.Area) int { return int(a.Offset - b.Offset) })
	areas = append(areas, header.Area{Offset: 2*h.HeaderSize + h.Areas})
	at := 2 * h.HeaderSize
	for _, a := range areas {
		if a.Offset-at >= size {
			return at, true
		}
		at = roundUp(a.End(), align)
	}
	return 0, false
}

// without is a JSON array less one member.
func without(list any, name string) []any {
	all, _ := list.([]any)
	return slices.DeleteFunc(slices.Clone(all), func(m any) bool { return m == name })
}

func (v *Volume) clearSlot2(h *header.Header, number int) error {
	raw, meta, err := decoded(h)
	if err != nil {
		return err
	}
	name := strconv.Itoa(number)
	delete(child(meta, "keyslots"), name)
	for _, kind := range []string{"digests", "tokens"} {
		for n := range child(meta, kind) {
			o := child(child(meta, kind), n)
			o["keyslots"] = without(o["keyslots"], name)
		}
	}
	return v.write2(raw, meta)
}

// AddToken adds a LUKS2 token, a JSON object with "type" and "keyslots", and
// returns its number.
func (v *Volume) AddToken(token json.RawMessage) (int, error) {
	h, err := v.read()
	if err != nil {
		return 0, fmt.Errorf("add token: %w", err)
	}
	if h.Version != 2 {
		return 0, errors.New("add token: LUKS1 has no tokens")
	}
	raw, meta, err := decoded(h)
	if err != nil {
		return 0, fmt.Errorf("add token: %w", err)
	}
	tokens := child(meta, "tokens")
	number := 0
	for tokens[strconv.Itoa(number)] != nil {
		number++
	}
	var t object
	if err := json.Unmarshal(token, &t); err != nil {
		return 0, fmt.Errorf("add token: %w", err)
	}
	tokens[strconv.Itoa(number)] = t
	if err := v.write2(raw, meta); err != nil {
		return 0, fmt.Errorf("add token: %w", err)
	}
	return number, nil
}
