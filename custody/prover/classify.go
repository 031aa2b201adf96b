package prover

import (
	"io"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/envelope"
)

// classBytes suffice for every signature at the beginning of a volume; btrfs
// has the farthest, at 64 KiB.
const classBytes = 128 << 10

// classify names what a decrypted volume begins with, and nothing more of it.
func classify(plain io.ReaderAt, size int64) string {
	head := make([]byte, min(classBytes, size))
	defer envelope.Wipe(head)
	n, _ := plain.ReadAt(head, 0) // what can be read decides; the first sector was read before
	switch class := blockstack.Class(head[:n]); class {
	case "", blockstack.Empty:
		return custody.ClassNone
	case blockstack.LVM2:
		return "lvm"
	default:
		return class
	}
}
