// Package nbd speaks the Network Block Device protocol in its fixed newstyle:
// a server that hands out disks, and a client that reads one. It follows the
// protocol's own document (doc/proto.md of the NetworkBlockDevice project) and
// knows nothing of what the disks are; docs/spec/nbd.md says which parts are
// spoken.
//
// The one invariant worth knowing: what the other side sends decides neither
// how much memory is used nor how long; every length is checked against a
// limit before anything is allocated for it.
package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Errors that callers act on.
var (
	// ErrProtocol says that the other side does not follow the protocol.
	ErrProtocol = errors.New("nbd protocol violated")
	// ErrUnknownExport says that the server has no export of that name.
	ErrUnknownExport = errors.New("nbd server has no such export")
	// ErrTLSRequired says that the server talks to encrypted connections only.
	ErrTLSRequired = errors.New("nbd server wants an encrypted connection")
	// ErrNoTLS says that the server does not offer encryption.
	ErrNoTLS = errors.New("nbd server offers no encryption")
	// ErrClosed says that the connection is gone, or was closed here.
	ErrClosed = errors.New("nbd connection is closed")
	// ErrUnreadable: the server is there and cannot read this range (EIO).
	ErrUnreadable = errors.New("nbd server cannot read this range")
)

// Limits in bytes.
const (
	// MaxRequest is the most that one request reads or writes.
	MaxRequest = 32 << 20
	// MaxName is the longest string of the protocol: export names, contexts, messages.
	MaxName = 4096
	// maxOption is the longest option or option reply that is looked at.
	maxOption = 64 << 10
)

// Magic numbers.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Flags of the handshake, the server's and the client's alike.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName       = 1
	optAbort            = 2
	optList             = 3
	optStartTLS         = 5
	optInfo             = 6
	optGo               = 7
	optStructuredReply  = 8
	optListMetaContext  = 9
	optSetMetaContext   = 10
	repAck              = 1
	repServer           = 2
	repInfo             = 3
	repMetaContext      = 4
	repError            = 1 << 31
	repErrUnsupported   = repError | 1
	repErrPolicy        = repError | 2
	repErrInvalid       = repError | 3
	repErrTLSRequired   = repError | 5
	repErrUnknown       = repError | 6
	repErrTooBig        = repError | 9
	infoExport          = 0
	infoName            = 1
	infoDescription     = 2
	infoBlockSize       = 3
	allocation          = "base:allocation"
	allocationID        = 1
	statusHole          = 1 << 0
	statusZero          = 1 << 1
	preferredBlockSize  = 64 << 10
	requestHeader       = 28
	simpleHeader        = 16
	structuredHeader    = 20
	maxMessage          = 512
	maxStatusExtents    = 8192
	maxClientExtents    = 1 << 20
	maxOptions          = 4096
	maxContextQueries   = 256
	noZeroesPaddingSize = 124
)

// Transmission flags of an export.
const (
	transHasFlags  = 1 << 0
	transReadOnly  = 1 << 1
	transFlush     = 1 << 2
	transFUA       = 1 << 3
	transTrim      = 1 << 5
	transZeroes    = 1 << 6
	transDF        = 1 << 7
	transMultiConn = 1 << 8
	transCache     = 1 << 10
	transFastZero  = 1 << 11
)

