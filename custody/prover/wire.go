package prover

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/envelope"
)

// A frame is u32 length of the header, u32 length of the body (big-endian),
// header (JSON of message), body. Secrets travel in bodies only: a body is one
// buffer that its receiver wipes, JSON would leave copies.
const (
	protocolVersion = 1

	maxFrameHeader = 4 << 20
	maxFrameBody   = envelope.MaxDSSE
	// maxRead is the most that the child asks for at once, in bytes.
	maxRead = 1 << 20
)

// Kinds of messages. The parent sends try, package, bytes; the child the others.
const (
	kindHello         = "hello"         // first of all: Protocol, Key
	kindTry           = "try"           // Try; body = inline secret
	kindPackage       = "package"       // Package
	kindRead          = "read"          // Read
	kindBytes         = "bytes"         // answer to read; body = bytes; End, Error
	kindProof         = "proof"         // Index of the volume; body = signed proof
	kindKeyPackage    = "keypackage"    // body = signed package
	kindHeaderPackage = "headerpackage" // body = signed package
	kindResult        = "result"        // ends a request: Outcome or Problems
	kindError         = "error"         // ends a request: Code, Error
)

// Codes of errors.
const (
	codeManager = "manager"
	codeRequest = "request"
)

type message struct {
	Kind     string                  `json:"kind"`
	Protocol int                     `json:"protocol,omitempty"`
	Key      string                  `json:"key,omitempty"`
	Try      *custody.Request        `json:"try,omitempty"`
	Package  *custody.PackageRequest `json:"package,omitempty"`
	Read     *readRequest            `json:"read,omitempty"`
	Index    int                     `json:"index,omitempty"`
	Outcome  *custody.Outcome        `json:"outcome,omitempty"`
	Problems []string                `json:"problems,omitempty"`
	End      bool                    `json:"end,omitempty"` // the read reached the end
	Code     string                  `json:"code,omitempty"`
	Error    string                  `json:"error,omitempty"`
	// Last says that the child ends after this: an attempt ran on and on.
	Last bool `json:"last,omitempty"`

	KeyCover    *custody.KeyCover    `json:"key_cover,omitempty"`
	HeaderCover *custody.HeaderCover `json:"header_cover,omitempty"`
}

type readRequest struct {
	Disk   string `json:"disk"`
	Volume string `json:"volume"`
	Header bool   `json:"header"`
	Offset int64  `json:"offset"`
	Length int    `json:"length"`
}

func writeFrame(w io.Writer, m message, body []byte) error {
	header, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	if len(header) > maxFrameHeader || len(body) > maxFrameBody {
		return fmt.Errorf("write frame: %w: %d and %d bytes", custody.ErrTooLarge, len(header), len(body))
	}
	out := make([]byte, 8, 8+len(header))
	binary.BigEndian.PutUint32(out, uint32(len(header)))
	binary.BigEndian.PutUint32(out[4:], uint32(len(body)))
	if _, err := w.Write(append(out, header...)); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	if len(body) == 0 {
		return nil
	}
	if _, err := w.Write(body); err != nil {
		return fmt.Errorf("write frame: %w", err)
	}
	return nil
}

// readFrame reads one frame. io.EOF where the stream ends between frames. What
// is not a frame is custody.ErrProverProtocol.
func readFrame(r io.Reader) (message, []byte, error) {
	var m message
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return m, nil, io.EOF
		}
		return m, nil, fmt.Errorf("read frame: %w", err)
	}
	h, b := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if h > maxFrameHeader || b > maxFrameBody {
		return m, nil, fmt.Errorf("read frame: %w: %d and %d bytes announced", custody.ErrProverProtocol, h, b)
	}
	header, err := readGrowing(r, int(h))
	if err != nil {
		return m, nil, fmt.Errorf("read frame: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(header))
	if err := d.Decode(&m); err != nil {
		return m, nil, fmt.Errorf("read frame: %w: %w", custody.ErrProverProtocol, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, nil, fmt.Errorf("read frame: %w: something follows the header", custody.ErrProverProtocol)
	}
	body, err := readGrowing(r, int(b))
	if err != nil {
		return m, nil, fmt.Errorf("read frame: %w", err)
	}
	return m, body, nil
}

// readGrowing reads n bytes; memory follows what arrives, not what was announced.
func readGrowing(r io.Reader, n int) ([]byte, error) {
	buf := make([]byte, min(n, 64<<10))
	got := 0
	for {
		m, err := io.ReadFull(r, buf[got:])
		got += m
		if err != nil {
			envelope.Wipe(buf)
			return nil, io.ErrUnexpectedEOF
		}
		if got == n {
			return buf, nil
		}
		grown := make([]byte, min(n, 4*len(buf)))
		copy(grown, buf)
		envelope.Wipe(buf)
		buf = grown
	}
}
