package xfs

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

const (
	attrLocal      = 0x01
	attrRoot       = 0x02
	attrSecure     = 0x04
	attrParent     = 0x08
	attrIncomplete = 0x80
)

// Xattrs are the extended attributes, access lists among them, as Linux shows
// them.
func (f *FS) Xattrs(id uint64) ([]fsys.Xattr, error) {
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	k, ok := i.attributes()
	if !ok {
		return nil, nil
	}
	a := attributes{f: f}
	switch {
	case k.format == formatLocal:
		err = a.short(k.raw)
	case k.format == formatExtents && k.count == 0:
	default:
		if a.runs, err = f.runs(k); err == nil {
			err = a.tree()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", id, err)
	}
	return a.found, nil
}

type attributes struct {
	f     *FS
	runs  fsys.Runs
	found []fsys.Xattr
	total int // bytes of values
}

func (a *attributes) add(flags byte, name, value []byte) error {
	if flags&(attrParent|attrIncomplete) != 0 {
		return nil
	}
	if len(a.found) >= fsys.MaxXattrs {
		return fsys.Unsupported("more than %d attributes of one file", fsys.MaxXattrs)
	}
	if a.total += len(value); a.total > fsys.AllXattrs {
		return fsys.Unsupported("attributes of more than %d bytes", fsys.AllXattrs)
	}
	x := fsys.Xattr{Name: "user." + string(name), Value: value}
	switch {
	case flags&attrSecure != 0:
		x.Name = "security." + string(name)
	case flags&attrRoot != 0 && (string(name) == "SGI_ACL_FILE" || string(name) == "SGI_ACL_DEFAULT"):
		x.Name = "system.posix_acl_access"
		if string(name) == "SGI_ACL_DEFAULT" {
			x.Name = "system.posix_acl_default"
		}
		list, err := accessList(value)
		if err != nil {
			return err
		}
		x.Value = list
	case flags&attrRoot != 0:
		x.Name = "trusted." + string(name)
	}
	a.found = append(a.found, x)
	return nil
}

// accessList turns the form on disk into that of system calls.
func accessList(b []byte) ([]byte, error) {
	if len(b) < 4 || int64(be.Uint32(b)) > int64(len(b)-4)/12 {
		return nil, fsys.Corrupt("access list of %d bytes", len(b))
	}
	le := binary.LittleEndian
	out := le.AppendUint32(nil, 2)
	for e := range be.Uint32(b) {
		p := b[4+12*e:]
		tag, id := be.Uint32(p), be.Uint32(p[4:])
		if tag != 2 && tag != 8 {
			id = 0xFFFFFFFF
		}
		out = le.AppendUint16(out, uint16(tag))
		out = le.AppendUint16(out, be.Uint16(p[8:]))
		out = le.AppendUint32(out, id)
	}
	return out, nil
}

func (a *attributes) short(b []byte) error {
	cut := fsys.Corrupt("cut short")
	if len(b) < 4 {
		return cut
	}
	count := int(b[2])
	b = b[4:]
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return cut
		}
		n, v := int(b[0]), int(b[1])
		if err := a.add(b[2], b[3:3+n], b[3+n:3+n+v]); err != nil {
			return err
		}
		b = b[3+n+v:]
	}
	return nil
}

// block is a block of the attributes' space.
func (a *attributes) block(n uint32) ([]byte, error) {
	at := int64(n) * a.f.bs
	file := fsys.NewFile(a.f.vol, at+a.f.bs, a.runs)
	if start, _ := file.NextData(at); start != at {
		return nil, fsys.Corrupt("block %d is a hole", n)
	}
	b := make([]byte, a.f.bs)
	_, err := file.ReadAt(b, at)
	return b, err
}

// tree goes down the left side of the tree, and along its leaves.
func (a *attributes) tree() error {
	n := uint32(0)
	for depth := 0; ; depth++ {
		b, err := a.block(n)
		if err != nil {
			return err
		}
		head := 16
		switch be.Uint16(b[8:]) {
		case 0xFBEE, 0x3BEE:
			return a.leaves(n)
		case 0xFEBE:
		case 0x3EBE:
			head = 64
		default:
			return fsys.Corrupt("block %d is none of attributes", n)
		}
		if depth > 5 || be.Uint16(b[head-4:]) == 0 && head == 16 || be.Uint16(b[56:]) == 0 && head == 64 {
			return fsys.Corrupt("a tree without leaves")
		}
		n = be.Uint32(b[head+4:])
	}
}

func (a *attributes) leaves(n uint32) error {
	seen := map[uint32]bool{}
	for {
		if seen[n] || len(seen) > 1<<14 {
			return fsys.Corrupt("leaves in a circle")
		}
		seen[n] = true
		b, err := a.block(n)
		if err != nil {
			return err
		}
		count, entries := int(be.Uint16(b[12:])), 32
		switch be.Uint16(b[8:]) {
		case 0xFBEE:
		case 0x3BEE:
			count, entries = int(be.Uint16(b[56:])), 80
		default:
			return fsys.Corrupt("block %d is no leaf", n)
		}
		if entries+8*count > len(b) {
			return fsys.Corrupt("leaf with %d entries", count)
		}
		for k := range count {
			if err := a.entry(b, b[entries+8*k:]); err != nil {
				return err
			}
		}
		if n = be.Uint32(b); n == 0 {
			return nil
		}
	}
}

func (a *attributes) entry(leaf, e []byte) error {
	at, flags := int(be.Uint16(e[4:])), e[6]
	cut := fsys.Corrupt("an attribute at %d of a leaf is cut short", at)
	if at+3 > len(leaf) {
		return cut
	}
	b := leaf[at:]
	if flags&attrLocal != 0 {
		v, n := int(be.Uint16(b)), int(b[2])
		if 3+n+v > len(b) {
			return cut
		}
		return a.add(flags, b[3:3+n], b[3+n:3+n+v])
	}
	if len(b) < 9 {
		return cut
	}
	block, size, n := be.Uint32(b), int64(be.Uint32(b[4:])), int(b[8])
	if 9+n > len(b) || size > fsys.MaxXattr {
		return cut
	}
	if flags&attrIncomplete != 0 {
		return nil
	}
	value := make([]byte, 0, size)
	for ; int64(len(value)) < size; block++ {
		v, err := a.block(block)
		if err != nil {
			return err
		}
		if a.f.v5 {
			if string(v[:4]) != "XARM" {
				return fsys.Corrupt("block %d has no value", block)
			}
			v = v[56:]
		}
		value = append(value, v[:min(int64(len(v)), size-int64(len(value)))]...)
	}
	return a.add(flags, b[9:9+n], value)
}
