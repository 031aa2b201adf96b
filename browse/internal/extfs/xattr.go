package extfs

import (
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var prefixes = map[byte]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.",
	7: "system.", 8: "system.richacl", 9: "encryption.",
}

// attribute is one on disk.
type attribute struct {
	index byte
	name  string
	value []byte
}

// attributes are those of the inode's own space, then those of its block.
func (f *FS) attributes(i inode) ([]attribute, error) {
	var found []attribute
	if start := 0x80 + i.extra(); i.extra() > 0 && len(i.raw) >= start+8 && le.Uint32(i.raw[start:]) == 0xEA020000 {
		area := i.raw[start+4:]
		if err := f.attributeList(area, area, &found); err != nil {
			return nil, fmt.Errorf("attributes in inode %d: %w", i.id, err)
		}
	}
	at := uint64(le.Uint32(i.raw[0x68:])) | uint64(le.Uint16(i.raw[0x76:]))<<32
	if f.incompat&feat64bit == 0 {
		at &= 1<<32 - 1
	}
	if at == 0 {
		return found, nil
	}
	b, err := f.block(at)
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", i.id, err)
	}
	if le.Uint32(b) != 0xEA020000 {
		return nil, fsys.Corrupt("block %d has no attributes", at)
	}
	if err := f.attributeList(b[32:], b, &found); err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", i.id, err)
	}
	return found, nil
}

// attributeList reads entries; their values lie in values.
func (f *FS) attributeList(entries, values []byte, found *[]attribute) error {
	total := 0
	for len(entries) >= 4 && le.Uint32(entries) != 0 {
		if len(entries) < 16 {
			return fsys.Corrupt("an attribute is cut short")
		}
		nameLength := int(entries[0])
		offset, size := int64(le.Uint16(entries[2:])), int64(le.Uint32(entries[8:]))
		if 16+nameLength > len(entries) || len(*found) >= fsys.MaxXattrs {
			return fsys.Corrupt("the name of an attribute has %d bytes", nameLength)
		}
		a := attribute{index: entries[1], name: string(entries[16 : 16+nameLength])}
		if inum := le.Uint32(entries[4:]); inum != 0 && f.incompat&0x400 != 0 {
			value, err := f.largeValue(uint64(inum), size)
			if err != nil {
				return err
			}
			a.value = value
		} else {
			if offset > int64(len(values)) || size > int64(len(values))-offset {
				return fsys.Corrupt("an attribute's value of %d bytes at %d", size, offset)
			}
			a.value = values[offset : offset+size]
		}
		if total += len(a.value); total > fsys.AllXattrs {
			return fsys.Unsupported("attributes of more than %d bytes", fsys.AllXattrs)
		}
		*found = append(*found, a)
		entries = entries[min((16+nameLength+3)&^3, len(entries)):]
	}
	return nil
}

// largeValue is the value of an attribute that has an inode of its own.
func (f *FS) largeValue(id uint64, size int64) ([]byte, error) {
	if size > fsys.MaxXattr {
		return nil, fsys.Unsupported("an attribute of %d bytes", size)
	}
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := fsys.NewFile(f.vol, size, runs).ReadAt(b, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// Xattrs are the extended attributes, access lists among them, as Linux shows
// them.
func (f *FS) Xattrs(id uint64) ([]fsys.Xattr, error) {
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	list, err := f.attributes(i)
	if err != nil {
		return nil, err
	}
	var out []fsys.Xattr
	for _, a := range list {
		if a.index == 7 && a.name == "data" || a.index == 9 {
			continue // content, keys: not attributes to a user
		}
		x := fsys.Xattr{Name: prefixes[a.index] + a.name, Value: a.value}
		if a.index == 2 || a.index == 3 {
			if x.Value, err = accessList(a.value); err != nil {
				return nil, err
			}
		}
		if prefixes[a.index] != "" {
			out = append(out, x)
		}
	}
	return out, nil
}

// accessList turns the short form on disk into that of system calls.
func accessList(b []byte) ([]byte, error) {
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, fsys.Corrupt("access list of an unknown version")
	}
	out := le.AppendUint32(nil, 2)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, fsys.Corrupt("an access list is cut short")
		}
		tag, n, id := le.Uint16(b), 4, uint32(0xFFFFFFFF)
		if tag == 2 || tag == 8 { // a user, a group
			if n = 8; len(b) < n {
				return nil, fsys.Corrupt("an access list is cut short")
			}
			id = le.Uint32(b[4:])
		}
		out = le.AppendUint32(append(out, b[:4]...), id)
		b = b[n:]
	}
	return out, nil
}

// inline is the content that lies in the inode: 60 bytes, and the rest in an
// attribute.
func (f *FS) inline(i inode) ([]byte, error) {
	b := append([]byte(nil), i.body()...)
	list, err := f.attributes(i)
	if err != nil {
		return nil, err
	}
	for _, a := range list {
		if a.index == 7 && a.name == "data" {
			b = append(b, a.value...)
		}
	}
	if i.size() < int64(len(b)) {
		b = b[:i.size()]
	}
	return b, nil
}
