package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"
)

// session is the server's side of the transmission phase of one connection:
// one goroutine reads requests, up to smallSlots others answer them.
type session struct {
	*agreement
	conn net.Conn
	log  *slog.Logger
	size int64

	slots chan *slot
	big   chan []byte // nil until first used

	sending sync.Mutex
	broken  error // of sending: what follows is not sent
}

// slot is a request in flight with its buffer.
type slot struct {
	request
	buf []byte // room for a header, then smallBuffer bytes
}

// headRoom is what a buffer has before its data, so that a chunk goes out in
// one piece.
const headRoom = structuredHeader + 8

func newSession(conn net.Conn, a *agreement, log *slog.Logger) *session {
	s := &session{agreement: a, conn: conn, log: log, size: a.export.Disk.Size()}
	s.slots = make(chan *slot, smallSlots)
	for range smallSlots {
		s.slots <- new(slot)
	}
	s.big = make(chan []byte, bigBuffers)
	for range bigBuffers {
		s.big <- nil
	}
	return s
}

func (s *session) run() error {
	r := bufio.NewReaderSize(s.conn, 64<<10)
	var answering sync.WaitGroup
	defer func() {
		// A client that asks and does not listen must not keep us here.
		_ = s.conn.SetWriteDeadline(time.Now().Add(partingTime))
		answering.Wait()
	}()
	var h [requestHeader]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return quiet(err)
		}
		q, err := parseRequest(&h)
		if err != nil {
			return err
		}
		if q.kind == cmdDisc {
			return nil
		}
		x := <-s.slots
		x.request = q
		if q.kind == cmdWrite {
			if q.length > MaxRequest {
				return fmt.Errorf("write of %d bytes: %w", q.length, ErrProtocol)
			}
			if q.length > smallBuffer {
				// Too large to wait for its turn: it is written as it comes.
				err := s.writeLarge(r, x)
				s.slots <- x
				if err != nil {
					return err
				}
				continue
			}
			if _, err := io.ReadFull(r, x.data()[:q.length]); err != nil {
				return err
			}
		}
		answering.Go(func() {
			if err := s.answer(x); err != nil {
				_ = s.conn.Close() // an answer got lost: nobody waits for it in vain
			}
			s.slots <- x
		})
	}
}

// data is the slot's buffer behind the room for a header.
func (x *slot) data() []byte {
	if x.buf == nil {
		x.buf = make([]byte, headRoom+smallBuffer)
	}
	return x.buf[headRoom:]
}

// takeBig waits for one of the large buffers.
func (s *session) takeBig() []byte {
	p := <-s.big
	if p == nil {
		p = make([]byte, headRoom+bigBuffer)
	}
	return p
}

// knownFlags are the flags that a command may carry.
func (s *session) knownFlags(kind uint16) uint16 {
	switch kind {
	case cmdRead:
		if s.structured {
			return cmdFlagFUA | cmdFlagDF
		}
	case cmdZeroes:
		return cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero
	case cmdStatus:
		return cmdFlagFUA | cmdFlagReqOne
	}
	return cmdFlagFUA
}

// refuse says why a request is not even tried, 0 if it is.
func (s *session) refuse(q request) errno {
	writes := q.kind == cmdWrite || q.kind == cmdTrim || q.kind == cmdZeroes
	switch {
	case q.flags&^s.knownFlags(q.kind) != 0:
		return errInvalid
	case writes && s.export.Writer == nil:
		return errPerm
	case q.kind == cmdFlush:
		return 0
	case !q.inside(s.size):
		if writes {
			return errNoSpace
		}
		return errInvalid
	case q.kind == cmdRead && q.length > MaxRequest:
		return errOverflow
	case q.kind == cmdRead && q.flags&cmdFlagDF != 0 && q.length > bigBuffer:
		return errOverflow
	case q.kind == cmdStatus && (!s.allocation || q.length == 0):
		return errInvalid
	}
	return 0
}

