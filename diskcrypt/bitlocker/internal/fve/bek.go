package fve

import "fmt"

// KeyFile is what a .BEK file holds.
type KeyFile struct {
	GUID     GUID // of the protector that it belongs to
	FileTime uint64
	Key      []byte // part of the file's bytes
}

const (
	keyFileHeader = 48
	maxKeyFile    = 64 << 10
)

// ParseKeyFile reads a .BEK file, of Windows 11 and earlier.
func ParseKeyFile(b []byte) (*KeyFile, error) {
	if len(b) < keyFileHeader || len(b) > maxKeyFile || int64(le.Uint32(b)) != int64(len(b)) || le.Uint32(b[4:]) != 1 ||
		le.Uint32(b[8:]) != keyFileHeader {
		return nil, fmt.Errorf("%w: %d bytes that are no .BEK file", ErrNone, len(b))
	}
	ds, err := ParseDatums(b[keyFileHeader:])
	if err != nil {
		return nil, fmt.Errorf("%w: .BEK file: %w", ErrNone, err)
	}
	d, ok := First(ds, RoleStartupKey, TypeExternalKey)
	if !ok {
		return nil, fmt.Errorf("%w: .BEK file without an external key", ErrNone)
	}
	key, ok := First(d.Nested, -1, TypeKey)
	if !ok {
		return nil, fmt.Errorf("%w: .BEK file without a key", ErrNone)
	}
	_, raw, ok := key.Key()
	if !ok || len(raw) != 32 {
		return nil, fmt.Errorf("%w: .BEK file with a key of %d bytes", ErrNone, len(raw))
	}
	return &KeyFile{GUID: GUID(d.Body[:16]), FileTime: le.Uint64(d.Body[16:]), Key: raw}, nil
}

// FormatKeyFile writes a .BEK file as Windows 10 does, byte for byte. The
// caller wipes it.
func FormatKeyFile(k KeyFile) []byte {
	const size = 156
	b := make([]byte, 0, size)
	b = le.AppendUint32(b, size)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, keyFileHeader)
	b = le.AppendUint32(b, size)
	b = append(b, k.GUID[:]...)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, k.FileTime)
	datum := func(size, role, typ int) {
		b = le.AppendUint16(b, uint16(size))
		b = le.AppendUint16(b, uint16(role))
		b = le.AppendUint16(b, uint16(typ))
		b = le.AppendUint16(b, 1)
	}
	datum(size-keyFileHeader, RoleStartupKey, TypeExternalKey)
	b = append(b, k.GUID[:]...)
	b = le.AppendUint64(b, k.FileTime)
	const name = "ExternalKey\x00"
	datum(datumHeader+2*len(name), RoleProperty, TypeUnicode)
	for _, c := range []byte(name) {
		b = append(b, c, 0)
	}
	datum(datumHeader+4+len(k.Key), RoleProperty, TypeKey)
	b = le.AppendUint16(b, AlgExternalKey)
	b = le.AppendUint16(b, 0)
	return append(b, k.Key...)
}
