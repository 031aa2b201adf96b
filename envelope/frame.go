package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Errors of frames. ErrFrameVersion and ErrFrameFeature name what this reader
// lacks; the others say that the object is not what it should be.
var (
	ErrFrameDamaged = errors.New("frame is damaged")
	ErrFrameKind    = errors.New("frame is of another kind")
	ErrFrameAuth    = errors.New("frame is not authentic under this key")
	ErrFrameVersion = errors.New("frame version is not known")
	ErrFrameFeature = errors.New("frame feature is not known")
)

const (
	frameMagic      = "LSF1"
	frameHeaderSize = 16
	frameSaltSize   = 32
	frameNonceSize  = 12
	frameTagSize    = 16
	frameCRCSize    = 4

	flagSealed = 1 << 0
)

// FrameOverhead is what a frame adds to an unsealed body, SealedFrameOverhead
// what it adds to a sealed one, in bytes.
const (
	FrameOverhead       = frameHeaderSize + frameCRCSize
	SealedFrameOverhead = FrameOverhead + frameSaltSize + frameNonceSize + frameTagSize
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// FrameInfo is what a frame says of itself without a key.
type FrameInfo struct {
	Kind   uint16
	Sealed bool
}

// SealFrame puts body into a frame of the given kind, sealed under key, or in
// the clear if key is nil. aad binds a sealed frame to its use (where it lies,
// for example) and must be given again to OpenFrame; it is not stored.
func SealFrame(kind uint16, key *[32]byte, aad, body []byte) ([]byte, error) {
	if key == nil {
		out := make([]byte, 0, FrameOverhead+len(body))
		out = appendFrameHeader(out, kind, 0, len(body))
		out = append(out, body...)
		return appendCRC(out), nil
	}
	out := make([]byte, 0, SealedFrameOverhead+len(body))
	out = appendFrameHeader(out, kind, flagSealed, len(body)+frameTagSize)
	random := out[frameHeaderSize : frameHeaderSize+frameSaltSize+frameNonceSize]
	if _, err := rand.Read(random); err != nil {
		return nil, fmt.Errorf("seal frame: %w", err)
	}
	salt, nonce := random[:frameSaltSize], random[frameSaltSize:]
	out = out[:frameHeaderSize+len(random)]
	gcm, err := frameCipher(key, salt)
	if err != nil {
		return nil, fmt.Errorf("seal frame: %w", err)
	}
	out = gcm.Seal(out, nonce, body, frameAAD(out, aad))
	return appendCRC(out), nil
}

// OpenFrame checks a frame and returns its body, which for an unsealed frame
// is a part of data. A key demands a sealed frame, nil an unsealed one.
func OpenFrame(data []byte, kind uint16, key *[32]byte, aad []byte) ([]byte, error) {
	info, err := InspectFrame(data)
	if err != nil {
		return nil, fmt.Errorf("open frame: %w", err)
	}
	if info.Kind != kind {
		return nil, fmt.Errorf("open frame: %w: kind %#04x, want %#04x", ErrFrameKind, info.Kind, kind)
	}
	switch {
	case !info.Sealed && key != nil:
		return nil, fmt.Errorf("open frame: %w: it is not sealed, though it must be", ErrFrameAuth)
	case info.Sealed && key == nil:
		return nil, fmt.Errorf("open frame: %w: it is sealed, and there is no key", ErrFrameAuth)
	case !info.Sealed:
		return data[frameHeaderSize : len(data)-frameCRCSize], nil
	}
	const prefix = frameHeaderSize + frameSaltSize + frameNonceSize
	salt := data[frameHeaderSize : frameHeaderSize+frameSaltSize]
	nonce := data[frameHeaderSize+frameSaltSize : prefix]
	gcm, err := frameCipher(key, salt)
	if err != nil {
		return nil, fmt.Errorf("open frame: %w", err)
	}
	body, err := gcm.Open(nil, nonce, data[prefix:len(data)-frameCRCSize], frameAAD(data[:prefix], aad))
	if err != nil {
		return nil, fmt.Errorf("open frame: %w", ErrFrameAuth)
	}
	return body, nil
}

// CheckFrame checks what can be checked without a key: shape and CRC32C.
func CheckFrame(data []byte) error {
	if _, err := InspectFrame(data); err != nil {
		return fmt.Errorf("check frame: %w", err)
	}
	return nil
}

// InspectFrame does what CheckFrame does, and says what the frame holds.
// Without a key none of it is authenticated.
func InspectFrame(data []byte) (FrameInfo, error) {
	if len(data) < FrameOverhead {
		return FrameInfo{}, fmt.Errorf("%w: %d bytes are too few", ErrFrameDamaged, len(data))
	}
	if string(data[:3]) != frameMagic[:3] {
		return FrameInfo{}, fmt.Errorf("%w: no magic", ErrFrameDamaged)
	}
	if data[3] != frameMagic[3] {
		return FrameInfo{}, fmt.Errorf("%w: magic %q, this reader knows %q", ErrFrameVersion, data[:4], frameMagic)
	}
	end := len(data) - frameCRCSize
	if crc32.Checksum(data[:end], castagnoli) != binary.LittleEndian.Uint32(data[end:]) {
		return FrameInfo{}, fmt.Errorf("%w: checksum differs", ErrFrameDamaged)
	}
	flags := binary.LittleEndian.Uint16(data[6:])
	if unknown := flags &^ flagSealed; unknown != 0 {
		return FrameInfo{}, fmt.Errorf("%w: flag bits %#04x", ErrFrameFeature, unknown)
	}
	info := FrameInfo{Kind: binary.LittleEndian.Uint16(data[4:]), Sealed: flags&flagSealed != 0}
	bodyStart, minBody := frameHeaderSize, 0
	if info.Sealed {
		bodyStart += frameSaltSize + frameNonceSize
		minBody = frameTagSize
	}
	stored := end - bodyStart
	if stored < minBody || binary.LittleEndian.Uint64(data[8:]) != uint64(stored) {
		return FrameInfo{}, fmt.Errorf("%w: length differs", ErrFrameDamaged)
	}
	return info, nil
}

func appendFrameHeader(out []byte, kind, flags uint16, bodyLen int) []byte {
	out = append(out, frameMagic...)
	out = binary.LittleEndian.AppendUint16(out, kind)
	out = binary.LittleEndian.AppendUint16(out, flags)
	return binary.LittleEndian.AppendUint64(out, uint64(bodyLen))
}

func appendCRC(out []byte) []byte {
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli))
}

// frameAAD copies, because prefix has room behind it that Seal is about to fill.
func frameAAD(prefix, aad []byte) []byte {
	all := make([]byte, 0, len(prefix)+len(aad))
	return append(append(all, prefix...), aad...)
}

func frameCipher(key *[32]byte, salt []byte) (cipher.AEAD, error) {
	frameKey, err := hkdf.Key(sha256.New, key[:], salt, "lockstep/frame/1", 32)
	if err != nil {
		return nil, err
	}
	defer Wipe(frameKey)
	block, err := aes.NewCipher(frameKey)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
