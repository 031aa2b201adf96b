package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"testing"
)

func testKey(fill byte) *[32]byte {
	var k [32]byte
	for i := range k {
		k[i] = fill + byte(i)
	}
	return &k
}

func recrc(frame []byte) []byte {
	end := len(frame) - 4
	binary.LittleEndian.PutUint32(frame[end:], crc32.Checksum(frame[:end], castagnoli))
	return frame
}

func mustSeal(tb testing.TB, kind uint16, key *[32]byte, aad, body []byte) []byte {
	tb.Helper()
	f, err := SealFrame(kind, key, aad, body)
	if err != nil {
		tb.Fatal(err)
	}
	return f
}

func TestFrameRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 15, 16, 17, 4096, 1 << 20} {
		for _, key := range []*[32]byte{nil, testKey(1)} {
			t.Run(fmt.Sprintf("%d bytes sealed=%v", size, key != nil), func(t *testing.T) {
				body := bytes.Repeat([]byte{0xa5}, size)
				frame := mustSeal(t, 0x1234, key, []byte("where"), body)
				overhead := FrameOverhead
				if key != nil {
					overhead = SealedFrameOverhead
				}
				if len(frame) != size+overhead {
					t.Errorf("frame of %d bytes, want %d", len(frame), size+overhead)
				}
				if err := CheckFrame(frame); err != nil {
					t.Errorf("check: %v", err)
				}
				got, err := OpenFrame(frame, 0x1234, key, []byte("where"))
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("open: %d bytes, %v", len(got), err)
				}
				info, err := InspectFrame(frame)
				if err != nil || info != (FrameInfo{Kind: 0x1234, Sealed: key != nil}) {
					t.Errorf("inspect: %+v, %v", info, err)
				}
			})
		}
	}
}

func TestFrameLayout(t *testing.T) {
	frame := mustSeal(t, 0x0102, nil, nil, []byte("hi"))
	want := append([]byte("LSF1\x02\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00hi"), 0, 0, 0, 0)
	if recrc(want); !bytes.Equal(frame, want) {
		t.Errorf("frame %x, want %x", frame, want)
	}
}

func TestFrameEveryFlippedBitIsDetected(t *testing.T) {
	for _, key := range []*[32]byte{nil, testKey(1)} {
		frame := mustSeal(t, 7, key, []byte("aad"), []byte("the content of a manifest"))
		for i := range frame {
			for bit := range 8 {
				flipped := bytes.Clone(frame)
				flipped[i] ^= 1 << bit
				if _, err := OpenFrame(flipped, 7, key, []byte("aad")); err == nil {
					t.Errorf("sealed=%v: byte %d bit %d: opened", key != nil, i, bit)
				}
				if err := CheckFrame(flipped); err == nil {
					t.Errorf("sealed=%v: byte %d bit %d: passed the check", key != nil, i, bit)
				}
				if key == nil || i >= len(frame)-4 || i < 4 {
					continue
				}
				// An attacker corrects the checksum: the tag must decide.
				if _, err := OpenFrame(recrc(flipped), 7, key, []byte("aad")); err == nil {
					t.Errorf("byte %d bit %d with a corrected checksum: opened", i, bit)
				}
			}
		}
		for n := range frame {
			if _, err := OpenFrame(frame[:n], 7, key, []byte("aad")); err == nil {
				t.Errorf("sealed=%v: cut to %d bytes: opened", key != nil, n)
			}
		}
	}
}

func TestFrameRefusals(t *testing.T) {
	key := testKey(1)
	plain := mustSeal(t, 7, nil, nil, []byte("body"))
	sealed := mustSeal(t, 7, key, []byte("aad"), []byte("body"))
	edit := func(frame []byte, change func([]byte)) []byte {
		c := bytes.Clone(frame)
		change(c)
		return recrc(c)
	}
	for _, c := range []struct {
		name string
		data []byte
		kind uint16
		key  *[32]byte
		aad  string
		want error
	}{
		{"empty", nil, 7, nil, "", ErrFrameDamaged},
		{"other magic", edit(plain, func(b []byte) { b[0] = 'X' }), 7, nil, "", ErrFrameDamaged},
		{"version 2", edit(plain, func(b []byte) { b[3] = '2' }), 7, nil, "", ErrFrameVersion},
		{"unknown flag", edit(plain, func(b []byte) { b[6] |= 4 }), 7, nil, "", ErrFrameFeature},
		{"unknown high flag", edit(plain, func(b []byte) { b[7] |= 0x80 }), 7, nil, "", ErrFrameFeature},
		{"length too large", edit(plain, func(b []byte) { b[8]++ }), 7, nil, "", ErrFrameDamaged},
		{"length absurd", edit(plain, func(b []byte) { b[15] = 0xff }), 7, nil, "", ErrFrameDamaged},
		{"sealed flag on a short body", edit(plain, func(b []byte) { b[6] = 1 }), 7, key, "", ErrFrameDamaged},
		{"appended byte", append(bytes.Clone(plain), 0), 7, nil, "", ErrFrameDamaged},
		{"other kind", plain, 8, nil, "", ErrFrameKind},
		{"other key", sealed, 7, testKey(2), "aad", ErrFrameAuth},
		{"other aad", sealed, 7, key, "aae", ErrFrameAuth},
		{"no key", sealed, 7, nil, "aad", ErrFrameAuth},
		{"replaced by an unsealed one", plain, 7, key, "", ErrFrameAuth},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := OpenFrame(c.data, c.kind, c.key, []byte(c.aad)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestFrameNeverRepeats(t *testing.T) {
	a := mustSeal(t, 1, testKey(1), nil, []byte("same"))
	b := mustSeal(t, 1, testKey(1), nil, []byte("same"))
	if bytes.Equal(a[16:60], b[16:60]) {
		t.Error("two frames share salt and nonce")
	}
}

func FuzzOpenFrame(f *testing.F) {
	key := testKey(1)
	f.Add(mustSeal(f, 7, nil, nil, []byte("body")))
	f.Add(mustSeal(f, 7, key, nil, []byte("body")))
	f.Add([]byte("LSF1"))
	f.Add(recrc(append([]byte("LSF1\x07\x00\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff"), make([]byte, 64)...)))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := OpenFrame(data, 7, nil, nil)
		if err == nil {
			again := mustSeal(t, 7, nil, nil, body)
			if !bytes.Equal(again, data) {
				t.Errorf("accepted %x, which is not what its body gives", data)
			}
		}
		if (err == nil) && CheckFrame(data) != nil {
			t.Error("opened, but the check fails")
		}
		_, _ = OpenFrame(data, 7, key, nil)
		if len(data) >= 4 {
			_, _ = OpenFrame(recrc(bytes.Clone(data)), 7, key, nil)
		}
	})
}
