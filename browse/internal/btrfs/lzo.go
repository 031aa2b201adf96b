package btrfs

import "github.com/lockstep-backup/lockstep/browse/internal/fsys"

// unpackLZO unpacks segments of LZO1X, one for each sector of content. None of
// their headers crosses the border of a sector.
func unpackLZO(plain, stored []byte, sector int) error {
	if len(stored) < 4 || le.Uint32(stored) > uint32(len(stored)) {
		return fsys.Corrupt("LZO is cut short")
	}
	stored = stored[:max(4, le.Uint32(stored))]
	for at := 4; len(plain) > 0 && at < len(stored); {
		if left := sector - at%sector; left < 4 {
			at += left
		}
		if len(stored)-at < 4 {
			break
		}
		n := le.Uint32(stored[at:])
		if at += 4; n > uint32(len(stored)-at) {
			return fsys.Corrupt("LZO is cut short")
		}
		part := plain[:min(len(plain), sector)]
		if err := lzo(part, stored[at:at+int(n)]); err != nil {
			return err
		}
		plain, at = plain[len(part):], at+int(n)
	}
	return nil
}

// lzo unpacks one stream into out, whose rest stays as it is.
func lzo(out, in []byte) error {
	bad := fsys.Corrupt("LZO contradicts itself")
	done, at, failed := 0, 0, false
	next := func() int {
		if at >= len(in) {
			failed = true
			return 0
		}
		at++
		return int(in[at-1])
	}
	literals := func(n int) {
		if n > len(in)-at || n > len(out)-done {
			failed = true
			return
		}
		copy(out[done:], in[at:at+n])
		done, at = done+n, at+n
	}
	long := func(n, most int) int { // a length that goes on in zero bytes
		if n > 0 {
			return n
		}
		for n = most; ; n += 255 {
			if b := next(); b != 0 || failed {
				return n + b
			}
		}
	}
	state := 0 // literals before this, 4 for a run of them
	if len(in) > 0 && in[0] > 17 {
		n := next() - 17
		literals(n)
		state = min(n, 4)
	}
	for !failed {
		var distance, length, follow int
		switch b := next(); {
		case failed:
			return bad
		case b < 16 && state == 0:
			literals(long(b, 15) + 3)
			state = 4
			continue
		case b < 16 && state < 4:
			follow, distance, length = b&3, 1+b>>2+next()<<2, 2
		case b < 16:
			follow, distance, length = b&3, 0x801+b>>2+next()<<2, 3
		case b >= 64:
			follow, distance, length = b&3, 1+b>>2&7+next()<<3, b>>5+1
		case b >= 32:
			length = long(b&31, 31) + 2
			n := next() | next()<<8
			follow, distance = n&3, 1+n>>2
		default:
			length = long(b&7, 7) + 2
			n := next() | next()<<8
			follow, distance = n&3, b&8<<11+n>>2
			if distance == 0 {
				if failed {
					return bad
				}
				return nil
			}
			distance += 0x4000
		}
		if failed || distance > done || length > len(out)-done {
			return bad
		}
		for range length { // they may overlap
			out[done] = out[done-distance]
			done++
		}
		literals(follow)
		state = follow
	}
	return bad
}
