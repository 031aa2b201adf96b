package keyslot

import (
	"encoding"
	"encoding/binary"
	"hash"
	"runtime"

	"github.com/lockstep-backup/lockstep/envelope"
)

// pbkdf2Key is PBKDF2 with HMAC (RFC 8018, 5.2). crypto/pbkdf2 takes the
// password as a string, which nobody can wipe; a volume key is one, where its
// digest is checked.
func pbkdf2Key(newHash func() hash.Hash, password, salt []byte, iterations uint64, keyLen int) []byte {
	m := newMAC(newHash, password)
	defer m.wipe()
	u := make([]byte, 0, m.inner.Size())
	defer func() { envelope.Wipe(u[:cap(u)]) }()
	out := make([]byte, 0, keyLen+cap(u)) // never moved while it grows
	for block := uint32(1); len(out) < keyLen; block++ {
		u = m.sum(u, salt, binary.BigEndian.AppendUint32(nil, block))
		out = append(out, u...)
		t := out[len(out)-len(u):]
		for i := uint64(1); i < iterations; i++ {
			u = m.sum(u, u, nil)
			for j := range t {
				t[j] ^= u[j]
			}
		}
	}
	clear(out[keyLen:cap(out)])
	return out[:keyLen:keyLen]
}

// mac is HMAC whose key can be wiped.
type mac struct {
	inner, outer           hash.Hash
	ipad, opad             []byte
	innerState, outerState []byte // the hashes behind their pads; nil where they cannot be had
	middle                 []byte
}

func newMAC(newHash func() hash.Hash, key []byte) *mac {
	m := &mac{inner: newHash(), outer: newHash()}
	size := m.inner.BlockSize()
	m.ipad, m.opad, m.middle = make([]byte, size), make([]byte, size), make([]byte, 0, m.inner.Size())
	if len(key) > size {
		m.inner.Write(key)
		m.inner.Sum(m.ipad[:0])
		flush(m.inner)
	} else {
		copy(m.ipad, key)
	}
	for i, b := range m.ipad {
		m.ipad[i], m.opad[i] = b^0x36, b^0x5c
	}
	m.innerState, m.outerState = behind(m.inner, m.ipad), behind(m.outer, m.opad)
	return m
}

// behind is the state of a hash after its pad.
func behind(h hash.Hash, pad []byte) []byte {
	h.Reset()
	h.Write(pad)
	if s, ok := h.(encoding.BinaryMarshaler); ok {
		if b, err := s.MarshalBinary(); err == nil {
			return b
		}
	}
	return nil
}

func begin(h hash.Hash, pad, state []byte) {
	if s, ok := h.(encoding.BinaryUnmarshaler); ok && state != nil && s.UnmarshalBinary(state) == nil {
		return
	}
	h.Reset()
	h.Write(pad)
}

// sum replaces out by the MAC of a and b, either of which may be out.
func (m *mac) sum(out, a, b []byte) []byte {
	begin(m.inner, m.ipad, m.innerState)
	m.inner.Write(a)
	m.inner.Write(b)
	m.middle = m.inner.Sum(m.middle[:0])
	begin(m.outer, m.opad, m.outerState)
	m.outer.Write(m.middle)
	return m.outer.Sum(out[:0])
}

func (m *mac) wipe() {
	for _, b := range [][]byte{m.ipad, m.opad, m.innerState, m.outerState, m.middle[:cap(m.middle)]} {
		envelope.Wipe(b)
	}
	flush(m.inner)
	flush(m.outer)
}

// flush pushes out of a hash what it holds of a block that is not full.
func flush(h hash.Hash) {
	h.Write(make([]byte, 2*h.BlockSize()))
	h.Reset()
}

// scrub overwrites the stack that is going to be used, or was: libraries leave
// keys there. Called before, it makes the stack so large that it need not be
// moved, with keys in it, in between. It takes small steps: a stack that must
// grow is clean by then.
func scrub() { scrubFrames(64) }

//go:noinline
func scrubFrames(n int) {
	var b [512]byte
	clear(b[:])
	if n > 0 {
		scrubFrames(n - 1)
	}
	runtime.KeepAlive(&b)
}