// answer does what a request asks for. An error means that the connection is
// of no use any more.
func (s *session) answer(x *slot) error {
	q := x.request
	if e := s.refuse(q); e != 0 {
		return s.fail(q, e)
	}
	off, n := int64(q.offset), int64(q.length)
	switch q.kind {
	case cmdRead:
		return s.read(x)
	case cmdStatus:
		return s.blockStatus(q)
	case cmdWrite:
		_, err := s.export.Writer.WriteAt(x.data()[:n], off)
		return s.written(q, err)
	case cmdTrim, cmdZeroes:
		var err error
		if n > 0 {
			err = s.export.Writer.Zero(off, n)
		}
		return s.written(q, err)
	case cmdFlush:
		if s.export.Writer == nil {
			return s.done(q)
		}
		return s.finish(q, s.export.Writer.Sync())
	case cmdCache:
		if p, ok := s.export.Disk.(Prefetcher); ok && n > 0 {
			return s.finish(q, p.Prefetch(off, n))
		}
		return s.done(q)
	}
	return s.fail(q, errInvalid)
}

// written ends a request that wrote: durably, if that was asked for.
func (s *session) written(q request, err error) error {
	if err == nil && q.flags&cmdFlagFUA != 0 {
		err = s.export.Writer.Sync()
	}
	return s.finish(q, err)
}

func (s *session) finish(q request, err error) error {
	if err != nil {
		return s.fail(q, s.number(q, err))
	}
	return s.done(q)
}

// number is the protocol's word for an error, which itself goes to the log.
func (s *session) number(q request, err error) errno {
	s.log.Error("nbd request failed", "export", s.export.Name, "command", q.kind,
		"offset", q.offset, "length", q.length, "error", err)
	switch {
	case errors.Is(err, syscall.ENOSPC):
		return errNoSpace
	case errors.Is(err, errors.ErrUnsupported):
		return errUnsupported
	}
	return errIO
}

// writeLarge takes a write's data from the connection piece by piece. All of
// it is read even where writing fails, for the next request comes behind it.
func (s *session) writeLarge(r io.Reader, x *slot) error {
	q := x.request
	buf := s.takeBig()
	defer func() { s.big <- buf }()
	refused := s.refuse(q)
	var failed error
	for done := int64(0); done < int64(q.length); {
		p := buf[:min(bigBuffer, int64(q.length)-done)]
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		if refused == 0 && failed == nil {
			_, failed = s.export.Writer.WriteAt(p, int64(q.offset)+done)
		}
		done += int64(len(p))
	}
	if refused != 0 {
		return s.fail(q, refused)
	}
	return s.written(q, failed)
}

// send puts p on the wire in one piece.
func (s *session) send(p []byte) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.broken == nil {
		_, s.broken = s.conn.Write(p)
	}
	return s.broken
}

// done answers a request that has nothing to tell.
func (s *session) done(q request) error {
	if s.structured && (q.kind == cmdRead || q.kind == cmdStatus) {
		var h [structuredHeader]byte
		putChunk(h[:], q.cookie, chunkFlagDone, chunkNone, 0)
		return s.send(h[:])
	}
	return s.simple(q, 0)
}

func (s *session) simple(q request, e errno) error {
	var h [simpleHeader]byte
	putSimple(h[:], q.cookie, e)
	return s.send(h[:])
}

func putSimple(p []byte, cookie uint64, e errno) {
	be.PutUint32(p, magicSimple)
	be.PutUint32(p[4:], uint32(e))
	be.PutUint64(p[8:], cookie)
}

func putChunk(p []byte, cookie uint64, flags, kind uint16, n uint32) {
	be.PutUint32(p, magicStructured)
	be.PutUint16(p[4:], flags)
	be.PutUint16(p[6:], kind)
	be.PutUint64(p[8:], cookie)
	be.PutUint32(p[16:], n)
}

// fail answers a request with an error.
func (s *session) fail(q request, e errno) error {
	if !s.structured {
		return s.simple(q, e)
	}
	text := e.Error()
	p := make([]byte, structuredHeader, structuredHeader+6+maxMessage)
	p = be.AppendUint32(p, uint32(e))
	p = append(be.AppendUint16(p, uint16(len(text))), text...)
	putChunk(p, q.cookie, chunkFlagDone, chunkError, uint32(len(p)-structuredHeader))
	return s.send(p)
}

// failAt ends a structured read that went well up to off.
func (s *session) failAt(q request, e errno, off int64) error {
	text := e.Error()
	p := make([]byte, structuredHeader, structuredHeader+6+maxMessage+8)
	p = be.AppendUint32(p, uint32(e))
	p = append(be.AppendUint16(p, uint16(len(text))), text...)
	p = be.AppendUint64(p, uint64(off))
	putChunk(p, q.cookie, chunkFlagDone, chunkErrorOffset, uint32(len(p)-structuredHeader))
	return s.send(p)
}