// Commands and their flags.
const (
	cmdRead   = 0
	cmdWrite  = 1
	cmdDisc   = 2
	cmdFlush  = 3
	cmdTrim   = 4
	cmdCache  = 5
	cmdZeroes = 6
	cmdStatus = 7

	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Chunks of structured replies.
const (
	chunkFlagDone    = 1 << 0
	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 1<<15 | 1
	chunkErrorOffset = 1<<15 | 2
)

// errno is an error number of the protocol.
type errno uint32

// The numbers that the protocol knows.
const (
	errPerm        errno = 1
	errIO          errno = 5
	errNoMemory    errno = 12
	errInvalid     errno = 22
	errNoSpace     errno = 28
	errOverflow    errno = 75
	errUnsupported errno = 95
	errShutdown    errno = 108
)

// Is makes an input/output error of the server ErrUnreadable.
func (e errno) Is(target error) bool { return e == errIO && target == ErrUnreadable }

func (e errno) Error() string {
	switch e {
	case errPerm:
		return "not permitted"
	case errIO:
		return "input/output error"
	case errNoMemory:
		return "out of memory"
	case errInvalid:
		return "invalid request"
	case errNoSpace:
		return "no space left"
	case errOverflow:
		return "request is too large"
	case errUnsupported:
		return "not supported"
	case errShutdown:
		return "server is shutting down"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

var be = binary.BigEndian

// request is the header of a request.
type request struct {
	flags, kind uint16
	cookie      uint64
	offset      uint64
	length      uint32
}

func parseRequest(p *[requestHeader]byte) (request, error) {
	if be.Uint32(p[:]) != magicRequest {
		return request{}, fmt.Errorf("request magic is wrong: %w", ErrProtocol)
	}
	return request{
		flags: be.Uint16(p[4:]), kind: be.Uint16(p[6:]), cookie: be.Uint64(p[8:]),
		offset: be.Uint64(p[16:]), length: be.Uint32(p[24:]),
	}, nil
}

func (r request) put(p *[requestHeader]byte) {
	be.PutUint32(p[:], magicRequest)
	be.PutUint16(p[4:], r.flags)
	be.PutUint16(p[6:], r.kind)
	be.PutUint64(p[8:], r.cookie)
	be.PutUint64(p[16:], r.offset)
	be.PutUint32(p[24:], r.length)
}

// inside says whether the request's range lies on a disk of size bytes.
func (r request) inside(size int64) bool {
	return r.offset <= uint64(size) && uint64(r.length) <= uint64(size)-r.offset
}

// cutter takes fields off the front of an option's data. After the first field
// that is not there, bad is set and every other is zero.
type cutter struct {
	p   []byte
	bad bool
}

func (c *cutter) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.p) {
		c.bad = true
		return nil
	}
	p := c.p[:n]
	c.p = c.p[n:]
	return p
}

func (c *cutter) u16() uint16 {
	if p := c.take(2); p != nil {
		return be.Uint16(p)
	}
	return 0
}

func (c *cutter) u32() uint32 {
	if p := c.take(4); p != nil {
		return be.Uint32(p)
	}
	return 0
}

// text is a string with its length in front.
func (c *cutter) text() string {
	n := c.u32()
	if n > MaxName {
		c.bad = true
		return ""
	}
	return string(c.take(int(n)))
}

// infoRequest is the data of INFO and GO.
type infoRequest struct {
	name string
	asks []uint16
}

func parseInfoRequest(p []byte) (infoRequest, bool) {
	c := cutter{p: p}
	r := infoRequest{name: c.text()}
	n := int(c.u16())
	for range n {
		if c.bad {
			break
		}
		r.asks = append(r.asks, c.u16())
	}
	return r, !c.bad && len(c.p) == 0
}

func (r infoRequest) bytes() []byte {
	p := appendText(nil, r.name)
	p = be.AppendUint16(p, uint16(len(r.asks)))
	for _, k := range r.asks {
		p = be.AppendUint16(p, k)
	}
	return p
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func parseMetaRequest(p []byte) (metaRequest, bool) {
	c := cutter{p: p}
	r := metaRequest{name: c.text()}
	n := c.u32()
	if n > maxContextQueries {
		return r, false
	}
	for range n {
		if c.bad {
			break
		}
		r.queries = append(r.queries, c.text())
	}
	return r, !c.bad && len(c.p) == 0
}

func (r metaRequest) bytes() []byte {
	p := appendText(nil, r.name)
	p = be.AppendUint32(p, uint32(len(r.queries)))
	for _, q := range r.queries {
		p = appendText(p, q)
	}
	return p
}

func appendText(p []byte, s string) []byte {
	return append(be.AppendUint32(p, uint32(len(s))), s...)
}

// discard reads n bytes and forgets them.
func discard(r io.Reader, n int64) error {
	_, err := io.CopyN(io.Discard, r, n)
	return err
}
